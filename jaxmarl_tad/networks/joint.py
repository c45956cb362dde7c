"""A free value of joint actions, Q(s, a), that nothing makes factorise.

In a finite game it is a table with one row per pair of state and joint action, where these are not too
many. Otherwise it is a multilayer perceptron over the state and, agent by agent, the action taken and
what is known of its history: every agent has inputs of its own, so that two actions that swap places
between agents are told apart (encodings summed over agents would not).
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmarl_tad.networks.net import LARGEST_TABLE, Kind, network, state_inputs, table
from jaxmarl_tad.types import Key, Params
from tad_envs import Spec, finite


class Joint(NamedTuple):
    """``value(params, state views, actions one-hot [*batch, N, A], histories [*batch, N, F])``."""

    init: Callable[[Key], Params]
    view: Callable[[Float[Array, "S"]], Any]
    """What it is told of the global state."""
    value: Callable[[Params, Any, Array, Array | None], Float[Array, "*batch"]]
    """Actions are zeros for who does not count; histories are None for tables."""


def is_tabular(kind: Kind, spec: Spec) -> bool:
    """Whether Q(s, a) is a table: the networks are, and it has not too many rows."""
    return kind == "table" and spec.state_dim * spec.n_actions**spec.n_agents <= LARGEST_TABLE


def joint_value(kind: Kind, spec: Spec, *, features: int, hidden: tuple[int, ...]) -> Joint:
    """Q(s, a); ``features`` numbers tell of each agent's history, unless it is a table."""
    view, _ = state_inputs(kind, spec)
    if is_tabular(kind, spec):
        rows = table(spec.state_dim * spec.n_actions**spec.n_agents, 1, scale=0.0)

        def look_up(params: Params, state: Array, action: Array, histories: Any) -> Array:
            return rows.apply(params, (), joint_index(spec, state, action))[0][..., 0]

        return Joint(rows.init, view, look_up)

    own = spec.n_actions + features
    net = network(
        "mlp",
        inputs=spec.state_dim + spec.n_agents * own,
        outputs=1,
        hidden=hidden,
        layer_norm=False,
    )

    def value(params: Params, state: Any, action: Array, histories: Any) -> Array:
        told = jax.nn.one_hot(state, spec.state_dim) if kind == "table" else state
        each = action if not features else jnp.concatenate([action, histories], axis=-1)
        flat = each.reshape(*each.shape[:-2], spec.n_agents * own)
        return net.apply(params, (), jnp.concatenate([told, flat], axis=-1))[0][..., 0]

    return Joint(net.init, view, value)


def joint_index(
    spec: Spec, state: Int[Array, "*batch"], action: Float[Array, "*batch N A"]
) -> Int[Array, "*batch"]:
    """The row of a state and a joint action; who does not count is put down as taking action 0."""
    index = finite.joint_index(jnp.argmax(action, axis=-1), spec.n_actions)
    return state * spec.n_actions**spec.n_agents + index


def joint_actions(spec: Spec) -> Float[np.ndarray, "J N A"]:
    """All joint actions, one-hot, in the order of :func:`joint_index`."""
    each = itertools.product(range(spec.n_actions), repeat=spec.n_agents)
    return np.eye(spec.n_actions, dtype=np.float32)[np.asarray(list(each))]
