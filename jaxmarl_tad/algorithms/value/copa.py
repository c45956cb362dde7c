"""COPA: a coach who sees everything sends strategies to players who see their own, now and then.

    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily: every T steps the coach draws z_i ~ N(μ_i, σ_i²) for each agent,
            which plays argmax Q_i(τ_i, z_i, ·), or a random legal action, until it is given another
        for each gradient step, with B episodes of the replay:
            draw z anew for every segment of T steps, from the coach as it is now
            a'_i = argmax Q_i(τ'_i, z'_i, ·) over legal actions                 (double Q-learning)
            G = λ-return of r with V(next) = mix(Q̄_1(τ'_1, z̄'_1, a'_1), …; s'), z̄ by the coach's copy
            descend  ½ (G − mix(Q_1(τ_1, z_1, a_1), …; s))²
                     − λ_z [log q(z_i | x_i, s, a_i) + H(z_i) / 10]
            Q̄ ← Q̄ + τ (Q − Q̄), and so the copies of coach and mixer
    act greedily with z_i = μ_i, of which the coach sends what is at least β from the one that i holds

The second term makes strategies tell themselves apart by what follows, the third keeps them open: a
lower bound of their mutual information. Source: Liu et al. 2021 (COPA), eqs. 4-7; log-densities are cut
off at [-1000, 0] and entropies at [0, 10] as in the authors' code. Differs, as in the comparison of
Chen et al. 2024, in that λ-returns along whole episodes take the place of segments, and QMIX's mixer
that of one fed by the coach; and in what the coach attends to (:mod:`jaxmarl_tad.networks.coach`).

``messages`` is the share of strategies that the greedy team was sent, of those that would be sent with
β = 0: all. The first is always sent. While learning, everything is.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_epsilon, struct
from jaxmarl_tad.distributions import best, explore, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.coach import coach
from jaxmarl_tad.networks.mixers import Mixer, mixer
from jaxmarl_tad.networks.net import Kind, Remember, agent_inputs, draw, network, unroll
from jaxmarl_tad.networks.sequence import dense, dense_shapes
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Record, Replay, record
from jaxmarl_tad.rollout import episodes, keys
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of COPA."""

    total_steps: int | None = None
    """Environment steps of one member, rounded to whole iterations; padding counts. 6,400 times the
    horizon unless given."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int = 2
    """Gradient steps in each iteration."""
    batch: int = 32
    """Episodes in each gradient step; the replay starts with at least as many random ones."""
    capacity: int = 512
    """Episodes that the replay holds."""
    lr: Real = 2e-3
    """Adam's learning rate."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.6
    """λ of the λ-return, in [0, 1]."""
    epsilon_start: Real = 1.0
    """Probability of a random action in the first iteration."""
    epsilon_end: Real | None = None
    """Probability of a random action once it has fallen; 1 in games of at most 4 steps (uniform data)
    and 0.05 in others unless given."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    period: int = 4
    """Steps from one strategy to the next, from an episode's first on (T)."""
    beta: Real = 0.0
    """Distance (Euclidean) from the strategy held, below which a new one is not sent."""
    z_size: int = 16
    """How many numbers a strategy has; the authors' 128."""
    z_noise: Real = 0.3
    """What the deviation of z is multiplied by while learning: the authors' 1; 0 leaves its mean."""
    z_weight: Real = 1e-3
    """Weight λ_z of what makes strategies tell themselves apart."""
    heads: int = 1
    """Heads of the coach's attention, each of the whole width; the authors' 4."""
    mixer: Literal["vdn", "qmix"] = "qmix"
    """How utilities make the team's value."""
    embed: int = 32
    """Width of QMIX's mixing layer."""
    hyper: int = 64
    """Hidden width of the networks that make QMIX's weights."""
    watched: int = 8
    """Greedy episodes in each iteration that are only watched, for ``messages``."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Multilayer perceptrons; tables are told nothing."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's and the coach's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.updates, self.batch, self.capacity, self.embed, self.hyper)
        sizes = (*sizes, self.period, self.z_size, self.heads, self.watched)
        require(min(sizes) >= 1, "copa: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"copa: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        require(self.network != "table", "copa needs network='mlp': tables are told nothing.")
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction")
        check_range(self, **dict.fromkeys((*shares, "target_update"), (0, 1)))
        check_range(self, **dict.fromkeys(("beta", "z_weight", "z_noise"), (0, float("inf"))))

    @property
    def first_episodes(self) -> int:
        """Episodes of random play with which the replay starts: a batch, in whole collections."""
        return -(-self.batch // self.envs) * self.envs

    @property
    def first_steps(self) -> int:
        """Environment steps that these take."""
        assert self.steps is not None, "resolve() fills this in"
        return self.first_episodes * self.steps


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "copa: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"copa: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    return {
        "network": "mlp",
        "steps": spec.horizon,
        "total_steps": config.total_steps or 6_400 * spec.horizon,
        "epsilon_end": resolve_epsilon(config.epsilon_end, spec),
    }


class Params(NamedTuple):
    """Parameters of the players (sets of them), of the coach and its guess, and of the mixer."""

    agents: Any
    coach: Any
    mixer: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Any
    replay: Replay


class Seen(NamedTuple):
    """What is kept of an observation: rows of the agents, and the state once."""

    rows: Array
    state: Array


def team_value(config: Config, spec: Spec) -> tuple[Mixer, Callable]:
    """The mixer, and Q_tot as ``total(params, q, action, seen)``.

    ``total`` gives the values ``[*batch, 1]`` of joint actions ``[*batch, N]`` from all utilities
    ``[*batch, N, A]``; ``seen`` has fields ``alive`` and ``state`` (the view).
    """
    mixing = mixer(config.mixer, "mlp", spec, embed=config.embed, hidden=config.hyper)

    def total(params: Params, q: Array, action: Array, seen: Any) -> Array:
        return mixing.mix(params.mixer, jnp.where(seen.alive, taken(q, action), 0.0), seen.state)

    return mixing, total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.epsilon_end is not None
    epsilon_end, width, period = config.epsilon_end, config.hidden[-1], config.period

    view, inputs = agent_inputs("mlp", spec, share.identity)
    torso = network(
        "mlp",
        inputs=inputs,
        outputs=width,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        memory=config.memory,
    )
    head = {
        "hidden": dense_shapes(width + config.z_size, width),
        "out": dense_shapes(width, spec.n_actions),
    }
    # The coach knows whom it speaks to, unless nobody is to be told apart.
    told_apart = share.sets > 1
    guide = coach(
        inputs=inputs + (spec.n_agents if told_apart else 0),
        states=spec.state_dim,
        actions=spec.n_actions,
        width=width,
        heads=config.heads,
        size=config.z_size,
    )
    mixing, total = team_value(config, spec)
    optimiser = adam(config.max_grad_norm)

    def init_player(key: Key) -> Any:
        torso_key, head_key = keys(key, 2)
        return {"torso": torso.init(torso_key), "head": draw(head_key, head, 0.01)}

    def player(params: Any, memory: Memory, fed: tuple[Array, Array]) -> tuple[Array, Memory]:
        """Q_i(τ_i, z_i, ·) of what one agent sees and is told."""
        row, z = fed
        h, memory = torso.apply(params["torso"], memory, row)
        x = jnp.concatenate([jax.nn.relu(h), z], axis=-1)
        return dense(params["head"]["out"], jax.nn.relu(dense(params["head"]["hidden"], x))), memory

    act_all, act_rows = over_agents(player, share), over_rows(player, share)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), torso.start())

    def views(observation: Observation) -> Seen:
        return Seen(jax.vmap(view)(observation.agents, agents), observation.state)

    def named(rows: Array) -> Array:
        """What the coach sees of the agents."""
        if not told_apart:
            return rows
        index = jnp.broadcast_to(jnp.eye(spec.n_agents), (*rows.shape[:-1], spec.n_agents))
        return jnp.concatenate([rows, index], axis=-1)

    def strategies(params: Params, seen: Seen, alive: Array) -> Any:
        return guide.strategies(params.coach, named(seen.rows), seen.state, alive)

    def utilities(
        params: Params, batch: Record, noise: Array
    ) -> tuple[Float[Array, "T B N A"], Array, Array]:
        """Q_i(τ_i, z_i, ·) at every row of what was seen, z_i, and its entropy."""
        rows, count = batch.alive.shape[:2]
        issued = jax.tree.map(lambda x: x[::period], (batch.views, batch.alive))
        told = strategies(params, *issued)
        segment = jnp.arange(rows) // period
        z, entropy = told.drawn(noise[: told.mean.shape[0]])[segment], told.entropy()[segment]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (count, *m.shape)), start())
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, count))
        one, many = (functools.partial(f, params.agents) for f in (act_all, act_rows))
        q, _ = unroll(one, start(), memory, (batch.views.rows, z), first, many)
        return q, z, entropy

    def loss(params: Params, target: Params, batch: Record, noise: Array) -> tuple[Array, Metrics]:
        q, z, entropy = utilities(params, batch, noise)
        delayed, _, _ = utilities(target, batch, noise)
        now, ahead = batch.rows(slice(-1)), batch.rows(slice(1, None))
        valid = batch.valid[..., None]

        following = best(q[1:], ahead.legal)
        next_value = total(target, delayed[1:], following, ahead)
        ends = batch.terminated, batch.truncated
        returns = lambda_returns(batch.reward, next_value, *ends, config.gamma, config.lam)
        value = total(params, q[:-1], batch.action, now)
        error = masked_mean(0.5 * (returns - value) ** 2, valid)

        seen, chosen = batch.views, jax.nn.one_hot(batch.action, spec.n_actions)
        guessed = guide.guess(params.coach, named(seen.rows[:-1]), seen.state[:-1], chosen)
        counts = valid & now.alive
        told = masked_mean(jnp.clip(guessed.log_density(z[:-1]), -1000.0, 0.0), counts)
        open_ = masked_mean(jnp.clip(entropy[:-1], 0.0, 10.0), counts)
        report = {"loss": error, "q": masked_mean(value, valid), "guess": told, "entropy": open_}
        return error - config.z_weight * (told + 0.1 * open_), report

    def collect(key: Key, params: Params, epsilon: Real, envs: int) -> Record:
        return record(env, policy_of(params, epsilon), key, envs, views, mixing.view)

    def init(key: Key) -> State:
        agents_key, coach_key, mixer_key = keys(key, 3)
        sets = init_sets(init_player, agents_key, share)
        params = Params(sets, guide.init(coach_key), mixing.init(mixer_key))
        first = collect(jax.random.fold_in(key, 0), params, 1.0, config.first_episodes)
        return State(
            params=params,
            target=params,
            optimiser=optimiser.init(params),
            replay=replay.init(first, config.capacity),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key, watch_key = keys(key, 3)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (epsilon_end - config.epsilon_start)
        rate = config.lr * (1 - (1 - config.lr_end) * progress)
        memory = replay.add(state.replay, collect(collect_key, state.params, epsilon, config.envs))

        def update(carry: Any, i: Array) -> tuple[Any, Metrics]:
            params, target, optimiser_state = carry
            drawn = replay.sample(memory, jax.random.fold_in(learn_key, i), config.batch)
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
            shape = (spec.horizon // period + 1, *batch.alive.shape[1:], config.z_size)
            noise_key = jax.random.fold_in(learn_key, config.updates + i)
            noise = config.z_noise * jax.random.normal(noise_key, shape)
            gradient, report = jax.grad(loss, has_aux=True)(params, target, batch, noise)
            params, optimiser_state = optimiser.update(gradient, optimiser_state, params, rate)
            target = jax.tree.map(lambda t, p: t + config.target_update * (p - t), target, params)
            return (params, target, optimiser_state), report

        carry = (state.params, state.target, state.optimiser)
        carry, reports = jax.lax.scan(update, carry, jnp.arange(config.updates))
        params, target, optimiser_state = carry
        state = State(params, target, optimiser_state, memory)
        report = jax.tree.map(lambda x: x.mean(0), reports)
        greedy = policy_of(state.params, None)
        seen = episodes(env, greedy, watch_key, config.watched, spec.horizon)
        told = seen.transition.extras
        report["messages"] = masked_mean(told["sent"], (told["due"] > 0) & seen.valid[..., None])
        return state, report | {"epsilon": jnp.asarray(epsilon)}

    def policy_of(params: Params, epsilon: Real | None) -> Policy:
        def act(key: Key, memory: Any, observation: Observation) -> tuple[Any, Any, Any]:
            own, held, clock = memory
            seen, alive = views(observation), observation.alive
            told, due = strategies(params, seen, alive), (clock % period == 0) & alive
            z, sent = told.mean, due
            if epsilon is None:
                far = jnp.sum((z - held) ** 2, axis=-1) >= jnp.asarray(config.beta) ** 2
                sent = due & (far | (clock == 0))
            else:
                key, noise_key = jax.random.split(key)
                z = told.drawn(config.z_noise * jax.random.normal(noise_key, z.shape))
            held = jnp.where(sent[:, None], z, held)
            q, own = act_all(params.agents, own, (seen.rows, held))
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            messages = {"sent": sent.astype(jnp.float32), "due": due.astype(jnp.float32)}
            return action, (own, held, clock + 1), {"q": q, "z": held} | messages

        def begin() -> Memory:
            return start(), jnp.zeros((spec.n_agents, config.z_size)), jnp.zeros((), jnp.int32)

        return Policy(begin, act, "centralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, None if greedy else epsilon_end)

    return Algorithm(init, step, policy)
