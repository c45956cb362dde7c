"""A critic V of the global state, or of what each agent sees, and what it says of a batch."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.losses import clipped_value_loss, masked_mean
from jaxmarl_tad.networks.net import agent_inputs, network, state_inputs, unroll
from jaxmarl_tad.normalise import Scale, normalised, restored, update_scale
from jaxmarl_tad.optimise import Alone, Optimiser, improve
from jaxmarl_tad.rollout import taken
from jaxmarl_tad.sharing import init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.targets import beyond_death, lambda_returns, next_values
from jaxmarl_tad.types import Key, Memory, Metrics, Params, Transition
from tad_envs import Observation, Real, Spec


class Assessment(NamedTuple):
    """What a critic says of a batch; ``C`` is one value for all, or one per agent."""

    views: Any
    """What the critic was fed, leaves ``[T, E, C, ...]``."""
    value: Float[Array, "T E C"]
    """V, in normalised units."""
    target: Float[Array, "T E C"]
    """λ-returns, normalised by ``scale``."""
    advantage: Float[Array, "T E N"]
    """λ-return − V in units of return, for every agent."""
    scale: Scale
    """The scale of returns, which has taken in those of this batch."""
    memory: Memory
    """What the critic remembers after the last step."""


class Critic(NamedTuple):
    """V as pure functions of stacked parameter sets."""

    init: Callable[[Key], Params]
    start: Callable[[int], Memory]
    """``start(envs)``: memories ``[E, C, ...]`` before an episode."""
    values: Callable[..., tuple[Float[Array, "T E C"], Memory]]
    """``values(params, memory, views, first)``: V, normalised, and the memories after each step."""
    counted: Callable[[Bool[Array, "*batch N"]], Bool[Array, "*batch C"]]
    """Where a value counts: its agent is alive, or any agent is."""
    assess: Callable[..., Assessment]
    """``assess(params, memory, seen, scale, gamma, lam)`` of recorded steps ``[T, E]``."""


def critic(config: Any, spec: Spec, sees: Literal["local", "state"]) -> Critic:
    """The critic that ``config`` describes by its network, memory and sharing.

    ``sees="local"`` is fed each agent's own row and values it, ``"state"`` is fed the global state and
    has one value for all. Truncated steps bootstrap from their true final observation.
    """
    agents, local = jnp.arange(spec.n_agents), sees == "local"
    share = sharing(config.sharing, spec.n_agents) if local else sharing("full", 1)
    view, own_inputs = agent_inputs(config.network, spec, share.identity)
    state_view, common_inputs = state_inputs(config.network, spec)
    look = ("activation", "layer_norm")  # where a method leaves them open
    net = network(
        config.network,
        inputs=own_inputs if local else common_inputs,
        outputs=1,
        hidden=config.hidden,
        memory=config.memory,
        **{name: getattr(config, name) for name in look if hasattr(config, name)},
        gain=0.0 if config.network == "table" else 1.0,  # a table of values starts at 0
    )
    value_all, value_rows = over_agents(net.apply, share), over_rows(net.apply, share)
    critics = spec.n_agents if local else 1

    def fresh() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (critics, 1)), net.start())

    def start(envs: int) -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (envs, 1, 1)), fresh())

    @jax.vmap
    @jax.vmap
    def views(observation: Observation) -> Any:
        if local:
            return jax.vmap(view)(observation.agents, agents)
        return state_view(observation.state)[None]

    def counted(alive: Any) -> Any:
        return alive if local else jnp.any(alive, -1, keepdims=True)

    def values(params: Params, memory: Memory, views: Any, first: Any) -> tuple[Any, Memory]:
        one, many = (functools.partial(f, params) for f in (value_all, value_rows))
        value, memories = unroll(one, fresh(), memory, views, first, many)
        return value[..., 0], memories

    def assess(
        params: Params, memory: Memory, seen: Transition, scale: Scale, gamma: Real, lam: Real
    ) -> Assessment:
        fed, alive = views(seen.observation), seen.observation.alive
        value, memories = values(params, memory, fed, seen.first)

        def look_ahead(rows: Any) -> Any:
            """V of what the steps in ``rows [C, E]`` led to; of all steps if None."""
            m, o = (memories, seen.next) if rows is None else taken((memories, seen.next), rows)
            return value_rows(params, m, views(o), 2)[0][..., 0]

        following = next_values(value, seen.truncated, look_ahead, spec.horizon)
        if local:
            following = beyond_death(following, seen.next.alive)
        ends = (seen.terminated, seen.truncated)
        target = lambda_returns(seen.reward, restored(scale, following), *ends, gamma, lam)
        advantage = jnp.broadcast_to(target - restored(scale, value), alive.shape)
        scale = update_scale(scale, target, counted(alive))
        memory = jax.tree.map(lambda m: m[-1], memories)
        return Assessment(fed, value, normalised(scale, target), advantage, scale, memory)

    init = functools.partial(init_sets, net.init, share=share)
    return Critic(init, start, values, counted, assess)


class Lessons(NamedTuple):
    """What a critic learns from; leaves ``[T, E, ...]``."""

    views: Any
    value: Float[Array, "T E C"]
    target: Float[Array, "T E C"]
    counted: Bool[Array, "T E C"]
    first: Bool[Array, "T E"]


def lessons(critic: Critic, judged: Assessment, seen: Transition) -> Lessons:
    """What an assessment of recorded steps leaves to be learned."""
    counted = critic.counted(seen.observation.alive)
    return Lessons(judged.views, judged.value, judged.target, counted, seen.first)


def critic_loss(
    critic: Critic, params: Params, memory: Memory, batch: Lessons, clip: Real, huber_delta: Real
) -> Float[Array, ""]:
    """The clipped Huber loss of V; ``memory`` is what the critic remembered before the first step."""
    value, _ = critic.values(params, memory, batch.views, batch.first)
    error = clipped_value_loss(value, batch.value, batch.target, clip, huber_delta)
    return masked_mean(error, batch.counted)


def improve_critic(
    critic: Critic,
    optimiser: Optimiser,
    params: Params,
    state: Any,
    batch: Lessons,
    memory: Memory,
    key: Key,
    *,
    clip: Real,
    huber_delta: Real,
    lr: Real,
    count: int,
    minibatches: int,
) -> tuple[Params, Any, Metrics]:
    """Descend :func:`critic_loss` over ``count`` epochs of ``minibatches``.

    For methods whose policies learn apart from the critic. Returns parameters, the optimiser's state
    and ``value_loss``.
    """

    def loss(params: Alone, batch: Lessons, memory: Memory) -> tuple[Array, Metrics]:
        error = critic_loss(critic, params.part, memory, batch, clip, huber_delta)
        return error, {"value_loss": error}

    parts, states = Alone(params), Alone(state)
    sizes = {"lr": lr, "count": count, "minibatches": minibatches}
    (params,), (state,), report = improve(loss, optimiser, parts, states, batch, memory, key, **sizes)
    return params, state, report
