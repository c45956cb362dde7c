"""What only tables have: initial logits that a study can set by hand."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from tad_envs import Real, Spec

from jaxmarl_tad.networks.net import Kind
from jaxmarl_tad.sharing import Sharing
from jaxmarl_tad.types import Params

Logits = Real | Float[Array, "..."]
"""0 for none, ``[A]`` for every agent, or ``[N, A]`` by agent."""


def biased(
    table: Params, initial_logits: Logits, kind: Kind, spec: Spec, share: Sharing
) -> Params:
    """``table [K, rows, A]`` with each agent's ``initial_logits`` added to all of its rows.

    Rows are ordered by agent first where one set serves several agents that know their index. Where
    agents share rows, those get the mean over agents. Networks other than tables are left alone.
    """
    if kind != "table":
        return table
    by_agent = jnp.broadcast_to(jnp.asarray(initial_logits), (spec.n_agents, spec.n_actions))
    if share.sets > 1:
        return table + by_agent[:, None, :]
    if not share.identity:
        return table + by_agent.mean(0)
    rows = table.shape[1] // spec.n_agents
    return table + jnp.repeat(by_agent, rows, axis=0, total_repeat_length=table.shape[1])
