"""What agents know in common, each from its own observation.

Something is common knowledge if all know it, all know that all know it, and so on. An environment
that says what this is has a method ``common_knowledge(row, agent) -> [C]``: what an agent with this
index that sees ``row`` knows to be known to all. It gives the same numbers, up to rounding, to every
living agent of a step, and they are one-hot where ``spec.one_hot``. Agents that draw from it with a
common seed can act as one and still be decentralised. Where an environment has no such method, nothing
is common knowledge.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tad_envs.types import Environment

Common = Callable[[Float[Array, "O"], Int[Array, ""]], Float[Array, "C"]]


def common_knowledge(env: Environment) -> tuple[Common, int]:
    """``common(row, agent)`` of ``env`` and the size of what it gives; ``[1.]`` if nothing is."""
    common: Common = getattr(env, "common_knowledge", _nothing)
    row = jax.ShapeDtypeStruct((env.spec.obs_dim,), jnp.float32)
    known = jax.eval_shape(lambda r, i: common(r, i), row, jax.ShapeDtypeStruct((), jnp.int32))
    return common, known.shape[0]


def _nothing(row: Float[Array, "O"], agent: Int[Array, ""]) -> Float[Array, "1"]:
    del row, agent
    return jnp.ones(1)
