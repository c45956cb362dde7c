"""What only tables can do: be set by hand, and be turned into distributions row by row.

A finite game has few distinct inputs. Softmax, distribution function and entropy of each are computed
once per use of the table and then gathered, which costs a fraction of computing them per sample.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad import distributions
from jaxmarl_tad.networks.net import Kind
from jaxmarl_tad.sharing import Sharing
from jaxmarl_tad.types import Params
from tad_envs import Environment, Real, Spec

Logits = Real | Float[Array, "..."]
"""0 for none, ``[A]`` for every agent, or ``[N, A]`` by agent; means ``[D]``, ``[N, D]`` in units of
the actions' range if they are continuous."""


def biased(table: Params, initial_logits: Logits, kind: Kind, spec: Spec, share: Sharing) -> Params:
    """``table [K, rows, A]`` with each agent's ``initial_logits`` added to all of its rows.

    Rows are ordered by agent first where one set serves several agents that know their index. Where
    agents share rows, those get the mean over agents. Networks other than tables are left alone.
    """
    if kind != "table":
        return table
    width = spec.n_actions or spec.action_dim
    by_agent = jnp.broadcast_to(jnp.asarray(initial_logits), (spec.n_agents, width))
    if share.sets > 1:
        serves = jnp.asarray(share.assignment) == jnp.arange(share.sets)[:, None]
        own = serves.astype(jnp.float32) @ by_agent / jnp.sum(serves, -1, keepdims=True)
        return table + own[:, None, :]
    if not share.identity:
        return table + by_agent.mean(0)
    rows = table.shape[1] // spec.n_agents
    return table + jnp.repeat(by_agent, rows, axis=0, total_repeat_length=table.shape[1])


def by_agent(table: Params, share: Sharing, agents: int) -> Array:
    """The rows that each agent reads, ``[N, rows, A]``, from stacked tables ``[K, rows, A]``."""
    if share.sets > 1:
        return table[jnp.asarray(share.assignment)]
    if share.identity:
        return table.reshape(agents, -1, table.shape[-1])
    return jnp.broadcast_to(table, (agents, *table.shape[1:]))


class Choices(NamedTuple):
    """Every distinct input's distribution over actions; axes agent, row, action."""

    log_probs: Float[Array, "N R A"]
    cumulative: Float[Array, "N R A"]
    entropy: Float[Array, "N R"]

    def taken(
        self,
        agent: Int[Array, "N"],
        row: Int[Array, "T E N"],
        action: Int[Array, "T E N"],
        mask: Bool[Array, "T E N"],
    ) -> tuple[Float[Array, "T E N"], Float[Array, ""]]:
        """Log-probabilities of actions taken, and the mean entropy where ``mask`` holds.

        The mean over samples is a sum over rows, weighted by how often each was visited.
        """
        visits = jnp.zeros(self.entropy.shape).at[agent, row].add(mask.astype(jnp.float32))
        entropy = jnp.sum(visits * self.entropy) / jnp.maximum(jnp.sum(visits), 1)
        return self.log_probs[agent, row, action], entropy

    def act(
        self,
        uniform: Float[Array, "..."],
        agent: Int[Array, "..."],
        row: Int[Array, "..."],
        legal: Bool[Array, "... A"],
        greedy: bool,
    ) -> tuple[Int[Array, "..."], dict[str, Array]]:
        """Actions, drawn or most likely, and what a policy tells about them.

        The most likely action is legal also in another game of equal sizes than that of the tables.
        """
        log_probs = self.log_probs[agent, row]
        if greedy:
            action = distributions.mode(jnp.where(legal, log_probs, distributions.IMPOSSIBLE))
        else:
            action = distributions.draw(uniform, self.cumulative[agent, row])
        log_prob = distributions.log_probability(log_probs, action)
        return action, {"log_prob": log_prob, "log_probs": log_probs}


def choices(table: Params, share: Sharing, legal: Bool[Array, "N A"]) -> Choices:
    """The distributions in stacked tables ``[K, rows, A]``; ``legal`` as :func:`legal_actions`."""
    logits = by_agent(table, share, legal.shape[0])
    log_probs = distributions.log_probabilities(logits, jnp.broadcast_to(legal[:, None], logits.shape))
    return Choices(log_probs, distributions.cumulative(log_probs), distributions.entropy(log_probs))


def legal_actions(env: Environment) -> Bool[Array, "N A"]:
    """What each agent may do, which in a one-hot game depends on nothing but the agent."""
    return env.reset(jax.random.key(0))[1].legal
