"""A cheap generator behind ``jax.random``, an option for speed: threefry stays the default.

A key is two words ``k₀, k₁``. Words are made from a counter, so that they may be computed in any order
and under ``vmap`` exactly as alone; ``mix`` is a bijection of 32 bits, F_d one that depends on the
purpose ``d`` (drawing, splitting, folding in)::

    s₀ = k₀ + F_d(k₁);   s₁ = k₁ + F(s₀)          every bit of the key reaches both
    c  = i·φ + s₀
    drawing    bits(i)  = mix(mix(c) ^ s₁) + c
    new keys   k₀' = mix(mix(c) ^ s₁);   k₁' = mix(k₀' ^ s₀)

Adding ``c`` at the end lets words repeat as often as chance has it. New keys never repeat for one
parent, because k₀' is a bijection of the counter. The two rounds in which the key is stirred are for
:func:`jaxmarl_tad.rollout.keys`, which uses keys that differ in a few bits of the last word.

The multipliers are of the two-round finaliser of least known bias (Wellons' search, 2018-2022); φ is
2³² over the golden ratio. Statistical batteries and their results: ``benchmarks/prng_battery.py``.
It is no cryptographic generator, and one key gives at most 2³² words.
"""

import functools
import math
from collections.abc import Hashable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, UInt, UInt32

Generator = Literal["threefry", "hash"]
GENERATORS: tuple[Generator, ...] = ("threefry", "hash")

_DRAW, _SPLIT, _FOLD = 0x00000000, 0xB5297A4D, 0x68E31DA4
_STIR = 0x1B56C4E9
_PHI = 0x9E3779B9


def implementation(name: Generator) -> Hashable:
    """What ``jax.random.key(seed, impl=…)`` takes to use the generator called ``name``."""
    return "threefry2x32" if name == "threefry" else _hash()


@functools.lru_cache(maxsize=1)
def _hash() -> Hashable:
    from jax.extend.random import define_prng_impl

    return define_prng_impl(
        key_shape=(2,),
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,  # type: ignore[arg-type]
        name="hash",
        tag="hash",
    )


def mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits: a flipped bit of ``x`` flips about half of the bits of the result."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)


def stirred(key: UInt32[Array, "2"], purpose: int) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """``s₀`` and ``s₁``."""
    first = key[0] + mix(key[1] ^ np.uint32(purpose))
    return first, key[1] + mix(first ^ np.uint32(_STIR))


def words(key: UInt32[Array, "2"], counter: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """The words that ``key`` draws at these counters."""
    first, second = stirred(key, _DRAW)
    place = counter * np.uint32(_PHI) + first
    return mix(mix(place) ^ second) + place


def children(
    key: UInt32[Array, "2"], counter: UInt32[Array, "*shape"], purpose: int
) -> UInt32[Array, "*shape 2"]:
    """The keys made from ``key`` at these counters; different ones at different counters."""
    first, second = stirred(key, purpose)
    word = mix(mix(counter * np.uint32(_PHI) + first) ^ second)
    return jnp.stack([word, mix(word ^ first)], axis=-1)


def seed(number: Integer[Array, ""]) -> UInt32[Array, "2"]:
    """A key from an integer; numbers beyond 32 bits count if there are any."""
    if number.dtype.itemsize > 4:
        high, low = (number >> 32).astype(np.uint32), number.astype(np.uint32)
    else:
        high, low = jnp.zeros((), np.uint32), number.astype(np.uint32)
    return children(jnp.stack([high, jnp.zeros((), np.uint32)]), low, _FOLD)


def split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    """``shape`` many keys."""
    return children(key, _count(shape), _SPLIT)


def fold_in(key: UInt32[Array, "2"], data: Integer[Array, ""]) -> UInt32[Array, "2"]:
    """One key for each value of ``data`` (32 bits)."""
    return children(key, data.astype(np.uint32), _FOLD)


def random_bits(
    key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]
) -> UInt[Array, "*shape"]:
    """Unsigned integers of ``bit_width`` bits: 8, 16, 32, or 64 where these are enabled."""
    if bit_width == 64:
        both = words(key, _count((2, *shape))).astype(np.uint64)
        return (both[0] << 32) | both[1]
    return words(key, _count(shape)).astype(f"uint{bit_width}")


def _count(shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    return jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape)
