"""Mixers: how the values of the agents' own actions, their utilities, make the team's value.

========  ===============================================================  ====================
mixer     team's value                                                     source
========  ===============================================================  ====================
``none``  none: every agent's utility stands for itself                    Tan 1993 (IQL)
``vdn``   Σ_i Q_i                                                          Sunehag et al. 2018
``qmix``  |w₂(s)|ᵀ elu(|W₁(s)|ᵀ Q + b₁(s)) + V(s), monotone in every Q_i   Rashid et al. 2018
``qplex`` Σ_i w_i(s) V_i + b_i(s) + Σ_i λ_i(s, a) w_i(s) (Q_i - V_i)       Wang et al. 2021
========  ===============================================================  ====================

Here V_i = max_a Q_i, over legal actions. Weights are functions of the state. For states that are few
and known by index they are free parameters, one row per state; otherwise hyper-networks make them.

QPLEX's λ_i(s, a) > 0 weigh what each agent gives away by its action. They sum over heads,

    λ_i(s, a) = Σ_h |k_h(s)| σ(f_h(s))_i σ(g_h(s, a))_i,

and k_h, f_h and g_h are networks of so many linear ``layers``. Heads and layers decide what is found:
the matrix game of QTRAN is solved with 10 heads of 3 layers and is not with 1 layer, while ``heads=4,
layers=1`` is what the authors used in StarCraft (there without Qatten's weights here). As in their
code the gradient reaches Q_i through Σ_i w_i Q_i + b_i alone: every Q_i - V_i is a constant factor.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmarl_tad.networks.joint import joint_actions, joint_index
from jaxmarl_tad.networks.net import Kind, draw, state_inputs, table
from jaxmarl_tad.types import Key, Params
from tad_envs import Spec

Name = Literal["none", "vdn", "qmix", "qplex"]

_GAIN = 0.3
"""Scale of the first mixing weights: with 32 hidden units, Q_tot begins at the size of the Q_i."""
_FEW_STATES = 16
"""States up to which one product with the weights of all is cheaper than gathering those of each."""
_FEW_PAIRS = 256
"""Pairs of state and joint action up to which λ is computed for all of them and then selected."""


class Choice(NamedTuple):
    """The actions behind utilities, for mixers that look at more than what these are worth."""

    best: Float[Array, "*batch N"]
    """max_a Q_i over legal actions; 0 for who does not count."""
    action: Float[Array, "*batch N A"]
    """The actions, one-hot; zeros for who does not count."""


class Mix(Protocol):
    """From utilities to values."""

    def __call__(
        self,
        params: Params,
        utilities: Float[Array, "*batch N"],
        state: Any,
        choice: Choice | None = None,
    ) -> Float[Array, "*batch K"]:
        """Utilities that do not count are 0; without a ``choice`` every agent took its best action."""
        ...


class Mixer(NamedTuple):
    """From ``N`` utilities to ``K`` values: one of the team, or each agent's own."""

    init: Callable[[Key], Params]
    view: Callable[[Float[Array, "S"]], Any]
    """What the mixer is told of the global state; ``()`` where it does not look at it."""
    mix: Mix
    """``(params, utilities, views of the state, choice)``."""


def mixer(
    name: Name,
    kind: Kind,
    spec: Spec,
    *,
    embed: int = 32,
    hidden: int = 64,
    heads: int = 10,
    layers: int = 3,
) -> Mixer:
    """The mixer called ``name``.

    ``embed`` is the width ``D`` of QMIX's hidden layer, ``hidden`` that of hyper-networks; QPLEX has
    ``heads`` of ``layers`` linear maps each.
    """
    if name == "none":

        def apart(params: Params, utilities: Array, state: Any, choice: Any = None) -> Array:
            return utilities

        return Mixer(lambda key: (), lambda state: (), apart)
    if name == "vdn":
        ones = np.ones((spec.n_agents, 1), np.float32)

        def summed(params: Params, utilities: Array, state: Any, choice: Any = None) -> Array:
            return utilities @ ones

        return Mixer(lambda key: (), lambda state: (), summed)
    if name == "qplex":
        return _qplex(kind, spec, hidden, heads, layers)
    view, _ = state_inputs(kind, spec)
    sizes = (spec.n_agents * embed, embed, embed, 1)
    if kind == "table":
        cuts = list(itertools.accumulate(sizes[:-1]))
        rows = table(spec.state_dim, sum(sizes), scale=_GAIN)

        def mix_table(params: Params, utilities: Array, state: Array, choice: Any = None) -> Array:
            weights = positive(jnp.split(params, cuts, axis=-1), spec.n_agents)
            if spec.state_dim <= _FEW_STATES:
                return monotone_by_state(weights, utilities, state)[..., None]
            return monotone(jax.tree.map(lambda w: w[state], weights), utilities)[..., None]

        return Mixer(rows.init, view, mix_table)

    from jaxmarl_tad.networks.modules import HyperNetworks

    module = HyperNetworks(sizes, hidden)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(spec.state_dim)))

    def mix(params: Params, utilities: Array, state: Array, choice: Any = None) -> Array:
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


def _qplex(kind: Kind, spec: Spec, hidden: int, heads: int, layers: int) -> Mixer:
    n, width = spec.n_agents, spec.n_agents * spec.n_actions
    view, _ = state_inputs(kind, spec)
    tabular = kind == "table"
    outputs = {"key": 1, "agents": n, "action": n}
    inputs = {"key": spec.state_dim, "agents": spec.state_dim, "action": spec.state_dim + width}
    shapes: dict[str, Any] = {
        name: _stacked(heads, inputs[name], hidden, outputs[name], layers) for name in outputs
    }
    # b_i only ever enters as a sum over agents. A 1 stands behind the state, as for QMIX.
    per_state = (n, 1)
    if tabular:
        rows = table(spec.state_dim, sum(per_state), scale=0.0)
    else:
        sizes = {"weight": n, "value": 1}
        shapes |= {k: _stacked(1, spec.state_dim, hidden, size, 2) for k, size in sizes.items()}

    def init(key: Key) -> Params:
        params = draw(key, shapes, _GAIN)
        if tabular:
            params["table"] = rows.init(key)
        return params

    def importance(params: Params, state: Array, taken: Array) -> Array:
        """λ_i(s, a), ``[*batch, N]``, from states ``[*batch, S]`` and one-hot actions.

        Axes of actions may be broadcast: what depends on the state alone is computed without them.
        """
        lead = jnp.broadcast_shapes(state.shape[:-1], taken.shape[:-2])
        flat = taken.reshape(*taken.shape[:-2], width)
        parts = [jnp.broadcast_to(x, (*lead, x.shape[-1])) for x in (state, flat)]
        action = _layers(params["action"], jnp.concatenate(parts, axis=-1))
        key, agents = (_layers(params[name], state) for name in ("key", "agents"))
        each = jax.nn.sigmoid(agents) * jax.nn.sigmoid(action)
        return jnp.sum((jnp.abs(key) + 1e-10) * each, axis=-2)

    few = tabular and spec.state_dim * spec.n_actions**n <= _FEW_PAIRS

    def importances(params: Params, state: Any, taken: Array) -> Array:
        if not few:
            told = jax.nn.one_hot(state, spec.state_dim) if tabular else state
            return importance(params, told, taken)
        every = importance(params, jnp.eye(spec.state_dim)[:, None], jnp.asarray(joint_actions(spec)))
        every = every.reshape(-1, n)
        return jax.nn.one_hot(joint_index(spec, state, taken), len(every)) @ every

    def mix(params: Params, utilities: Array, state: Any, choice: Choice | None = None) -> Array:
        if tabular:
            weight, value = jnp.split(params["table"][state], [n], axis=-1)
            # A free |w| falls to 0 while an action that turned out better is still the second best,
            # and then that cannot change any more; an exponential stays away from 0.
            weight = jnp.exp(weight)
        else:
            weight, value = (_layers(params[k], state)[..., 0, :] for k in ("weight", "value"))
            weight = jnp.abs(weight) + 1e-10
        total = jnp.sum(weight * utilities, axis=-1, keepdims=True) + value
        if choice is None:
            return total
        given_away = jax.lax.stop_gradient(weight * (utilities - choice.best))
        extra = (importances(params, state, choice.action) - 1) * given_away
        return total + jnp.sum(extra, axis=-1, keepdims=True)

    return Mixer(init, view, mix)


def _stacked(heads: int, inputs: int, hidden: int, outputs: int, layers: int) -> Params:
    """Shapes of ``heads`` equal networks of so many linear maps with ReLU between."""
    widths = [inputs + 1, *[hidden] * (layers - 1), outputs]
    made = {}
    for i in range(layers):
        kernel = jax.ShapeDtypeStruct((heads, widths[i], widths[i + 1]), jnp.float32)
        bias = jax.ShapeDtypeStruct((heads, widths[i + 1]), jnp.float32)
        made["out" if i == layers - 1 else f"layer_{i}"] = {"kernel": kernel, "bias": bias}
    return made


def _layers(params: Params, x: Float[Array, "*batch I"]) -> Float[Array, "*batch H O"]:
    """Outputs of all heads."""
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1)
    x = jnp.broadcast_to(
        x[..., None, :], (*x.shape[:-1], params["out"]["kernel"].shape[0], x.shape[-1])
    )
    for i in range(len(params)):
        layer = params.get(f"layer_{i}", params["out"])
        x = jnp.einsum("...hi,hio->...ho", x, layer["kernel"]) + layer["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x
