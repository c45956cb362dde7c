"""Heads that read which actions other agents have already chosen: the a_{<i} of π(a_i | s, a_{<i}).

All three share one idea. An action that was chosen leaves a *token*, tokens *add up*, and whoever
moves next reads the sum. While acting, the sum grows by one token per agent; while learning, the sums
of all agents come from one product with a triangular matrix. Since both are the same sum, the
teacher-forced log-probabilities equal the sequential ones.

* ``table``: the token is a digit of a mixed-radix code (0: not chosen yet), the sum indexes a row;
* ``sum``: the token is a row added in the first hidden layer;
* ``attention``: the token is a key and a value in the chooser's slot, the reader attends to slots.

A continuous action leaves the row of the chooser and, for each dimension, a row times its number.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmarl_tad.networks.net import Kind, beside, draw, normal
from jaxmarl_tad.types import Key, Params

Prefix = Any
"""A sum of tokens: a pytree of arrays."""
Read = Literal["sum", "attention"]


class Head(NamedTuple):
    """What one agent computes from ``features`` (shared by the team), its index and the prefix."""

    init: Callable[[Key], Params]
    empty: Callable[[], Prefix]
    """The prefix before anybody has chosen."""
    token: Callable[[Params, Array, Int[Array, ""], Array], Prefix]
    """``(params, features, agent, action)``: what a choice, an index or ``[D]``, adds to the prefix."""
    read: Callable[[Params, Array, Int[Array, ""], Prefix], Array]
    """``(params, features, agent, prefix) -> [outputs]``."""


def table_rows(states: int, agents: int, actions: int, identity: bool) -> int:
    """Rows of a table over (state, choices so far), per reader if ``identity``."""
    if identity:
        return agents * states * (actions + 1) ** (agents - 1)
    return states * (actions + 1) ** agents


def table_row(
    state: Int[Array, ""],
    agent: Int[Array, ""],
    code: Int[Array, ""],
    agents: int,
    actions: int,
    identity: bool,
) -> Int[Array, ""]:
    """The row, among those a reader may see, for a state and the sum of the tokens before it.

    The code has one digit per agent in base A + 1, 0 for who has not chosen. The reader's own digit is
    always 0; where each reader has rows of its own, it is cut out.
    """
    if not identity:
        return state * (actions + 1) ** agents + code
    place = _places(agents, actions)[agent]
    others = code % place + code // (place * (actions + 1)) * place
    return state * (actions + 1) ** (agents - 1) + others


def _places(agents: int, actions: int) -> Array:
    return jnp.asarray(tuple((actions + 1) ** j for j in range(agents)), jnp.int32)


def head(
    kind: Kind,
    read: Read,
    *,
    inputs: int,
    outputs: int,
    agents: int,
    actions: int,
    identity: bool,
    dimensions: int = 0,
    hidden: tuple[int, ...] = (64, 64),
    gain: float = 1.0,
) -> Head:
    """A head with ``outputs`` outputs; ``features`` is a row index (table) or ``[inputs]`` floats.

    ``identity`` says whether a reader is told its own index; who chose what is always told. Actions
    are ``dimensions`` numbers unless that is 0.
    """
    if kind == "table":
        return _table(inputs, outputs, agents, actions, identity, gain)
    from jaxmarl_tad.networks.modules import AttentionHead, SumHead

    architecture = SumHead if read == "sum" else AttentionHead
    module = architecture(hidden, outputs, agents, actions, identity, dimensions)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros(inputs), jnp.zeros((), jnp.int32))
    )
    return Head(
        init=lambda key: draw(key, shapes, gain),
        empty=module.empty,
        token=lambda p, x, agent, action: module.apply(p, x, agent, action, method="token"),
        read=lambda p, x, agent, prefix: module.apply(p, x, agent, prefix, method="read"),  # type: ignore[return-value]
    )


def with_spread(head: Head, dimensions: int, first: float) -> Head:
    """``head`` of the means, with free parameters behind them, as :func:`networks.net.with_spread`."""
    return Head(
        init=lambda key: {"mean": head.init(key), "spread": jnp.full(dimensions, first, jnp.float32)},
        empty=head.empty,
        token=lambda p, x, agent, action: head.token(p["mean"], x, agent, action),
        read=lambda p, x, agent, prefix: beside(head.read(p["mean"], x, agent, prefix), p["spread"]),
    )


def prefixes(tokens: Prefix, before: Bool[Array, "N N"]) -> Prefix:
    """Each agent's prefix from all agents' tokens ``[N, ...]``; ``before[i, j]``: j chose before i."""
    return jax.tree.map(lambda token: jnp.tensordot(before.astype(token.dtype), token, axes=1), tokens)


def _table(states: int, outputs: int, agents: int, actions: int, identity: bool, scale: float) -> Head:
    rows = table_rows(states, agents, actions, identity)

    def token(params: Params, state: Array, agent: Array, action: Array) -> Array:
        return (action + 1) * _places(agents, actions)[agent]

    def read(params: Params, state: Array, agent: Array, code: Array) -> Array:
        row = table_row(state, agent, code, agents, actions, identity)
        return params[row + agent * (rows // agents) if identity else row]

    return Head(
        init=lambda key: normal(key, (rows, outputs), scale),
        empty=lambda: jnp.zeros((), jnp.int32),
        token=token,
        read=read,
    )
