"""Multi-scale retention over agents and time, as the mixing of :mod:`jaxmarl_tad.networks.sequence`.

    S_t = κ S_{t−1} + Σ_j k_j v_jᵀ,   retained_i = q_i S,   S = 0 where an episode begins
    mix(q, k) = W_o (swish(W_g q) ⊙ norm(retained))

per head, each with a decay κ of its own. The sum of one step is over all living agents (the encoder),
or over everybody's actions before i (the decoder); κ counts steps, not agents. Acting adds one token
to S, whose size depends neither on agents nor on time. Learning takes a chunk of steps at once and
carries S from one chunk to the next, which gives the same numbers:

    retained = (Q Kᵀ ⊙ D) V + (Q S) ⊙ ξ,   D_ts = κ^(t−s), ξ_t = κ^(t+1), both 0 across episodes

Sun et al. 2023 (arXiv 2307.08621), eqs. 5-8; Mahjoub et al. 2024 (arXiv 2410.01706), section 3, for
agents, steps and resets. The gate reads the query; queries and keys carry no position.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmarl_tad.networks.sequence import Mix, Shapes, dense, dense_shapes
from jaxmarl_tad.types import Memory, Params
from tad_envs import Real

_SMALLEST_VARIANCE = 1e-3
"""Of what is retained: a single token with q ⟂ k retains nearly nothing, which stays nearly nothing."""


def retention_shapes(width: int) -> Shapes:
    """Shapes of the parameters of one retention."""
    sizes = {"query_gate": 2 * width, "key_value": 2 * width, "mixed": width}
    return {name: dense_shapes(width, size, bias=False) for name, size in sizes.items()}


def decays(heads: int, scale: Real) -> Float[Array, "H"]:
    """κ of each head: ``scale`` times 1 − 1/32 to 1 − 1/512."""
    return jnp.asarray(scale, jnp.float32) * (
        1 - np.geomspace(1 / 32, 1 / 512, heads, dtype=np.float32)
    )


def empty_state(layers: int, heads: int, width: int) -> Float[Array, "layers H D D"]:
    """S of every block, before an episode."""
    return jnp.zeros((layers, heads, width // heads, width // heads))


def _projected(params: Params, query: Array, key: Array, counts: Array, heads: int) -> list[Array]:
    """q, k and v by head ``[..., H, D]``, and the gate; keys of tokens that do not count are 0."""
    q, gate = jnp.split(dense(params["query_gate"], query), 2, axis=-1)
    k, v = jnp.split(dense(params["key_value"], key), 2, axis=-1)
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))
    k = jnp.where(counts[..., None, None], k / math.sqrt(k.shape[-1]), 0.0)
    return [q, k, v, jax.nn.swish(gate)]


def _gated(params: Params, gate: Array, retained: Array) -> Array:
    """What is retained ``[..., H, D]``, normalised by head, through the gate and the last layer."""
    centred = retained - retained.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + _SMALLEST_VARIANCE)
    return dense(params["mixed"], gate * scaled.reshape(gate.shape))


def one_step(counts: Bool[Array, "N"], decay: Float[Array, "H"]) -> Mix:
    """All tokens ``[N, W]`` of one step, each of which retains all that count, and the past.

    The memory is S of the step before, or ``()`` where nothing is remembered.
    """

    def mix(params: Params, state: Memory, query: Array, key: Array) -> tuple[Array, Memory]:
        q, k, v, gate = _projected(params, query, key, counts, decay.shape[0])
        now = jnp.einsum("nhd,nhf->hdf", k, v)
        if not isinstance(state, tuple):
            state = now = decay[:, None, None] * state + now
        return _gated(params, gate, jnp.einsum("nhd,hdf->nhf", q, now)), state

    return mix


def one_token(counts: Bool[Array, ""], heads: int) -> Mix:
    """One token ``[W]``, the next within a step; the past has decayed before the first."""

    def mix(params: Params, state: Memory, query: Array, key: Array) -> tuple[Array, Memory]:
        q, k, v, gate = _projected(params, query, key, counts, heads)
        state = state + k[..., None] * v[..., None, :]
        return _gated(params, gate, jnp.einsum("hd,hdf->hf", q, state)), state

    return mix


def chunkwise(
    counts: Bool[Array, "T E N"],
    first: Bool[Array, "T E"],
    decay: Float[Array, "H"],
    *,
    causal: bool,
    chunk: int,
) -> Mix:
    """Recorded tokens ``[T, E, N, W]``, ``chunk`` steps (a divisor of T) at once.

    ``first`` marks the steps before which S is 0. The memory is S of every environment ``[E, H, D, D]``
    before the first step, and after the last; or ``()``, for 0, if all is one chunk.
    """
    envs, agents = counts.shape[1:]
    t = jnp.arange(chunk)
    age = t[:, None] - t[None, :]
    power = decay[:, None, None] ** jnp.maximum(age, 0)  # κ^(t−s)
    earlier = jnp.tri(agents, dtype=bool) if causal else jnp.ones((agents, agents), bool)
    seen = (age > 0)[:, None, :, None] | ((age == 0)[:, None, :, None] & earlier[:, None, :])
    since = decay[None, :] ** (t[:, None] + 1)  # ξ [C, H], of what came before the chunk

    def mix(params: Params, state: Memory, query: Array, key: Array) -> tuple[Array, Memory]:
        *projected, gate = _projected(params, query, key, counts, decay.shape[0])

        def one(state: Memory, own: tuple[Array, ...]) -> tuple[Memory, Array]:
            q, k, v, first = own
            episode = jnp.cumsum(first, axis=0)  # 0: the one that was going on before the chunk
            same = (episode[:, None] == episode[None, :]).transpose(2, 0, 1)[:, None]
            weight = jnp.where(same, power, 0.0)  # D [E, H, C, C]
            scores = jnp.einsum("tenhd,semhd->ehtnsm", q, k)
            scores = jnp.where(seen, scores * weight[:, :, :, None, :, None], 0.0)
            retained = jnp.einsum("ehtnsm,semhd->tenhd", scores, v)
            if isinstance(state, tuple):
                return state, retained
            going_on = jnp.where((episode == 0)[..., None], since[:, None], 0.0)  # [C, E, H]
            past = jnp.einsum("tenhd,ehdf->tenhf", q, state)
            retained = retained + past * going_on[:, :, None, :, None]
            left = going_on[-1][..., None, None] * state
            added = jnp.einsum("semhd,semhf,ehs->ehdf", k, v, weight[:, :, -1])
            return left + added, retained

        def chunks(x: Array) -> Array:
            return x.reshape(-1, chunk, *x.shape[1:])

        state, retained = jax.lax.scan(one, state, tuple(map(chunks, (*projected, first))))
        retained = retained.reshape(-1, envs, agents, *retained.shape[-2:])
        return _gated(params, gate, retained), state

    return mix
