"""Running normalisation of value targets (ValueNorm of MAPPO, Yu et al. 2022)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.losses import masked_mean

_RATE = 1e-5
_SMALLEST_VARIANCE = 1e-2


class Scale(NamedTuple):
    """Exponential averages of x and x², and the weight they have gathered (to remove their bias)."""

    mean: Float[Array, ""]
    square: Float[Array, ""]
    weight: Float[Array, ""]


def init_scale() -> Scale:
    """No data yet: the identity."""
    return Scale(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def update_scale(scale: Scale, x: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Scale:
    """Take in a batch of targets; one of which none counts changes nothing."""
    new = Scale(masked_mean(x, mask), masked_mean(x**2, mask), jnp.ones(()))
    rate = jnp.where(jnp.any(mask), _RATE, 0.0)
    return Scale(*(old + rate * (value - old) for old, value in zip(scale, new, strict=True)))


def _moments(scale: Scale) -> tuple[Array, Array]:
    seen = scale.weight > 0
    weight = jnp.where(seen, scale.weight, 1.0)
    mean = scale.mean / weight
    variance = jnp.maximum(scale.square / weight - mean**2, _SMALLEST_VARIANCE)
    return jnp.where(seen, mean, 0.0), jnp.where(seen, jnp.sqrt(variance), 1.0)


def normalised(scale: Scale, x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Targets in the units the critic predicts."""
    mean, deviation = _moments(scale)
    return (x - mean) / deviation


def restored(scale: Scale, x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The critic's predictions in units of return."""
    mean, deviation = _moments(scale)
    return x * deviation + mean
