"""A team of softmax policies, one per agent: how it acts, and how it is replayed for learning.

What the actor-critics share. An agent's policy is a function of its own row of the
observation (and of its memory), lifted to the team by :func:`jaxmarl_tad.sharing.over_agents`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad import distributions
from jaxmarl_tad.networks.net import agent_inputs, network, unroll
from jaxmarl_tad.networks.tables import biased
from jaxmarl_tad.sharing import init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.types import Key, Memory, Params, Policy
from tad_envs import Observation, Real, Spec


class Team(NamedTuple):
    """Policies π_i(a_i | τ_i) as pure functions of stacked parameter sets."""

    init: Callable[[Key], Params]
    policy: Callable[..., Policy]
    """``policy(params, *, greedy, epsilon=None)``."""
    replay: Callable[..., tuple[Float[Array, "T E N A"], Memory]]
    """``replay(params, memory, observation, first, epsilon=None)``: log π_i(· | τ_i) at recorded steps
    ``[T, E]``, given what was remembered before the first, and the memories after each step."""
    after: Callable[..., Float[Array, "C E N A"]]
    """``after(params, memory, observation, epsilon=None)``: log π_i(· | τ_i), given memories
    ``[C, E, N, ...]`` of what went before."""


def team(config: Any, spec: Spec) -> Team:
    """The team that ``config`` describes: its network, memory, sharing and initial logits.

    With ``epsilon`` a policy is mixed with the uniform one over legal actions.
    """
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    view, inputs = agent_inputs(config.network, spec, share.identity)
    agent = network(
        config.network,
        inputs=inputs,
        outputs=spec.n_actions,
        hidden=config.hidden,
        memory=config.memory,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.01,
    )
    act_all, act_rows = over_agents(agent.apply, share), over_rows(agent.apply, share)

    def init(key: Key) -> Params:
        params = init_sets(agent.init, key, share)
        return biased(params, config.initial_logits, config.network, spec, share)

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def policy(params: Params, *, greedy: bool, epsilon: Real | None = None) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            logits, memory = act_all(params, memory, views(observation))
            log_probs = mixed(logits, observation.legal, epsilon)
            uniform = jax.random.uniform(key, (spec.n_agents,))
            action, extras = distributions.decide(uniform, log_probs, greedy)
            return action, memory, extras

        return Policy(start=start, act=act, execution="decentralised")

    def replay(
        params: Params,
        memory: Memory,
        observation: Observation,
        first: Any,
        epsilon: Real | None = None,
    ) -> tuple[Array, Memory]:
        seen = jax.vmap(jax.vmap(views))(observation)
        one, many = (functools.partial(f, params) for f in (act_all, act_rows))
        logits, memories = unroll(one, start(), memory, seen, first, many)
        return mixed(logits, observation.legal, epsilon), memories

    def after(
        params: Params, memory: Memory, observation: Observation, epsilon: Real | None = None
    ) -> Array:
        logits, _ = act_rows(params, memory, jax.vmap(jax.vmap(views))(observation), 2)
        return mixed(logits, observation.legal, epsilon)

    return Team(init, policy, replay, after)


def mixed(
    logits: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"], epsilon: Real | None
) -> Float[Array, "*batch A"]:
    """Log of (1 − ε) softmax + ε uniform, both over legal actions; of the softmax if ε is None."""
    log_probs = distributions.log_probabilities(logits, legal)
    if epsilon is None:
        return log_probs
    share = jnp.asarray(epsilon, jnp.float32)
    uniform = jnp.log(share) - jnp.log(jnp.maximum(jnp.sum(legal, -1, keepdims=True), 1))
    both = jnp.logaddexp(jnp.log1p(-share) + log_probs, uniform)
    return jnp.where(legal, both, distributions.IMPOSSIBLE)


def joint(action: Any, alive: Bool[Array, "*batch N"]) -> Any:
    """A joint action ``[*batch, N]`` in which that of a dead agent, which does nothing, is 0."""
    return jnp.where(alive, action, 0)
