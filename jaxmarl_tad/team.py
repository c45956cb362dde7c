"""A team of policies, one per agent: how it acts, and how it is replayed for learning.

What the actor-critics share. An agent's policy is a function of its own row of the
observation (and of its memory), lifted to the team by :func:`jaxmarl_tad.sharing.over_agents`.

:func:`team` is replayed all agents at once, and :func:`soloists` one agent after the other.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.losses import masked_mean
from jaxmarl_tad.networks.net import agent_inputs, network, unroll, with_spread
from jaxmarl_tad.networks.tables import biased
from jaxmarl_tad.sharing import init_sets, over_agents, over_rows, sharing
from jaxmarl_tad.types import Key, Memory, Params, Policy, Transition
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
    both = distributions.log_sum(jnp.log1p(-share) + log_probs, uniform)
    return jnp.where(legal, both, distributions.IMPOSSIBLE)


def joint(action: Any, alive: Bool[Array, "*batch N"]) -> Any:
    """A joint action ``[*batch, N]`` in which that of a dead agent, which does nothing, is 0."""
    return jnp.where(alive, action, 0)


# --- one agent after the other --------------------------------------------------------------------


class Turn(NamedTuple):
    """What one agent learns from: leaves ``[T, E, ...]``, or ``[N, T, E, ...]`` of all agents."""

    views: Any
    legal: Bool[Array, "T E A"]
    alive: Bool[Array, "T E"]
    chosen: Any
    """The action, or what it was made of if continuous."""
    log_prob: Float[Array, "T E"]
    """log π_old(a | τ), of the policy that acted."""
    advantage: Float[Array, "T E"]
    first: Bool[Array, "T E"]


class Soloists(NamedTuple):
    """Policies π_i(a_i | τ_i), of discrete or continuous actions, that learn one after the other.

    One parameter set is a vector ``[P]`` while it learns.
    """

    init: Callable[[Key], Params]
    policy: Callable[..., Policy]
    """``policy(params, *, greedy)``."""
    turns: Callable[..., tuple[Turn, Memory]]
    """``turns(seen, memory, advantage)``: what each learns from, and what it remembered before."""
    vectors: Callable[[Params], Float[Array, "K P"]]
    sets: Callable[[Float[Array, "K P"]], Params]
    """The stacked parameter sets that ``vectors`` laid end to end."""
    set_of: Callable[[Int[Array, ""]], Int[Array, ""]]
    """Which parameter set an agent uses."""
    outputs: Callable[[Float[Array, "P"], Turn, Memory], Float[Array, "T E K"]]
    """What one agent's network gives at recorded steps."""
    judge: Callable[[Float[Array, "T E K"], Turn], tuple[Array, Array]]
    """log π(a | τ) of the actions taken ``[T, E]``, and the mean entropy of π(· | τ), given outputs."""
    divergence: Callable[[Array, Array, Turn], Float[Array, ""]]
    """Mean KL(old || new) over the steps of one agent, given outputs."""


def soloists(config: Any, spec: Spec) -> Soloists:
    """The team that ``config`` describes: its network, memory, sharing, head and initial logits."""
    agents = jnp.arange(spec.n_agents)
    share = sharing(config.sharing, spec.n_agents)
    head = distributions.head(config.head, spec)
    view, inputs = agent_inputs(config.network, spec, share.identity)
    agent = network(
        config.network,
        inputs=inputs,
        outputs=head.outputs,
        hidden=config.hidden,
        memory=config.memory,
        activation=config.activation,
        layer_norm=config.layer_norm,
        gain=0.01,
    )
    if not spec.discrete:
        agent = with_spread(agent, head.outputs, distributions.FIRST_SPREAD)
    act_all = over_agents(agent.apply, share)
    alone = jax.eval_shape(agent.init, jax.random.key(0))
    shaped = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), alone))[1]

    def init(key: Key) -> Params:
        drawn = init_sets(agent.init, key, share)
        bias = lambda table: biased(table, config.initial_logits, config.network, spec, share)  # noqa: E731
        return bias(drawn) if spec.discrete else drawn | {"mean": bias(drawn["mean"])}

    def start() -> Memory:
        return jax.tree.map(lambda m: jnp.tile(m, (spec.n_agents, 1)), agent.start())

    def views(observation: Observation) -> Any:
        return jax.vmap(view)(observation.agents, agents)

    def policy(params: Params, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            noise = head.noise(key, spec.n_agents)
            outputs, memory = act_all(params, memory, views(observation))
            action, extras = head.decide(noise, outputs, observation.legal, greedy)
            return action, memory, extras

        return Policy(start=start, act=act, execution="decentralised")

    def turns(seen: Transition, memory: Memory, advantage: Array) -> tuple[Turn, Memory]:
        observation = seen.observation
        each = Turn(
            views=jax.vmap(jax.vmap(views))(observation),
            legal=observation.legal,
            alive=observation.alive,
            chosen=seen.extras.get("chosen", seen.action),
            log_prob=seen.extras["log_prob"],
            advantage=advantage,
            first=jnp.broadcast_to(seen.first[..., None], advantage.shape),
        )
        agent_first = functools.partial(jax.tree.map, lambda x: jnp.moveaxis(x, 2, 0))
        return agent_first(each), jax.tree.map(lambda m: jnp.moveaxis(m, 1, 0), memory)

    def outputs(own: Array, turn: Turn, memory: Memory) -> Array:
        one = functools.partial(agent.apply, shaped(own))
        return unroll(one, agent.start(), memory, turn.views, turn.first)[0]

    def judge(outputs: Array, turn: Turn) -> tuple[Array, Array]:
        log_prob, entropy = head.judge(outputs, turn.legal, turn.chosen)
        return log_prob, masked_mean(entropy, turn.alive)

    def divergence(old: Array, new: Array, turn: Turn) -> Array:
        return masked_mean(head.divergence(old, new, turn.legal), turn.alive)

    return Soloists(
        init=init,
        policy=policy,
        turns=turns,
        vectors=jax.vmap(lambda params: ravel_pytree(params)[0]),
        sets=jax.vmap(shaped),
        set_of=lambda agent: jnp.asarray(share.assignment)[agent],
        outputs=outputs,
        judge=judge,
        divergence=divergence,
    )


def order_of_turns(key: Key, n_agents: int, order: str) -> Int[Array, "N"]:
    """Agents in the order in which they learn: as they are, or a random permutation."""
    if order == "fixed":
        return jnp.arange(n_agents)
    return jnp.argsort(jax.random.uniform(key, (n_agents,)))


def moved(
    log_prob: Float[Array, "*batch"], old: Float[Array, "*batch"], alive: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """π_new / π_old of what was done, the factor by which an agent that has learned corrects M.

    It is never clipped; what a dead agent does is nothing, whose probability does not change.
    """
    return jnp.where(alive, jnp.exp(log_prob - old), 1.0)
