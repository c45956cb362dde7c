"""The flax modules behind the networks: their layers, in the order in which they are applied.

How their parameters are drawn is decided in :mod:`jaxmarl_tad.networks.net`, for all of them. This
file is imported when the first network with layers is built, since flax takes as long to import as
the rest of the library: tables, listings and plans do without it.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.types import Activation, Memory


class Torso(nn.Module):
    """Layer norm, then (linear, activation, layer norm) per hidden layer, maybe a GRU, then linear.

    The order of the MAPPO recipe (Yu et al. 2022), whose layer norms may be left out.
    """

    hidden: tuple[int, ...]
    outputs: int
    recurrent: bool
    activation: Activation
    layer_norm: bool

    @nn.compact
    def __call__(self, memory: Memory, x: Array) -> tuple[Array, Memory]:
        """``x [..., I]`` to ``[..., outputs]``, and the memory afterwards."""

        def norm(x: Array) -> Array:
            return nn.LayerNorm()(x) if self.layer_norm else x

        bend = {"relu": nn.relu, "tanh": nn.tanh}[self.activation]
        x = norm(x)
        for width in self.hidden:
            x = norm(bend(nn.Dense(width)(x)))
        if self.recurrent:
            memory, x = nn.GRUCell(self.hidden[-1])(memory, x)
            x = norm(x)
        return Outputs(self.outputs, name="out")(x), memory


class Outputs(nn.Module):
    """Linear, to few outputs: y = W x + b, where W is ``weight [outputs, I]``.

    Its gradient is a product of two tall matrices, and jax's CPU runtime multiplies those four times
    faster if the result has few rows than if it has few columns.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``x [..., I]`` to ``[..., outputs]``."""
        shape = (self.outputs, x.shape[-1])
        weight = self.param("weight", lambda _: jnp.zeros(shape))
        return x @ weight.T + self.param("bias", lambda _: jnp.zeros(self.outputs))


class HyperNetworks(nn.Module):
    """State to mixing weights: linear-ReLU-linear for W₁, w₂ and V, one linear map for b₁.

    A 1 is put behind the state, so that a state of zeros has weights too: without it all of them
    would be 0, and so would their gradients.
    """

    sizes: tuple[int, int, int, int]
    """How many numbers W₁, b₁, w₂ and V have."""
    hidden: int

    @nn.compact
    def __call__(self, state: Array) -> tuple[Array, Array, Array, Array]:
        """``state [..., S]``."""
        first, bias, second, value = self.sizes
        x = jnp.concatenate([state, jnp.ones((*state.shape[:-1], 1))], axis=-1)
        return (
            TwoLayers(self.hidden, first, name="first")(x),
            nn.Dense(bias, name="out")(x),
            TwoLayers(self.hidden, second, name="second")(x),
            TwoLayers(second, value, name="value")(x),
        )


class TwoLayers(nn.Module):
    """Linear, ReLU, linear."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``x [..., I]`` to ``[..., outputs]``."""
        return nn.Dense(self.outputs, name="out")(nn.relu(nn.Dense(self.hidden)(x)))


class SumHead(nn.Module):
    """logits_i = out(… relu(W f + Σ_{j<i} E[j, a_j])): one extra row per earlier agent."""

    hidden: tuple[int, ...]
    outputs: int
    agents: int
    actions: int
    identity: bool
    dimensions: int = 0

    def setup(self) -> None:
        """Layers of the reader, and the rows that choices add."""
        self.embed = nn.Embed(self.agents * (self.actions or 1 + self.dimensions), self.hidden[0])
        self.layers = [nn.Dense(width) for width in self.hidden]
        self.norms = [nn.LayerNorm() for _ in self.hidden]
        self.out = Outputs(self.outputs)

    def empty(self) -> Array:
        """No rows yet."""
        return jnp.zeros(self.hidden[0])

    def token(self, features: Array, agent: Array, action: Array) -> Array:
        """The row E[j, a_j]."""
        return _row(self.embed, agent, action, self.actions, self.dimensions)

    def read(self, features: Array, agent: Array, prefix: Array) -> Array:
        """Outputs ``[outputs]`` for the agent to move."""
        x = _reader(features, agent, self.agents, self.identity)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(nn.relu(layer(x) + prefix if i == 0 else layer(x)))
        return self.out(x)

    def __call__(self, features: Array, agent: Array) -> Array:
        """Touch every layer, so that one call shows all parameter shapes."""
        action = jnp.zeros(self.dimensions) if self.dimensions else agent
        return self.read(features, agent, self.token(features, agent, action))


class AttentionHead(nn.Module):
    """The reader attends to the slots of those who have chosen, and to a learned start slot."""

    hidden: tuple[int, ...]
    outputs: int
    agents: int
    actions: int
    identity: bool
    dimensions: int = 0

    def setup(self) -> None:
        """Projections of the reader and of the choices, and the reader's layers."""
        width = self.hidden[0]
        self.embed = nn.Embed(self.agents * (self.actions or 1 + self.dimensions), width)
        self.start = nn.Embed(2, width)
        self.query, self.key, self.value = nn.Dense(width), nn.Dense(width), nn.Dense(width)
        self.layers = [nn.Dense(w) for w in self.hidden]
        self.norms = [nn.LayerNorm() for _ in self.hidden]
        self.out = Outputs(self.outputs)

    def empty(self) -> dict[str, Array]:
        """Nobody's slot is filled."""
        slots = jnp.zeros((self.agents, self.hidden[0]))
        return {"key": slots, "value": slots, "filled": jnp.zeros(self.agents)}

    def token(self, features: Array, agent: Array, action: Array) -> dict[str, Array]:
        """Key and value of (features, j, a_j) in slot j."""
        row = _row(self.embed, agent, action, self.actions, self.dimensions)
        x = jnp.concatenate([row, features])
        slot = jax.nn.one_hot(agent, self.agents)
        return {
            "key": slot[:, None] * self.key(x),
            "value": slot[:, None] * self.value(x),
            "filled": slot,
        }

    def read(self, features: Array, agent: Array, prefix: dict[str, Array]) -> Array:
        """Outputs ``[outputs]`` for the agent to move."""
        x = _reader(features, agent, self.agents, self.identity)
        start = self.start(jnp.arange(2))
        keys = jnp.concatenate([start[:1], prefix["key"]])
        values = jnp.concatenate([start[1:], prefix["value"]])
        filled = jnp.concatenate([jnp.ones(1), prefix["filled"]]) > 0.5
        scores = keys @ self.query(x) / math.sqrt(self.hidden[0])
        weights = jax.nn.softmax(jnp.where(filled, scores, jnp.finfo(scores.dtype).min / 4))
        x = jnp.concatenate([x, weights @ values])
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(nn.relu(layer(x)))
        return self.out(x)

    def __call__(self, features: Array, agent: Array) -> Array:
        """Touch every layer, so that one call shows all parameter shapes."""
        action = jnp.zeros(self.dimensions) if self.dimensions else agent
        return self.read(features, agent, self.token(features, agent, action))


def _row(embed: nn.Embed, agent: Array, action: Array, actions: int, dimensions: int) -> Array:
    """E[j, a_j]; of continuous actions E[j, 0] + Σ_d a_jd E[j, d]."""
    if not dimensions:
        return embed(agent * actions + action)
    rows = embed(agent * (1 + dimensions) + jnp.arange(1 + dimensions))
    return rows[0] + action @ rows[1:]


def _reader(features: Array, agent: Array, agents: int, identity: bool) -> Array:
    if not identity:
        return features
    return jnp.concatenate([features, jax.nn.one_hot(agent, agents)])
