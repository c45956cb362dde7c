"""TAD-DQN: deep Q-learning on the sequential single-agent MDP Γ(M).

    Γ turns one step of the team into N virtual steps: state (s, a_{<i}), agent i chooses a_i;
    reward and transition happen after the last, the discount is 1 inside the block and γ at its end
    fill the replay with episodes of random play
    repeat
        collect E episodes ε-greedily: agents choose in turn, a_i = argmax Q(s, a_{<i}, ·) or at random
        for each gradient step, with B episodes of the replay and every agent i of each step:
            y_i = Q̄(s, a_{≤i}, argmax Q(s, a_{≤i}, ·))                       for i < N (double Q)
            y_N = r + γ Q̄(s', ∅, argmax Q(s', ∅, ·)),   0 beyond a terminated step
            descend ½ (y_i − Q(s, a_{<i}, a_i))²
            Q̄ ← Q̄ + τ (Q − Q̄)

Source: Ye et al. 2022 (the transformation, which takes any single-agent learner); Mnih et al. 2015
(DQN); van Hasselt et al. 2016 (double Q). max_{a_1} Q(s, ∅, ·) is the value of the best joint action,
and greedy choices one after the other are that action: a maximum over N times A numbers instead of A^N,
and no restriction on what Q may express. ``discount="fractional"`` discounts every virtual step by
γ^(1/N); then the game's value is γ^((1−N)/N) times that of its first virtual step. Agents choose in
their order, living ones only; truncated episodes bootstrap from their true final state.

The result needs its predecessors' actions to act: ``distill`` turns it into decentralised policies. In
short games ε is 1 throughout by default, so that everything is learned from random play; the greedy
policy is the teacher.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmarl_tad import replay
from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_epsilon, struct
from jaxmarl_tad.distributions import best, explore, taken
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import Kind, resolve_kind, state_inputs
from jaxmarl_tad.networks.prefix import Read, head, prefixes, table_rows
from jaxmarl_tad.optimise import adam
from jaxmarl_tad.replay import Record, Replay, record
from jaxmarl_tad.rollout import keys
from jaxmarl_tad.sharing import Mode, init_sets, of_agent, sharing
from jaxmarl_tad.targets import of_next_living
from jaxmarl_tad.types import Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of TAD-DQN."""

    total_steps: int | None = None
    """Environment steps of one member, rounded to whole iterations; padding counts. 6,400 times the
    horizon unless given."""
    envs: int = 32
    """Episodes collected in each iteration; divides ``capacity``."""
    steps: int | None = None
    """Length to which episodes are padded: the horizon."""
    updates: int = 4
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
    discount: Literal["block", "fractional"] = "block"
    """γ at the end of each block of N virtual steps, or γ^(1/N) at each of them."""
    epsilon_start: Real = 1.0
    """Probability, for each agent, of a random action in the first iteration."""
    epsilon_end: Real | None = None
    """Probability of a random action once it has fallen; 1 in games of at most 4 steps (uniform data)
    and 0.05 in others unless given."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    target_update: Real = 0.1
    """Share of the way that the target network goes in each gradient step (Polyak's rate)."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    double: bool = True
    """Whether the online network, rather than the target network, chooses the next action."""
    prefix: Read = "sum"
    """How networks other than tables read a_{<i}."""
    memory: Literal["none"] = "none"
    """It sees the state."""
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        sizes = (self.envs, self.updates, self.batch, self.capacity)
        require(min(sizes) >= 1, "tad_dqn: sizes must be positive.")
        check_divides(self, "envs", "capacity")
        require(
            self.capacity >= self.batch,
            f"tad_dqn: capacity={self.capacity} must be at least batch={self.batch}.",
        )
        shares = ("gamma", "epsilon_start", "epsilon_end", "epsilon_fraction", "target_update")
        check_range(self, **dict.fromkeys(shares, (0, 1)))

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
    require(spec.discrete, "tad_dqn: actions must be discrete; this environment's are continuous.")
    require(
        config.steps in (None, spec.horizon),
        f"tad_dqn: steps={config.steps} must be the horizon, {spec.horizon}: whole episodes.",
    )
    identity = config.sharing == "full_id"
    rows = table_rows(spec.state_dim, spec.n_agents, spec.n_actions, identity=identity)
    kind = resolve_kind(config.network, config.memory, spec, rows)
    return {
        "network": kind,
        "steps": spec.horizon,
        "total_steps": config.total_steps or 6_400 * spec.horizon,
        "lr": (0.5 if kind == "table" else 5e-4) if config.lr is None else config.lr,
        "epsilon_end": resolve_epsilon(config.epsilon_end, spec),
    }


class State(NamedTuple):
    """All that a run carries on."""

    params: Any
    target: Any
    optimiser: Any
    replay: Replay


class View(NamedTuple):
    """What is told of the global state."""

    view: Callable[[Float[Array, "S"]], Any]


def team_value(config: Config, spec: Spec) -> tuple[View, Callable]:
    """What the network sees, and the values of joint actions as ``total(params, q, action, seen)``.

    ``total`` gives ``[*batch, N]``: Q(s, a_{<i}, a_i) of joint actions ``[*batch, N]`` from ``q
    [*batch, N, A]``, each row of which was read after the same actions.
    """
    view, _ = state_inputs(config.network, spec)

    def total(params: Any, q: Array, action: Array, seen: Any) -> Array:
        return taken(q, action)

    return View(view), total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    n = spec.n_agents
    agents = jnp.arange(n)
    share = sharing(config.sharing, n)
    assert config.lr is not None and config.epsilon_end is not None
    lr, epsilon_end = config.lr, config.epsilon_end
    told, _ = team_value(config, spec)
    _, inputs = state_inputs(config.network, spec)
    values = head(
        config.network,
        config.prefix,
        inputs=inputs,
        outputs=spec.n_actions,
        agents=n,
        actions=spec.n_actions,
        identity=share.identity,
        hidden=config.hidden,
        gain=0.01,
    )
    optimiser = adam(config.max_grad_norm)
    earlier = jnp.asarray(np.tril(np.ones((n, n), bool), -1))
    block = config.discount == "block"
    inside, at_end = (1.0, config.gamma) if block else (config.gamma ** (1 / n),) * 2

    def along(params: Any, state: Any, alive: Array, action: Array) -> Float[Array, "N A"]:
        """Q(s, a_{<i}, ·) of every agent, given what those before it chose."""
        own = lambda agent: of_agent(params, share, agent)  # noqa: E731
        tokens = jax.vmap(lambda i, a: values.token(own(i), state, i, a))(agents, action)
        before = prefixes(tokens, earlier & alive[None, :])
        return jax.vmap(lambda i, b: values.read(own(i), state, i, b))(agents, before)

    def loss(params: Any, target: Any, batch: Record) -> tuple[Array, Metrics]:
        # Nothing was chosen after the last step; who chooses first does not need it.
        action = jnp.concatenate([batch.action, jnp.zeros_like(batch.action[:1])])
        q, delayed = (
            jax.vmap(jax.vmap(lambda *x, p=p: along(p, *x)))(batch.state, batch.alive, action)
            for p in (params, target)
        )
        highest = taken(delayed, best(q if config.double else delayed, batch.legal))
        # V(s, ∅): what the first living agent in line holds its best choice to be worth.
        first = jnp.argmax(batch.alive, axis=-1)
        of_state = jnp.take_along_axis(highest, first[..., None], axis=-1)[..., 0] * inside**first
        goes_on = jnp.where(batch.terminated, 0.0, at_end)
        paid = batch.reward + goes_on * of_state[1:]
        goal = of_next_living(highest[:-1], batch.alive[:-1], paid, inside)
        value = taken(q[:-1], batch.action)
        counts = batch.valid[..., None] & batch.alive[:-1]
        error = masked_mean(0.5 * (jax.lax.stop_gradient(goal) - value) ** 2, counts)
        return error, {"loss": error, "q": masked_mean(value, counts)}

    def collect(key: Key, params: Any, epsilon: Real, envs: int) -> Record:
        return record(env, policy_of(params, epsilon), key, envs, lambda observation: (), told.view)

    def init(key: Key) -> State:
        params = init_sets(values.init, key, share)
        first = collect(jax.random.fold_in(key, 0), params, 1.0, config.first_episodes)
        return State(params, params, optimiser.init(params), replay.init(first, config.capacity))

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

    def policy_of(params: Any, epsilon: Real | None) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            state = told.view(observation.state)
            uniform = jax.random.uniform(key, (n,))

            def choose(before: Any, turn: tuple[Array, Array]) -> tuple[Any, Any]:
                agent, noise = turn
                own, legal = of_agent(params, share, agent), observation.legal[agent]
                q = values.read(own, state, agent, before)
                action = best(q, legal)
                if epsilon is not None:
                    action = explore(noise, epsilon, legal, action)
                token = values.token(own, state, agent, action)
                living = observation.alive[agent]
                return jax.tree.map(lambda b, t: b + jnp.where(living, t, 0), before, token), (
                    action,
                    q,
                )

            _, (action, q) = jax.lax.scan(choose, values.empty(), (agents, uniform))
            return action, memory, {"q": q}

        return Policy(start=lambda: (), act=act, execution="centralised")

    def policy(state: State, *, greedy: bool) -> Policy:
        return policy_of(state.params, None if greedy else epsilon_end)

    return Algorithm(init, step, policy)
