"""Parameter sharing as one mechanism: stacked parameter sets and an assignment of agents to them.

============  ==============  =====================  ===========================
mode          parameter sets  agent index as input   also known as
============  ==============  =====================  ===========================
``full``      1               no                     FuPS
``full_id``   1               yes                    FuPS + id (the default)
``none``      one per agent   no                     NoPS
``(0,0,1)``   one per number  no                     an assignment of one's own
============  ==============  =====================  ===========================

``selective`` is the assignment that :func:`jaxmarl_tad.selective.selective` finds (SePS).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from jaxmarl_tad.config import require
from jaxmarl_tad.types import Key, Params

Mode = Literal["full", "full_id", "none", "selective"] | tuple[int, ...]
"""How agents share parameters; a tuple gives each agent the number of its parameter set."""


class Sharing(NamedTuple):
    """Which parameter set each agent uses, and whether an agent is told its own index."""

    sets: int
    assignment: tuple[int, ...]
    identity: bool


def sharing(mode: Mode, n_agents: int) -> Sharing:
    """The assignment that ``mode`` means for ``n_agents`` agents.

    Raises ``ValueError`` for a tuple that assigns no set, or an unused one, and for ``"selective"``,
    which a run replaces by the assignment it found.
    """
    if mode == "none":
        return Sharing(n_agents, tuple(range(n_agents)), identity=False)
    if isinstance(mode, tuple):
        check_assignment(mode, n_agents)
        return Sharing(max(mode) + 1, mode, identity=False)
    require(
        mode != "selective",
        "sharing='selective' is an assignment that is found by play: run() finds it, and so does "
        "jaxmarl_tad.selective(env); or give one, such as "
        f"sharing={tuple(i * 2 // n_agents for i in range(n_agents))}.",
    )
    return Sharing(1, (0,) * n_agents, identity=mode == "full_id")


def check_assignment(assignment: tuple[int, ...], n_agents: int) -> None:
    """Refuse a tuple that does not give each agent one of the sets 0 … K − 1, all of them in use."""
    label = f"sharing={assignment!r}"
    require(
        len(assignment) == n_agents,
        f"{label} assigns {len(assignment)} agents, and there are {n_agents}; for example "
        f"sharing={tuple(i * 2 // n_agents for i in range(n_agents))}.",
    )
    nearest = numbered(assignment)
    require(
        set(assignment) == set(range(len(set(assignment)))),
        f"{label} must use each of the sets 0 to {len(set(assignment)) - 1}; did you mean "
        f"sharing={nearest!r}?",
    )


def numbered(groups: tuple[int, ...]) -> tuple[int, ...]:
    """The same groups, numbered from 0 in the order in which agents first belong to them."""
    order = list(dict.fromkeys(groups))
    return tuple(order.index(group) for group in groups)


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
