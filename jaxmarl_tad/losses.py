"""Loss terms and masked statistics, each a small pure function over arrays of any batch shape.

A mask is True where an entry counts: dead agents and padding enter no sum and no denominator.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tad_envs import Real


def masked_mean(
    x: Float[Array, "*batch"], mask: Bool[Array, "*batch"], weight: Real = 1.0
) -> Float[Array, ""]:
    """Mean of ``weight * x`` over entries that count; 0 if none does."""
    total = jnp.sum(jnp.where(mask, weight * x, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


def standardise(
    x: Float[Array, "*batch"], mask: Bool[Array, "*batch"], floor: float = 1e-5
) -> Float[Array, "*batch"]:
    """(x − mean) / (std + floor) over entries that count, in two passes; 0 elsewhere."""
    centred = x - masked_mean(x, mask)
    deviation = jnp.sqrt(masked_mean(centred**2, mask))
    return jnp.where(mask, centred / (deviation + floor), 0.0)


def clipped_surrogate(
    ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], clip: Real
) -> Float[Array, "*batch"]:
    """min(ρ Â, clip(ρ, 1 ± ε) Â), to be maximised (PPO, Schulman et al. 2017, eq. 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def huber(error: Float[Array, "*batch"], delta: Real) -> Float[Array, "*batch"]:
    """½e² for |e| ≤ δ, linear with slope δ beyond."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def clipped_value_loss(
    value: Float[Array, "*batch"],
    old: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    clip: Real,
    delta: Real,
) -> Float[Array, "*batch"]:
    """The worse of the losses of V and of V held within ``clip`` of its value at collection."""
    held = old + jnp.clip(value - old, -clip, clip)
    return jnp.maximum(huber(target - value, delta), huber(target - held, delta))
