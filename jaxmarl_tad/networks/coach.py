"""COPA's coach: it sees everything, and gives each agent a strategy, a vector of random numbers.

What the coach attends to is one token per agent, made of the agent's row, and one of the global state::

    token_i = relu(Lin(x_i)),  token_s = relu(Lin(s))
    h_i     = relu(Lin(token_i + mean over heads of  softmax_j(q_i · k_j / √W) v_j)),  j alive, or s
    z_i     ~ N(μ_i, exp(l_i)),  μ_i and l_i linear in h_i, and l_i within [-10, 0]

A guess of z_i from what agent i sees and does while it holds z_i, q(z_i | x_i, s, a_i), is a network of
one hidden layer. Liu et al. 2021, section 4 and appendix, and the sizes of the authors' code, where
heads have the whole width and are averaged. They attend to the entities of their game; ``Spec`` does
not tell entities apart, so that the agents' rows and the state stand in their place.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.distributions import IMPOSSIBLE
from jaxmarl_tad.networks.net import draw
from jaxmarl_tad.networks.sequence import dense, dense_shapes
from jaxmarl_tad.types import Key, Params

LEAST, MOST = -10.0, 0.0
"""Bounds of the logarithm of a variance."""


class Normal(NamedTuple):
    """Independent normal numbers."""

    mean: Float[Array, "*batch Z"]
    log_variance: Float[Array, "*batch Z"]

    def drawn(self, noise: Float[Array, "*batch Z"]) -> Float[Array, "*batch Z"]:
        """The numbers that standard normal ``noise`` makes."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def log_density(self, z: Float[Array, "*batch Z"]) -> Float[Array, "*batch"]:
        """Log-density of ``z``, in nats."""
        squared = (z - self.mean) ** 2 * jnp.exp(-self.log_variance)
        return -0.5 * jnp.sum(squared + self.log_variance + math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy in nats."""
        return 0.5 * jnp.sum(self.log_variance + math.log(2 * math.pi * math.e), axis=-1)


class Coach(NamedTuple):
    """The coach and the guess, as pure functions."""

    init: Callable[[Key], Params]
    strategies: Callable[[Params, Array, Array, Array], Normal]
    """``(params, rows [*batch, N, I], state [*batch, S], alive [*batch, N])``: z ``[*batch, N, Z]``."""
    guess: Callable[[Params, Array, Array, Array], Normal]
    """``(params, rows, state, actions one-hot [*batch, N, A])``: z ``[*batch, N, Z]``."""


def coach(*, inputs: int, states: int, actions: int, width: int, heads: int, size: int) -> Coach:
    """The coach of agents whose rows have ``inputs`` numbers; strategies have ``size``."""
    normal = {"mean": dense_shapes(width, size), "log_variance": dense_shapes(width, size)}
    parts = {name: dense_shapes(width, heads * width) for name in ("query", "key", "value")}
    shapes = {
        "coach": {"row": dense_shapes(inputs, width), "state": dense_shapes(states, width)}
        | parts
        | {"mixed": dense_shapes(width, width), "z": normal},
        "guess": {"hidden": dense_shapes(inputs + states + actions, width), "z": normal},
    }

    def spread(params: Params, h: Array) -> Normal:
        log_variance = jnp.clip(dense(params["log_variance"], h), LEAST, MOST)
        return Normal(dense(params["mean"], h), log_variance)

    def attended(params: Params, tokens: Array, present: Bool[Array, "*batch K"]) -> Array:
        each = (*tokens.shape[:-1], heads, width)
        query, key, value = (dense(params[n], tokens).reshape(each) for n in parts)
        scores = jnp.einsum("...ihw,...jhw->...hij", query, key) / math.sqrt(width)
        weights = jax.nn.softmax(jnp.where(present[..., None, None, :], scores, IMPOSSIBLE))
        return jnp.einsum("...hij,...jhw->...ihw", weights, value).mean(-2)

    def strategies(params: Params, rows: Array, state: Array, alive: Array) -> Normal:
        own = params["coach"]
        tokens = [dense(own["row"], rows), dense(own["state"], state)[..., None, :]]
        tokens = jax.nn.relu(jnp.concatenate(tokens, axis=-2))
        present = jnp.concatenate([alive, jnp.ones_like(alive[..., :1])], axis=-1)
        mixed = (tokens + attended(own, tokens, present))[..., :-1, :]
        return spread(own["z"], jax.nn.relu(dense(own["mixed"], mixed)))

    def guess(params: Params, rows: Array, state: Array, chosen: Array) -> Normal:
        own = params["guess"]
        state = jnp.broadcast_to(state[..., None, :], (*rows.shape[:-1], states))
        fed = jnp.concatenate([rows, state, chosen], axis=-1)
        return spread(own["z"], jax.nn.relu(dense(own["hidden"], fed)))

    return Coach(lambda key: draw(key, shapes, 1.0), strategies, guess)
