"""PQN-VDN: parallelised Q-learning of a team, without replay and without target networks.

    repeat
        collect T steps in E environments ε-greedily: argmax Q_i(τ_i, ·), or a random legal action
        G_t = r_t + γ [(1 − λ) Σ_i max_a Q_i(τ'_i, a) + λ G_{t+1}]                    (Peng's Q(λ))
        for K epochs, for each minibatch of environments:
            descend ½ (G − Σ_i Q_i(τ_i, a_i))²

Source: Gallici et al. 2025 (PQN, algorithm 1 and its multi-agent form); Sunehag et al. 2018 (VDN, the
sum). Layer norms take the place of target networks; they stand in multilayer perceptrons, and a table
needs none. Differs in that truncated episodes bootstrap from their true final observation, in Adam
instead of rectified Adam, and in that minibatches are drawn over environments. Dead agents add nothing
to the sum.

Unlike in the methods with a replay ε falls by default: the λ-return follows what is played, and would
otherwise be a mixture with the value of random play.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmarl_tad.config import Real, check_divides, check_range, require, resolve_steps, struct
from jaxmarl_tad.distributions import best, explore, highest, taken
from jaxmarl_tad.networks.mixers import Mixer, mixer
from jaxmarl_tad.networks.net import (
    Kind,
    Remember,
    agent_inputs,
    network,
    resolve_kind,
    unroll,
)
from jaxmarl_tad.optimise import adam, improve
from jaxmarl_tad.rollout import Actors, begin, keys, rollout
from jaxmarl_tad.rollout import taken as rows_of
from jaxmarl_tad.sharing import Mode, init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import lambda_returns, next_values
from jaxmarl_tad.types import Activation, Algorithm, Key, Memory, Metrics, Policy
from tad_envs import Environment, Observation, Spec


@struct
class Config:
    """Settings of PQN-VDN."""

    total_steps: int = 12_800
    """Environment steps of one member, rounded to whole iterations."""
    envs: int = 64
    """Environments acted in at once."""
    steps: int | None = None
    """Rollout length; one episode (up to 128 steps) unless given."""
    epochs: int = 2
    """Passes over each batch."""
    minibatches: int = 2
    """Parts of each pass; divides ``envs``."""
    lr: Real | None = None
    """Adam's learning rate; 0.1 for tables and 5e-4 for other networks unless given."""
    lr_end: Real = 0.0
    """Share of ``lr`` that is left at the end; it falls linearly over the run."""
    gamma: Real = 0.99
    """Discount per environment step, in [0, 1]."""
    lam: Real = 0.65
    """λ of the λ-return, in [0, 1]."""
    epsilon_start: Real = 1.0
    """Probability of a random action in the first iteration."""
    epsilon_end: Real = 0.05
    """Probability of a random action once it has fallen."""
    epsilon_fraction: Real = 0.5
    """Share of the run over which it falls linearly, in [0, 1]."""
    max_grad_norm: Real = 10.0
    """Largest global norm of a gradient."""
    memory: Remember = "none"
    sharing: Mode = "full_id"
    network: Kind = "auto"
    """Tables for finite games without memory, else multilayer perceptrons, unless given."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers; the last is also the memory's."""
    activation: Activation = "relu"
    layer_norm: bool = True
    """Whether a layer norm stands before and after every hidden layer; PQN relies on them."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes and ranges."""
        require(min(self.envs, self.epochs, self.minibatches) >= 1, "pqn: sizes must be positive.")
        check_divides(self, "minibatches", "envs")
        shares = ("gamma", "lam", "epsilon_start", "epsilon_end", "epsilon_fraction")
        check_range(self, **dict.fromkeys(shares, (0, 1)))


def resolve(config: Config, spec: Spec) -> dict[str, Any]:
    """Values of the fields that depend on the environment's sizes."""
    require(spec.discrete, "pqn: actions must be discrete; this environment's are continuous.")
    kind = resolve_kind(config.network, config.memory, spec, spec.obs_dim * spec.n_agents)
    lr = (0.1 if kind == "table" else 5e-4) if config.lr is None else config.lr
    return {"network": kind, "steps": resolve_steps(config.steps, spec), "lr": lr}


class Params(NamedTuple):
    """Parameter sets of the agents."""

    agents: Any


class State(NamedTuple):
    """All that a run carries on."""

    params: Params
    optimiser: Params
    actors: Actors


class Batch(NamedTuple):
    """What the epochs learn from; leaves ``[T, E, ...]``."""

    views: Any
    alive: Any
    action: Any
    target: Any
    first: Any


def team_value(config: Config, spec: Spec) -> tuple[Mixer, Callable]:
    """VDN's mixer, and ``total(params, q, action, seen)``, the sum of living agents' utilities."""
    mixing = mixer("vdn", config.network, spec)

    def total(params: Params, q: Any, action: Any, seen: Any) -> Any:
        del params
        return mixing.mix((), jnp.where(seen.alive, taken(q, action), 0.0), ())

    return mixing, total


def make(config: Config, env: Environment) -> Algorithm:
    """The learner of PQN-VDN on ``env``; ``config`` as returned by :func:`resolve`."""
    spec = env.spec
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    assert config.steps is not None and config.lr is not None
    steps, lr = config.steps, config.lr

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
    _, total = team_value(config, spec)
    optimiser = adam(config.max_grad_norm)
    batched = lambda function: jax.vmap(jax.vmap(function))  # over [T, E]  # noqa: E731

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def utilities(params: Params, memory: Memory, views: Any, first: Any) -> tuple[Any, Memory]:
        """Q_i(τ_i, ·) along recorded time, ``[T, E, N, A]``, and the memories after each step."""
        one, many = (functools.partial(f, params.agents) for f in (act_all, act_rows))
        return unroll(one, start(), memory, views, first, many)

    def greedy_value(q: Any, seen: Observation) -> Any:
        """Σ_i max_a Q_i(τ_i, a) over living agents and legal actions, ``[T, E]``."""
        return jnp.sum(jnp.where(seen.alive, highest(q, seen.legal), 0.0), axis=-1)

    def loss(params: Params, batch: Batch, memory: Memory) -> tuple[Any, Metrics]:
        q, _ = utilities(params, memory, batch.views, batch.first)
        value = total(params, q, batch.action, batch)[..., 0]
        error = jnp.mean(0.5 * (batch.target - value) ** 2)
        return error, {"loss": error, "q": jnp.mean(value)}

    def init(key: Key) -> State:
        agents_key, begin_key = keys(key, 2)
        params = Params(init_sets(agent.init, agents_key, share))
        actors = begin(env, policy_of(params, 1.0), begin_key, config.envs)
        return State(params, Params(optimiser.init(params.agents)), actors)

    def step(key: Key, state: State, progress: Real) -> tuple[State, Metrics]:
        collect_key, learn_key = keys(key, 2)
        fallen = jnp.minimum(progress / jnp.maximum(config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + fallen * (config.epsilon_end - config.epsilon_start)
        memory = state.actors.memory
        behaviour = policy_of(state.params, epsilon)
        actors, seen = rollout(env, behaviour, collect_key, state.actors, steps)

        fed = batched(views)(seen.observation)
        q, memories = utilities(state.params, memory, fed, seen.first)

        def look_ahead(rows: Any) -> Any:
            """The best value of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            m, o = (memories, seen.next) if rows is None else rows_of((memories, seen.next), rows)
            return greedy_value(act_rows(state.params.agents, m, batched(views)(o), 2)[0], o)

        value = greedy_value(q, seen.observation)
        target = lambda_returns(
            seen.reward,
            next_values(value, seen.truncated, look_ahead, spec.horizon),
            seen.terminated,
            seen.truncated,
            config.gamma,
            config.lam,
        )
        params, optimisers, report = improve(
            loss,
            optimiser,
            state.params,
            state.optimiser,
            Batch(fed, seen.observation.alive, seen.action, target, seen.first),
            memory,
            learn_key,
            lr=lr * (1 - (1 - config.lr_end) * progress),
            count=config.epochs,
            minibatches=config.minibatches,
        )
        return State(params, optimisers, actors), report | {"epsilon": jnp.asarray(epsilon)}

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
