"""Parameter sharing as one mechanism: stacked parameter sets and an assignment of agents to them.

============  ==============  =====================  ===========================
mode          parameter sets  agent index as input   also known as
============  ==============  =====================  ===========================
``full``      1               no                     FuPS
``full_id``   1               yes                    FuPS + id (the default)
``none``      one per agent   no                     NoPS
============  ==============  =====================  ===========================
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from jaxmarl_tad.types import Key, Params

Mode = Literal["full", "full_id", "none"]


class Sharing(NamedTuple):
    """Which parameter set each agent uses, and whether an agent is told its own index."""

    sets: int
    assignment: tuple[int, ...]
    identity: bool


def sharing(mode: Mode, n_agents: int) -> Sharing:
    """The assignment that ``mode`` means for ``n_agents`` agents."""
    if mode == "none":
        return Sharing(n_agents, tuple(range(n_agents)), identity=False)
    return Sharing(1, (0,) * n_agents, identity=mode == "full_id")


def init_sets(init: Callable[[Key], Params], key: Key, share: Sharing) -> Params:
    """Parameters of every set, stacked on a leading axis."""
    each = key[None] if share.sets == 1 else jax.random.split(key, share.sets)
    return jax.vmap(init)(each)


def of_agent(params: Params, share: Sharing, agent: Any) -> Params:
    """The parameters that ``agent`` (an index, maybe traced) uses."""
    if share.sets == 1:
        return jax.tree.map(lambda p: p[0], params)
    chosen = jax.numpy.asarray(share.assignment)[agent]
    return jax.tree.map(lambda p: p[chosen], params)


def over_agents(function: Callable, share: Sharing) -> Callable:
    """Lift ``function(params, *own)`` of one agent to all agents, given stacked parameter sets.

    What the lifted function passes to agent i is row i of each further argument and nothing else:
    this is what makes a decentralised policy decentralised.
    """

    def lifted(params: Params, *rows: Any) -> Any:
        if share.sets == 1:
            own = jax.tree.map(lambda p: p[0], params)
            return jax.vmap(lambda *row: function(own, *row))(*rows)
        stacked = jax.tree.map(lambda p: p[jax.numpy.asarray(share.assignment)], params)
        if share.assignment == tuple(range(share.sets)):
            stacked = params
        return jax.vmap(function)(stacked, *rows)

    return lifted


def over_rows(function: Callable, share: Sharing) -> Callable:
    """The same as :func:`over_agents`, for learning: on leaves ``[*lead, N, ...]`` at once.

    ``lifted(params, memory, x, axes)`` with ``axes`` leading axes. A network that all agents share is
    applied to one matrix of rows, which takes two thirds of the time of nested ``vmap``; it must treat
    its rows alike, as layers do. What acts is lifted by :func:`over_agents`.
    """

    def lifted(params: Params, memory: Any, x: Any, axes: int) -> Any:
        if share.sets > 1:
            nested = over_agents(function, share)
            for _ in range(axes):
                nested = jax.vmap(nested, in_axes=(None, 0, 0))
            return nested(params, memory, x)
        lead = jax.tree.leaves(x)[0].shape[: axes + 1]
        own = jax.tree.map(lambda p: p[0], params)
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes + 1 :]), (memory, x))
        return jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), function(own, *rows))

    return lifted
