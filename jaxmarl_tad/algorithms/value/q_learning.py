"""IQL, VDN and QMIX: deep Q-learning of a team, with one mixer or another.

    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily: every agent takes argmax Q_i(τ_i, ·), or a random legal action
        for each gradient step, with B episodes of the replay:
            a'_i = argmax Q_i(τ'_i, ·) over legal actions                       (double Q-learning)
            G = λ-return of r with V(next) = mix(Q̄_1(τ'_1, a'_1), …, Q̄_N(τ'_N, a'_N); s')
            descend ½ (G − mix(Q_1(τ_1, a_1), …, Q_N(τ_N, a_N); s))²
            Q̄ ← Q̄ + τ (Q − Q̄), and the mixer's copy likewise

Source: Tan 1993 (IQL: no mixer, every agent's Q has an error of its own on the common reward), Sunehag
et al. 2018 (VDN: a sum), Rashid et al. 2018, eqs. 5-6 (QMIX: a monotone network whose weights are made
from the state); van Hasselt et al. 2016 (double Q). Differs in that truncated episodes bootstrap from
their true final observation. Dead agents have utility 0 in every mixer, and no error of their own.

By default ε is 1 throughout, so that everything is learned from random play: what is then found in a
game is a property of the mixer and not of the exploration.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, struct
from jaxmarl_tad.distributions import IMPOSSIBLE
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.mixers import Name, mixer
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    unroll,
)
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Replay
from jaxmarl_tad.rollout import episodes, keys
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of IQL, VDN and QMIX."""

    total_steps: int = 6_400
    """Environment steps of one member, rounded to whole iterations; padding counts."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int = 1
    """Gradient steps in each iteration."""
    batch: int = 32
    """Episodes in each gradient step; the replay starts with at least as many random ones."""
    capacity: int = 512
    """Episodes that the replay holds."""
    lr: Real | None = None
    """Adam's learning rate; for tables 0.1 (QMIX 0.05) and 5e-4 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.0
    """λ of the λ-return, in [0, 1]."""
    epsilon_start: Real = 1.0
    """Probability of a random action in the first iteration."""
    epsilon_end: Real = 1.0
    """Probability of a random action once it has fallen."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target networks go in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    double: bool = True
    """Whether the online networks, rather than the target networks, choose the next action."""
    mixer: Name = "qmix"
    """How utilities make the team's value."""
    embed: int = 32
    """Width of QMIX's mixing layer."""
    hyper: int = 64
    """Hidden width of the networks that make QMIX's weights."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer, as in MAPPO's recipe."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.updates, self.batch, self.capacity, self.embed, self.hyper)
        require(min(sizes) >= 1, "q_learning: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"q_learning: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction")
        check_range(self, **dict.fromkeys((*shares, "target_update"), (0, 1)))

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
    require(spec.discrete, "q_learning: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"q_learning: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    for_tables = 0.05 if config.mixer == "qmix" else 0.1
    lr = (for_tables if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": spec.horizon, "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the agents, and of the mixer."""

    agents: Any
    mixer: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Any
    replay: Replay


class Record(NamedTuple):
    """Episodes as they are kept, ``[E, T, ...]``, and as they are learned from, ``[T, B, ...]``.

    What is seen has one row more than there are steps: the last shows what the last step led to.
    """

    views: Any
    """What each agent's network is fed."""
    state: Any
    """What the mixer is told of the global state."""
    legal: Bool[Array, "*batch N A"]
    alive: Bool[Array, "*batch N"]
    action: Int[Array, "*batch N"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    valid: Bool[Array, "*batch"]
    """Whether the step lies at or before the end of the episode."""


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of IQL, VDN or QMIX on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.lr is not None
    lr = config.lr

    view, inputs = agent_inputs(config.network, spec, share.identity)
    agent = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_actions,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        memory=config.memory,
        gain=0.01,
    )
    act_all, act_rows = over_agents(agent.apply, share), over_rows(agent.apply, share)
    mixing = mixer(config.mixer, config.network, spec, embed=config.embed, hidden=config.hyper)
    optimiser = adam(config.max_grad_norm)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def utilities(params: Params, batch: Record) -> Float[Array, "T B N A"]:
        """Q_i(τ_i, ·) at every row of what was seen."""
        rows, episodes = batch.alive.shape[:2]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (episodes, *m.shape)), start())
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, episodes))
        one, many = (functools.partial(f, params.agents) for f in (act_all, act_rows))
        return unroll(one, start(), memory, batch.views, first, many)[0]

    def seen(batch: Record, rows: slice) -> Record:
        """What was seen in these rows."""
        return batch._replace(
            state=jax.tree.map(lambda x: x[rows], batch.state),
            legal=batch.legal[rows],
            alive=batch.alive[rows],
        )

    def total(params: Params, q: Array, action: Array, alive: Array, state: Any) -> Array:
        """Values ``[T, B, K]`` of joint actions, given all utilities ``[T, B, N, A]``."""
        own = jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]
        return mixing.mix(params.mixer, jnp.where(alive, own, 0.0), state)

    def loss(params: Params, target: Params, batch: Record) -> tuple[Array, Metrics]:
        q, delayed = utilities(params, batch), utilities(target, batch)
        now, ahead = seen(batch, slice(-1)), seen(batch, slice(1, None))
        following = best((q if config.double else delayed)[1:], ahead.legal)
        next_value = total(target, delayed[1:], following, ahead.alive, ahead.state)
        if config.mixer == "none":
            next_value = beyond_death(next_value, ahead.alive)
        returns = lambda_returns(
            batch.reward,
            next_value,
            batch.terminated,
            batch.truncated,
            config.gamma,
            config.lam,
        )
        value = total(params, q[:-1], batch.action, now.alive, now.state)
        counts = batch.valid[..., None]
        if config.mixer == "none":
            counts = counts & now.alive
        error = masked_mean(0.5 * (returns - value) ** 2, counts)
        return error, {"loss": error, "q": masked_mean(value, counts)}

    def collect(key: Key, params: Params, epsilon: Real, envs: int) -> Record:
        played = episodes(env, policy_of(params, epsilon), key, envs, spec.horizon)
        step = played.transition
        shown = jax.tree.map(
            lambda now, after: jnp.concatenate([now, after[-1:]]), step.observation, step.next
        )
        record = Record(
            views=jax.vmap(jax.vmap(views))(shown),
            state=jax.vmap(jax.vmap(mixing.view))(shown.state),
            legal=shown.legal,
            alive=shown.alive,
            action=step.action,
            reward=jnp.where(played.valid, step.reward, 0.0),
            terminated=step.terminated,
            truncated=step.truncated,
            valid=played.valid,
        )
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), record)

    def init(key: Key) -> State:
        agents_key, mixer_key = keys(key, 2)
        collect_key = jax.random.fold_in(key, 0)
        params = Params(init_sets(agent.init, agents_key, share), mixing.init(mixer_key))
        first = collect(collect_key, params, 1.0, config.first_episodes)
        return State(
            params=params,
            target=params,
            optimiser=optimiser.init(params),
            replay=replay.init(first, config.capacity),
        )

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (config.epsilon_end - config.epsilon_start)
        rate = lr * (1 - (1 - config.lr_end) * progress)
        memory = replay.add(state.replay, collect(collect_key, state.params, epsilon, config.envs))

        def update(carry: Any, i: Array) -> tuple[Any, Metrics]:
            params, target, optimiser_state = carry
            drawn = replay.sample(memory, jax.random.fold_in(learn_key, i), config.batch)
            batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
            gradient, report = jax.grad(loss, has_aux=True)(params, target, batch)
            params, optimiser_state = optimiser.update(gradient, optimiser_state, params, rate)
            target = jax.tree.map(lambda t, p: t + config.target_update * (p - t), target, params)
            return (params, target, optimiser_state), report

        carry = (state.params, state.target, state.optimiser)
        carry, reports = jax.lax.scan(update, carry, jnp.arange(config.updates))
        report = jax.tree.map(lambda x: x.mean(0), reports)
        params, target, optimiser_state = carry
        state = State(params, target, optimiser_state, memory)
        return state, report | {"epsilon": jnp.asarray(epsilon)}

    def policy_of(params: Params, epsilon: Real | None) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            q, memory = act_all(params.agents, memory, views(observation))
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            return action, memory, {"q": q}

        return Policy(start=start, act=act, execution="decentralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, None if greedy else config.epsilon_end)

    return Algorithm(init, step, policy)


def best(q: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """The legal action of the highest value; the lowest index among equals."""
    return jnp.argmax(jnp.where(legal, q, IMPOSSIBLE), axis=-1).astype(jnp.int32)


def explore(
    uniform: Float[Array, "*batch"],
    epsilon: Real,
    legal: Bool[Array, "*batch A"],
    otherwise: Int[Array, "*batch"],
) -> Int[Array, "*batch"]:
    """With probability ε a random legal action; one uniform number decides both whether and which."""
    upto = jnp.cumsum(legal, axis=-1)
    count = upto[..., -1]
    rank = (uniform / jnp.maximum(epsilon, 1e-6) * count).astype(jnp.int32)
    rank = jnp.minimum(rank, count - 1)
    chosen = jnp.sum(upto <= rank[..., None], axis=-1).astype(jnp.int32)
    return jnp.where(uniform < epsilon, chosen, otherwise)
