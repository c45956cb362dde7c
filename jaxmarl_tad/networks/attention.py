"""Multi-head attention among agents, as the mixing of :mod:`jaxmarl_tad.networks.sequence`.

    mix(q, k)_i = W_o Σ_j softmax_j(⟨W_q q_i, W_k k_j⟩ / √d) W_v k_j

over those j that count: all living agents (the encoder), or everybody's actions before i (the
decoder), from all tokens at once while learning and from a cache of keys and values while acting.
Vaswani et al. 2017.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad.networks.sequence import Mix, Shapes, dense, dense_shapes
from jaxmarl_tad.types import Memory, Params


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of every block."""

    key: Float[Array, "*layers N W"]
    value: Float[Array, "*layers N W"]
    filled: Bool[Array, "*layers N"]


def attention_shapes(width: int) -> Shapes:
    """Shapes of the parameters of one attention.

    A bias of keys would shift all scores alike, and one of values would be one of the last layer.
    """
    keys = dense_shapes(width, 2 * width, bias=False)
    return {"query": dense_shapes(width, width), "key_value": keys, "mixed": dense_shapes(width, width)}


def attend(
    query: Float[Array, "*batch Q W"],
    key: Float[Array, "*batch K W"],
    value: Float[Array, "*batch K W"],
    mask: Bool[Array, "*batch #Q K"],
    heads: int,
) -> Float[Array, "*batch Q W"]:
    """Values, weighted by how well their keys answer the queries; each head has its part of W."""
    query, key, value = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key, value))
    scores = jnp.einsum("...ihd,...jhd->...hij", query, key) / math.sqrt(query.shape[-1])
    lowest = jnp.finfo(scores.dtype).min / 4  # finite: a row without any key is no NaN
    weights = jax.nn.softmax(jnp.where(mask[..., None, :, :], scores, lowest))
    mixed = jnp.einsum("...hij,...jhd->...ihd", weights, value)
    return mixed.reshape(*mixed.shape[:-2], -1)


def together(mask: Bool[Array, "*batch #N N"], heads: int) -> Mix:
    """All tokens ``[*batch, N, W]`` at once; ``mask[i, j]``: i attends to j."""

    def mix(params: Params, memory: Memory, query: Array, key: Array) -> tuple[Array, Memory]:
        k, v = jnp.split(dense(params["key_value"], key), 2, axis=-1)
        mixed = attend(dense(params["query"], query), k, v, mask, heads)
        return dense(params["mixed"], mixed), memory

    return mix


def among(counts: Bool[Array, "*batch N"], heads: int) -> Mix:
    """Everybody attends to all who count."""
    return together(counts[..., None, :], heads)


def causal(counts: Bool[Array, "*batch N"], heads: int) -> Mix:
    """Token i attends to those up to i that count."""
    n = counts.shape[-1]
    return together(counts[..., None, :] & jnp.tri(n, dtype=bool), heads)


def empty_cache(layers: int, tokens: int, width: int) -> Cache:
    """No tokens yet."""
    slots = jnp.zeros((layers, tokens, width))
    return Cache(slots, slots, jnp.zeros((layers, tokens), bool))


def cached(position: Int[Array, ""], counts: Bool[Array, ""], heads: int) -> Mix:
    """One token ``[W]``, the next: it attends to those in the cache that count, and to itself."""

    def mix(params: Params, cache: Any, query: Array, key: Array) -> tuple[Array, Any]:
        told = (*jnp.split(dense(params["key_value"], key), 2, axis=-1), counts)
        cache = Cache(*(slots.at[position].set(x) for slots, x in zip(cache, told, strict=True)))
        asked = dense(params["query"], query)[None]
        mixed = attend(asked, cache.key, cache.value, cache.filled[None], heads)
        return dense(params["mixed"], mixed[0]), cache

    return mix
