"""Mixers: how the values of the agents' own actions, their utilities, make the team's value.

========  ===============================================================  ====================
mixer     team's value                                                     source
========  ===============================================================  ====================
``none``  none: every agent's utility stands for itself                    Tan 1993 (IQL)
``vdn``   Σ_i Q_i                                                          Sunehag et al. 2018
``qmix``  |w₂(s)|ᵀ elu(|W₁(s)|ᵀ Q + b₁(s)) + V(s), monotone in every Q_i   Rashid et al. 2018
========  ===============================================================  ====================

QMIX's weights are functions of the state. For states that are few and known by index they are free
parameters, one row per state; otherwise hyper-networks make them.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmarl_tad.networks.net import Kind, draw, state_inputs, table
from jaxmarl_tad.types import Key, Params
from tad_envs import Spec

Name = Literal["none", "vdn", "qmix"]

_GAIN = 0.3
"""Scale of the first mixing weights: with 32 hidden units, Q_tot begins at the size of the Q_i."""
_FEW_STATES = 16
"""States up to which one product with the weights of all is cheaper than gathering those of each."""


class Mixer(NamedTuple):
    """From ``N`` utilities to ``K`` values: one of the team, or each agent's own."""

    init: Callable[[Key], Params]
    view: Callable[[Float[Array, "S"]], Any]
    """What the mixer is told of the global state; ``()`` where it does not look at it."""
    mix: Callable[[Params, Float[Array, "*batch N"], Any], Float[Array, "*batch K"]]
    """``(params, utilities, views of the state)``; utilities that do not count are 0."""


def mixer(name: Name, kind: Kind, spec: Spec, *, embed: int = 32, hidden: int = 64) -> Mixer:
    """The mixer called ``name``.

    ``embed`` is the width ``D`` of QMIX's hidden layer, ``hidden`` that of its hyper-networks.
    """
    if name == "none":
        return Mixer(lambda key: (), lambda state: (), lambda params, q, state: q)
    if name == "vdn":
        ones = np.ones((spec.n_agents, 1), np.float32)
        return Mixer(lambda key: (), lambda state: (), lambda params, q, state: q @ ones)
    view, _ = state_inputs(kind, spec)
    sizes = (spec.n_agents * embed, embed, embed, 1)
    if kind == "table":
        cuts = list(itertools.accumulate(sizes[:-1]))
        rows = table(spec.state_dim, sum(sizes), scale=_GAIN)

        def mix_table(params: Params, utilities: Array, state: Array) -> Array:
            weights = positive(jnp.split(params, cuts, axis=-1), spec.n_agents)
            if spec.state_dim <= _FEW_STATES:
                return monotone_by_state(weights, utilities, state)[..., None]
            return monotone(jax.tree.map(lambda w: w[state], weights), utilities)[..., None]

        return Mixer(rows.init, view, mix_table)

    from jaxmarl_tad.networks.modules import HyperNetworks

    module = HyperNetworks(sizes, hidden)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(spec.state_dim)))

    def mix(params: Params, utilities: Array, state: Array) -> Array:
        weights = positive(module.apply(params, state), spec.n_agents)
        return monotone(weights, utilities)[..., None]

    return Mixer(lambda key: draw(key, shapes, _GAIN), view, mix)


class Weights(NamedTuple):
    """QMIX's mixing network in one state."""

    first: Float[Array, "*batch N D"]
    """|W₁(s)|."""
    bias: Float[Array, "*batch D"]
    second: Float[Array, "*batch D"]
    """|w₂(s)|."""
    value: Float[Array, "*batch"]
    """V(s)."""


def positive(parts: Any, agents: int) -> Weights:
    """Mixing weights from W₁ (flat), b₁, w₂ and V; the sign of W₁ and w₂ is dropped."""
    first, bias, second, value = parts
    first = jnp.abs(first).reshape(*first.shape[:-1], agents, -1)
    return Weights(first, bias, jnp.abs(second), value[..., 0])


def monotone(weights: Weights, utilities: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """Q_tot, which grows (or stays) with each utility because no weight is negative."""
    mixed = jnp.einsum("...n,...nd->...d", utilities, weights.first)
    hidden = jax.nn.elu(mixed + weights.bias)
    return jnp.einsum("...d,...d->...", hidden, weights.second) + weights.value


def monotone_by_state(
    weights: Weights, utilities: Float[Array, "*batch N"], state: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """:func:`monotone` given the weights of all states ``[S, ...]`` and the index of each state."""
    states, agents, width = weights.first.shape
    here = jax.nn.one_hot(state, states)
    fed = jnp.concatenate([utilities, jnp.ones((*state.shape, 1))], axis=-1)
    fed = (here[..., :, None] * fed[..., None, :]).reshape(*state.shape, -1)
    layer = jnp.concatenate([weights.first, weights.bias[:, None]], axis=1)
    hidden = jax.nn.elu(fed @ layer.reshape(states * (agents + 1), width))
    return jnp.sum(here * (hidden @ weights.second.T + weights.value), axis=-1)
