"""Play that needs no learning, to compare with and to explore by."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from tad_envs.types import Key, Observation, Spec


def random_action(spec: Spec, key: Key, observation: Observation) -> Shaped[Array, "N ..."]:
    """Uniform over legal actions, or over the range of continuous ones. Consumes ``key``."""
    noise = jax.random.uniform(key, observation.legal.shape)
    if spec.discrete:
        return jnp.argmax(jnp.where(observation.legal, noise, -1.0), axis=-1).astype(jnp.int32)
    low, high = spec.bounds or (-1.0, 1.0)
    return low + (high - low) * noise
