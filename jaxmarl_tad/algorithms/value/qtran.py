"""QTRAN: utilities that a free value of joint actions teaches, in the form base or alt.

    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily: every agent takes argmax Q_i(τ_i, ·), or a random legal action
        for each gradient step, with B episodes of the replay, ū_i = argmax Q_i(τ_i, ·) everywhere:
            G = λ-return of r with V(next) = Q̄_jt(τ', ū')
            D(u) = Σ_i Q_i(τ_i, u_i) − sg[Q_jt(τ, u)] + V_jt(s)
            descend (Q_jt(τ, u) − G)² + λ_opt D(ū)² + λ_nopt × the condition's error:
                base    min(0, D(u))²
                alt     mean over i of (min_a D(a, u_{−i}))²
            Q̄ ← Q̄ + τ (Q − Q̄)

Source: Son et al. 2019, eqs. 4-7 (conditions and losses) and theorem 2 (alt). Where D(ū) = 0 and D ≥ 0
elsewhere, the agents' own best actions are the best joint action of Q_jt. alt asks more: that for
everyone's choice some own action make D = 0.

Differs in that Q_jt is told which agent did what (the reference sums encodings over agents, and cannot
tell two actions that swap places apart); in a small finite game it is a table. alt evaluates Q_jt
itself at every action of one agent, for which the authors learn separate heads. Truncated episodes
bootstrap from their true final observation. Dead agents have utility 0 and no condition of their own.
By default ε is 1 throughout, so that everything is learned from random play.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_epsilon, struct
from jaxmarl_tad.distributions import best, explore, highest, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.joint import is_tabular, joint_value
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    state_inputs,
    unroll,
)
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Record, Replay, record
from jaxmarl_tad.rollout import keys
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of QTRAN."""

    total_steps: int | None = None
    """Environment steps of one member, rounded to whole iterations; padding counts. 6,400 times the
    horizon unless given."""
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
    """Adam's learning rate; 0.5 for tables and 5e-4 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.0
    """λ of the λ-return, in [0, 1]."""
    opt_coef: Real = 1.0
    """λ_opt, the weight of the error at the best actions."""
    nopt_coef: Real = 1.0
    """λ_nopt, the weight of the error of the condition elsewhere."""
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
    form: Literal["base", "alt"] = "base"
    """Which condition holds where an agent's action is not its best."""
    embed: int = 32
    """Numbers that tell Q_jt of an agent's history, made by the agent's own network."""
    central: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of Q_jt and V_jt, where they are no tables."""
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
        sizes = (self.envs, self.updates, self.batch, self.capacity, self.embed)
        require(min(sizes) >= 1, "qtran: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"qtran: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction", "target_update")
        check_range(self, **dict.fromkeys(shares, (0, 1)))
        check_range(self, **dict.fromkeys(("opt_coef", "nopt_coef"), (0, jnp.inf)))

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
    require(spec.discrete, "qtran: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"qtran: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    lr = (0.5 if kind == "table" else 5e-4) if config.lr is None else config.lr
    epsilon = resolve_epsilon(config.epsilon_end, spec)
    return {
        "network": kind,
        "steps": spec.horizon,
        "total_steps": config.total_steps or 6_400 * spec.horizon,
        "lr": lr,
        "epsilon_end": epsilon,
    }


class Params(NamedTuple):
    """Parameter sets of the agents, and of the two central values."""

    agents: Any
    joint: Any
    """Of Q_jt."""
    value: Any
    """Of V_jt."""


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    target: Params
    optimiser: Any
    replay: Replay


def team_value(config: Config, spec: Spec) -> tuple[Any, Callable]:
    """Q_jt, and ``total(params, told, action, seen)``: its values of joint actions, ``[*batch, 1]``.

    ``told [*batch, N, A + F]`` is what the agents' networks say: utilities, then of their history.
    """
    features = 0 if is_tabular(config.network, spec) else config.embed
    joint = joint_value(config.network, spec, features=features, hidden=config.central)

    def total(params: Params, told: Array, action: Array, seen: Any) -> Array:
        alive = seen.alive[..., None]
        chosen = jax.nn.one_hot(action, spec.n_actions) * alive
        histories = told[..., spec.n_actions :] * alive if features else None
        return joint.value(params.joint, seen.state, chosen, histories)[..., None]

    return joint, total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of QTRAN on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.lr is not None and config.epsilon_end is not None
    lr, epsilon_end = config.lr, config.epsilon_end

    joint, total = team_value(config, spec)
    view, inputs = agent_inputs(config.network, spec, share.identity)
    features = 0 if is_tabular(config.network, spec) else config.embed
    agent = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_actions + features,
        hidden=config.hidden,
        activation=config.activation,
        layer_norm=config.layer_norm,
        memory=config.memory,
        gain=1.0 if features else 0.01,
    )
    act_all, act_rows = over_agents(agent.apply, share), over_rows(agent.apply, share)
    _, state_size = state_inputs(config.network, spec)
    value = network(
        config.network,
        inputs=state_size,
        outputs=1,
        hidden=config.central,
        layer_norm=False,
        gain=0.0 if config.network == "table" else 1.0,
    )
    optimiser = adam(config.max_grad_norm)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def say(params: Params, batch: Record) -> Float[Array, "T B N F"]:
        """What the agents' networks say at every row of what was seen."""
        rows, episodes = batch.alive.shape[:2]
        memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (episodes, *m.shape)), start())
        first = jnp.broadcast_to(jnp.arange(rows)[:, None] == 0, (rows, episodes))
        one, many = (functools.partial(f, params.agents) for f in (act_all, act_rows))
        return unroll(one, start(), memory, batch.views, first, many)[0]

    def loss(params: Params, target: Params, batch: Record) -> tuple[Array, Metrics]:
        told, delayed = say(params, batch), say(target, batch)
        now, ahead = batch.rows(slice(-1)), batch.rows(slice(1, None))
        q = told[..., : spec.n_actions]
        greedy = best(q, batch.legal)
        returns = lambda_returns(
            batch.reward,
            total(target, delayed[1:], greedy[1:], ahead),
            batch.terminated,
            batch.truncated,
            config.gamma,
            config.lam,
        )
        counts = batch.valid[..., None]
        told, q, action = told[:-1], q[:-1], batch.action
        q_joint = total(params, told, action, now)
        td_error = masked_mean((returns - q_joint) ** 2, counts)

        v_joint = value.apply(params.value, (), now.state)[0]
        fixed = jax.lax.stop_gradient((params, told))

        def deviation(action: Array) -> Float[Array, "T B 1"]:
            """D(u) (Son et al. 2019, eq. 4)."""
            own = jnp.where(now.alive, taken(q, action), 0.0)
            factored = jnp.sum(own, axis=-1, keepdims=True)
            return factored - total(*fixed, action, now) + v_joint

        def of_own_actions(i: Array) -> Float[Array, "T B"]:
            """min_a D(a, u_{-i}) over legal actions of agent i."""
            mine = agents == i
            every = jax.vmap(lambda a: deviation(jnp.where(mine, a, action))[..., 0], out_axes=-1)
            open_to = now.legal[:, :, i] | ~now.alive[:, :, i, None]  # the dead are left out below
            return -highest(-every(jnp.arange(spec.n_actions)), open_to)

        opt_error = masked_mean(deviation(greedy[:-1]) ** 2, counts)
        if config.form == "base":
            nopt_error = masked_mean(jnp.minimum(deviation(action), 0.0) ** 2, counts)
        else:
            least = jax.vmap(of_own_actions, out_axes=-1)(agents)
            nopt_error = masked_mean(least**2, counts & now.alive)
        report = {"td_loss": td_error, "opt_loss": opt_error, "nopt_loss": nopt_error}
        error = td_error + config.opt_coef * opt_error + config.nopt_coef * nopt_error
        return error, report | {"q": masked_mean(q_joint, counts)}

    def collect(key: Key, params: Params, epsilon: Real, envs: int) -> Record:
        return record(env, policy_of(params, epsilon), key, envs, views, joint.view)

    def init(key: Key) -> State:
        agents_key, joint_key, value_key = keys(key, 3)
        collect_key = jax.random.fold_in(key, 0)
        params = Params(
            init_sets(agent.init, agents_key, share), joint.init(joint_key), value.init(value_key)
        )
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
        epsilon = config.epsilon_start + fallen * (epsilon_end - config.epsilon_start)
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
            told, memory = act_all(params.agents, memory, views(observation))
            q = told[..., : spec.n_actions]
            action = best(q, observation.legal)
            if epsilon is not None:
                uniform = jax.random.uniform(key, (spec.n_agents,))
                action = explore(uniform, epsilon, observation.legal, action)
            return action, memory, {"q": q, "told": told}

        return Policy(start=start, act=act, execution="decentralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, None if greedy else epsilon_end)

    return Algorithm(init, step, policy)
