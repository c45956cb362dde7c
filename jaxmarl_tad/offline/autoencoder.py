"""A variational autoencoder of what each agent does: it draws continuous actions like recorded ones."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmarl_tad.offline import Lesson, rows_of
from jaxmarl_tad.types import Key, Memory
from tad_envs import Observation, Spec

LOG_DEVIATION = (-4.0, 15.0)
"""Of what the encoder says, between these."""


class Autoencoder(NamedTuple):
    """Encoder and decoder as pure functions of stacked parameter sets."""

    init: Any
    error: Any
    """``(params, lesson, noise)``: squared errors ``[T, B, N, D]``, distances ``[T, B, N, L]``."""
    decoded: Any
    """``(params, lesson, z [T + 1, B, N, L])``: actions in every row."""
    decode: Any
    """``(params, memory, observation, z [N, L])``: actions and memory."""
    start: Any


def autoencoder(config: Any, spec: Spec) -> Autoencoder:
    """Encoder and decoder with twice as many numbers between them as an action has."""
    latent = 2 * spec.action_dim
    plain = dataclasses.replace(config, memory="none", network="mlp", layer_norm=False)
    encoder = rows_of(plain, spec, 2 * latent, fed=spec.action_dim, gain=1.0)
    decoder = rows_of(config, spec, spec.action_dim, fed=latent, gain=1.0)

    def decoded(params: Any, seen: Lesson, z: Array) -> Array:
        return jnp.tanh(decoder.apply(params["decoder"], seen.seen, seen.first, z))

    def error(params: Any, seen: Lesson, noise: Array) -> tuple[Array, Array]:
        action = jnp.where(seen.now.legal, seen.action, 0.0)
        told = encoder.apply(params["encoder"], seen.now, seen.first[:-1], action)
        mean, log_deviation = jnp.split(told, 2, axis=-1)
        log_deviation = jnp.clip(log_deviation, *LOG_DEVIATION)
        z = mean + jnp.exp(log_deviation) * noise
        z = jnp.concatenate([z, jnp.zeros_like(z[:1])])  # nothing was done in the last row
        apart = 0.5 * (mean**2 + jnp.expm1(2 * log_deviation) - 2 * log_deviation)
        return (decoded(params, seen, z)[:-1] - action) ** 2, apart

    def decode(params: Any, memory: Memory, observation: Observation, z: Array) -> tuple[Array, Memory]:
        out, memory = decoder.act(params["decoder"], memory, observation, z)
        return jnp.tanh(out), memory

    def init(key: Key) -> Any:
        one, other = jax.random.split(key)
        return {"encoder": encoder.init(one), "decoder": decoder.init(other)}

    return Autoencoder(init, error, decoded, decode, decoder.start)
