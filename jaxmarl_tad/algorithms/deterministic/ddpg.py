"""MADDPG and FACMAC: deterministic policy gradients of a team, through one critic or another.

    fill the replay with episodes of random play
    repeat
        collect E episodes: a_i = μ_i(τ_i) + noise, or a draw from softmax μ_i(τ_i) if discrete
        for each gradient step, with B episodes of the replay:
            G = λ-return of r with V(next) = Q̄(s', μ̄_1(τ'_1), …, μ̄_N(τ'_N))
            descend ½ (G − Q(s, a_1, …, a_N))²
            ascend  Σ_i Q_i(s, x_1, …, x_N) in x_i alone, x_i = μ_i(τ_i)        (MADDPG: no mixer)
            ascend  mix(Q_1(τ_1, x_1), …, Q_N(τ_N, x_N); s) in all x at once    (FACMAC: a mixer)
            μ̄, Q̄ ← the same + τ (μ, Q − μ̄, Q̄)

Source: Lowe et al. 2017, eqs. 5-6 (MADDPG: every agent's critic sees the state and all actions); Peng
et al. 2021, eqs. 4-5 (FACMAC: a critic per agent and a monotone mixer). Differs from Lowe et al. in
that the other agents' actions in the policy gradient are what they would do now, held fixed, and not
those of the replay (as EPyMARL does). Terminal steps count in every loss and truncated ones bootstrap
from their true final observation. Critics have no memory.

Discrete actions are one-hot: drawn by Gumbel and softmax, with the gradient of the softmax (straight
through, Jang et al. 2017); the target's is the best one. Tables of a critic hold a value per joint
action, and for a mixture of actions give its expectation, so that their gradient is exact. Logits are
pulled to 0 by their mean square. Continuous actions are tanh μ in units of their range.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad import distributions, replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, struct
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.mixers import Name, mixer
from jaxmarl_tad.networks.net import (
    Kind,
    Net,
    Remember,
    agent_inputs,
    multilinear,
    network,
    resolve_kind,
    unroll,
)
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Replay
from jaxmarl_tad.rollout import episodes, keys
from jaxmarl_tad.sharing import Mode, Sharing, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of MADDPG and FACMAC."""

    total_steps: int = 12_800
    """Environment steps of one member, rounded to whole iterations; padding counts."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int = 2
    """Gradient steps in each iteration."""
    batch: int = 64
    """Episodes in each gradient step; the replay starts with at least as many random ones."""
    capacity: int = 2_048
    """Episodes that the replay holds."""
    lr: Real | None = None
    """Adam's learning rate of the actors; 0.05 for tables and 5e-4 for other networks unless given."""
    critic_lr: Real | None = None
    """That of critics and mixer; 0.1 for tables, 5e-3 beside tables and 1e-3 otherwise unless given."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.0
    """λ of the λ-return, in [0, 1]."""
    noise: Real = 0.1
    """Standard deviation of what is added to continuous actions, as a share of half their range."""
    temperature: Real = 1.0
    """Of the Gumbel-softmax through which discrete actions are differentiated; positive."""
    logit_coef: Real = 1e-3
    """Weight of the mean square of the logits of legal actions."""
    target_update: Real = 0.05
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient, for actors and critics each."""
    mixer: Name = "none"
    """How the critics' values make the team's; without, each critic sees the state and all actions."""
    embed: int = 32
    """Width of a monotone mixer's layer."""
    hyper: int = 64
    """Hidden width of the networks that make its weights."""
    memory: Remember = "none"
    """What the actors have."""
    sharing: Mode = "full_id"
    """Of actors and of critics."""
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given. Critics of
    continuous actions are perceptrons in any case."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = False
    """Whether a layer norm stands before and after the actors' hidden layers; critics have none."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.updates, self.batch, self.capacity, self.embed, self.hyper)
        require(min(sizes) >= 1, "ddpg: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"ddpg: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        check_range(self, gamma=(0, 1), lam=(0, 1), target_update=(0, 1), noise=(0, float("inf")))
        check_range(self, critic_lr=(0, float("inf")), temperature=(1e-6, float("inf")))

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
    require(
        config.steps in (None, spec.horizon),
        f"ddpg: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    identity = spec.n_agents if config.sharing == "full_id" else 1
    joint = config.mixer == "none" and spec.discrete
    cells = identity * spec.state_dim * spec.n_actions**spec.n_agents if joint else 0
    kind = resolve_kind(config.network, config.memory, spec, max(cells, spec.obs_dim * spec.n_agents))
    tabular = kind == "table"
    lr = (0.05 if tabular else 5e-4) if config.lr is None else config.lr
    for_critic = (0.1 if spec.discrete else 5e-3) if tabular else 1e-3
    critic_lr = for_critic if config.critic_lr is None else config.critic_lr
    return {"network": kind, "steps": spec.horizon, "lr": lr, "critic_lr": critic_lr}


class Params(NamedTuple):
    """Parameter sets of the actors; those of the critics, and the mixer's."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Params
    replay: Replay


class Record(NamedTuple):
    """Episodes as they are kept, ``[E, T, ...]``, and as they are learned from, ``[T, B, ...]``."""

    seen: Observation
    """One row more than there are steps: the last shows what the last step led to."""
    action: Any
    """``[*batch, N]`` int32, or ``[*batch, N, D]`` in units of the range."""
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    valid: Bool[Array, "*batch"]
    """Whether the step lies at or before the end of the episode."""


class Critic(NamedTuple):
    """Values ``[*batch, K]`` of joint actions ``[*batch, N, D]``: every agent's own, or the team's."""

    init: Any
    values: Any
    """``(params, seen, actions)``; discrete actions are one-hot, or mixtures of such. A value depends
    differentiably on the action of its own agent only, or on all if the critics are mixed."""


def critic_of(config: Config, spec: Spec) -> Critic:
    """The critic that a resolved ``config`` means."""
    n, mixed = spec.n_agents, config.mixer != "none"
    agents = jnp.arange(n)
    share = sharing(config.sharing, n)
    tabular = config.network == "table" and spec.discrete
    shown = spec if mixed else spec._replace(obs_dim=spec.state_dim)
    view, inputs = agent_inputs("table" if tabular else "mlp", shown, share.identity)
    fed, width = 1 if mixed else n, spec.n_actions or spec.action_dim
    net = multilinear(inputs, fed, width) if tabular else _beside(config, inputs, fed * width)
    of_agents = over_rows(net.apply, share)
    mixing = mixer(config.mixer, config.network, spec, embed=config.embed, hidden=config.hyper)

    def views(seen: Observation) -> Any:
        rows = seen.agents if mixed else jnp.broadcast_to(seen.state, (n, spec.state_dim))
        return jax.vmap(view)(rows, agents)

    def init(key: Key) -> Any:
        own_key, mixer_key = keys(jax.random.fold_in(key, 0), 2)
        return {"own": init_sets(net.init, own_key, share), "mixer": mixing.init(mixer_key)}

    def values(params: Any, seen: Observation, actions: Float[Array, "T B N D"]) -> Array:
        # The action of a dead agent means nothing: it is the first, or none.
        nothing = jnp.zeros(width).at[0].set(float(spec.discrete))
        actions = jnp.where(seen.alive[..., None], actions, nothing)
        told = actions[..., None, :] if mixed else in_own_action(actions)
        each_view, state = jax.vmap(jax.vmap(lambda o: (views(o), mixing.view(o.state))))(seen)
        q = of_agents(params["own"], (), (each_view, told), 2)[0][..., 0]
        return mixing.mix(params["mixer"], jnp.where(seen.alive, q, 0.0), state)

    return Critic(init, values)


def in_own_action(actions: Float[Array, "*batch N D"]) -> Float[Array, "*batch N N D"]:
    """What each critic is told, all actions: of which its own agent's alone passes a gradient on."""
    own = jnp.eye(actions.shape[-2], dtype=bool)[..., None]
    held = jax.lax.stop_gradient(actions)
    return jnp.where(own, actions[..., None, :, :], held[..., None, :, :])


def _beside(config: Config, inputs: int, numbers: int) -> Net:
    """A perceptron of what is seen with the actions' numbers put behind it."""
    plain = network(
        "mlp",
        inputs=inputs + numbers,
        outputs=1,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=False,  # it would take the size out of the actions
    )

    def apply(params: Any, memory: Memory, x: Any) -> tuple[Array, Memory]:
        seen, actions = x
        flat = actions.reshape(*actions.shape[:-2], numbers)
        return plain.apply(params, memory, jnp.concatenate([seen, flat], axis=-1))

    return plain._replace(apply=apply)


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of MADDPG or FACMAC on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share: Sharing = sharing(config.sharing, spec.n_agents)
    assert config.lr is not None and config.critic_lr is not None
    rates = Params(config.lr, config.critic_lr)
    width = spec.n_actions or spec.action_dim
    low, high = spec.bounds or (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2

    view, inputs = agent_inputs(config.network, spec, share.identity)
    actor = network(
        config.network,
        inputs=inputs,
        outputs=width,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        memory=config.memory,
        gain=0.01,
    )
    act_all, act_rows = over_agents(actor.apply, share), over_rows(actor.apply, share)
    critic = critic_of(config, spec)
    optimiser = adam(config.max_grad_norm)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), actor.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def outputs(params: Any, seen: Observation) -> Float[Array, "T B N D"]:
        """What every actor puts out at every row of what was seen."""
        rows, count = seen.alive.shape[:2]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (count, *m.shape)), start())
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, count))
        one, many = (functools.partial(f, params) for f in (act_all, act_rows))
        fed = jax.vmap(jax.vmap(views))(seen)
        return unroll(one, start(), memory, fed, first, many)[0]

    def numbers(action: Array, legal: Array) -> Array:
        """Actions that were taken as the critics are told of them."""
        return jax.nn.one_hot(action, width) if spec.discrete else jnp.where(legal, action, 0.0)

    def best(out: Array, legal: Array) -> Array:
        """μ, without noise."""
        if spec.discrete:
            return numbers(jnp.argmax(jnp.where(legal, out, distributions.IMPOSSIBLE), -1), legal)
        return numbers(jnp.tanh(out), legal)

    def drawn(key: Key, out: Array, legal: Array) -> Array:
        """μ as the policy gradient sees it: differentiable in ``out``."""
        if spec.discrete:
            return straight_through(jax.random.uniform(key, out.shape), out, legal, config.temperature)
        return best(out, legal)

    def loss(params: Params, target: Params, batch: Record, key: Key) -> tuple[Array, Metrics]:
        now, ahead = (
            jax.tree.map(lambda x, r=r: x[r], batch.seen) for r in (slice(-1), slice(1, None))
        )
        following = best(outputs(target.actor, batch.seen)[1:], ahead.legal)
        next_value = critic.values(target.critic, ahead, following)
        alone = config.mixer == "none"
        if alone:
            next_value = beyond_death(next_value, ahead.alive)
        returns = lambda_returns(
            batch.reward,
            next_value,
            batch.terminated,
            batch.truncated,
            config.gamma,
            config.lam,
        )
        value = critic.values(params.critic, now, numbers(batch.action, now.legal))
        counts = batch.valid[..., None] & (now.alive if alone else True)
        error = masked_mean(0.5 * (returns - value) ** 2, counts)

        out = outputs(params.actor, now)
        fixed = jax.lax.stop_gradient(params.critic)
        climbed = masked_mean(critic.values(fixed, now, drawn(key, out, now.legal)), counts)
        policy_loss = -climbed
        if spec.discrete:
            pulled = batch.valid[..., None, None] & now.alive[..., None] & now.legal
            policy_loss += jnp.asarray(config.logit_coef) * masked_mean(out**2, pulled)
        report = {"loss": error, "q": masked_mean(value, counts), "policy_q": climbed}
        return error + policy_loss, report

    def collect(key: Key, policy: Policy, envs: int) -> Record:
        played = episodes(env, policy, key, envs, spec.horizon)
        step = played.transition
        record = Record(
            seen=jax.tree.map(
                lambda now, after: jnp.concatenate([now, after[-1:]]), step.observation, step.next
            ),
            action=step.extras.get("chosen", step.action),
            reward=jnp.where(played.valid, step.reward, 0.0),
            terminated=step.terminated,
            truncated=step.truncated,
            valid=played.valid,
        )
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), record)

    def init(key: Key) -> State:
        actor_key, critic_key = keys(key, 2)
        collect_key = jax.random.fold_in(key, 0)
        params = Params(init_sets(actor.init, actor_key, share), critic.init(critic_key))
        first = collect(collect_key, policy_of(params, "random"), config.first_episodes)
        return State(
            params=params,
            target=params,
            optimiser=Params(*(optimiser.init(p) for p in params)),
            replay=replay.init(first, config.capacity),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        played = collect(collect_key, policy_of(state.params, "noisy"), config.envs)
        memory = replay.add(state.replay, played)

        def update(carry: Any, i: Array) -> tuple[Any, Metrics]:
            params, target, states = carry
            sample_key, noise_key = keys(jax.random.fold_in(learn_key, i), 2)
            sampled = replay.sample(memory, sample_key, config.batch)
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), sampled)
            gradient, report = jax.grad(loss, has_aux=True)(params, target, batch, noise_key)
            parts = zip(gradient, states, params, rates, strict=True)
            stepped = [optimiser.update(*part) for part in parts]
            params, states = (Params(*part) for part in zip(*stepped, strict=True))
            target = jax.tree.map(lambda t, p: t + config.target_update * (p - t), target, params)
            return (params, target, states), report

        carry = (state.params, state.target, state.optimiser)
        (params, target, states), reports = jax.lax.scan(update, carry, jnp.arange(config.updates))
        report = jax.tree.map(lambda x: x.mean(0), reports)
        return State(params, target, states, memory), report

    def policy_of(params: Params, manner: str) -> Policy:
        """Acts without noise (``"greedy"``), with it (``"noisy"``), or at random."""

        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            out, memory = act_all(params.actor, memory, views(observation))
            legal = observation.legal
            told = {"output": out}
            if spec.discrete:
                logits = jnp.zeros_like(out) if manner == "random" else out
                log_probs = distributions.log_probabilities(logits, legal)
                uniform = jax.random.uniform(key, (spec.n_agents,))
                return distributions.decide(uniform, log_probs, manner == "greedy")[0], memory, told
            x = jnp.tanh(out)
            if manner == "noisy":
                x = jnp.clip(x + config.noise * jax.random.normal(key, x.shape), -1.0, 1.0)
            if manner == "random":
                x = jax.random.uniform(key, x.shape, minval=-1.0, maxval=1.0)
            return middle + half * x, memory, told | {"chosen": x}

        return Policy(start=start, act=act, execution="decentralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, "greedy" if greedy else "noisy")

    return Algorithm(init, step, policy)


def straight_through(
    uniform: Float[Array, "*batch A"],
    logits: Float[Array, "*batch A"],
    legal: Bool[Array, "*batch A"],
    temperature: Real,
) -> Float[Array, "*batch A"]:
    """A one-hot draw from the softmax of legal logits, with the gradient of softmax((ℓ + g) / T)."""
    gumbel = -jnp.log(-jnp.log(jnp.clip(uniform, 1e-7, 1 - 1e-7)))
    noisy = jnp.where(legal, (logits + gumbel) / jnp.asarray(temperature), distributions.IMPOSSIBLE)
    soft = jax.nn.softmax(noisy)
    hard = jax.nn.one_hot(jnp.argmax(noisy, -1), logits.shape[-1])
    return hard + soft - jax.lax.stop_gradient(soft)
