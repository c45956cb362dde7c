"""What methods of continuous actions from data share: critics of actions, what to ask them for, acting.

Actions are in units of half their range.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmarl_tad.distributions import normal_log_density
from jaxmarl_tad.offline import Lesson, Rows, rows_of
from jaxmarl_tad.types import Key, Memory, Policy
from tad_envs import Observation, Real, Spec


def critics(config: Any, spec: Spec, *, joint: bool = False) -> tuple[Any, Callable[..., Array]]:
    """``init(key)``, and ``q(params, seen, first, own, all)``, ``[2, T, B, N]``, of both critics.

    ``own`` are the actions that each critic's own agent takes, ``everyone`` those of the others, which
    count where critics are ``joint``: they then see the state and all actions. They have no memory.
    """
    plain = dataclasses.replace(config, memory="none", network="mlp", layer_norm=False)
    n, width = spec.n_agents, spec.action_dim
    shown = spec._replace(obs_dim=spec.state_dim) if joint else spec
    net = rows_of(plain, shown, 1, fed=n * width if joint else width, gain=1.0)
    mine = jnp.eye(n, dtype=bool)[..., None]

    def init(key: Key) -> Any:
        return jax.vmap(net.init)(jax.random.split(key))

    def q(
        params: Any, seen: Observation, first: Array, own: Array, everyone: Array | None = None
    ) -> Array:
        counts = seen.legal & seen.alive[..., None]
        told = jnp.where(counts, own, 0.0)
        if joint:
            assert everyone is not None
            others = jnp.where(counts, everyone, 0.0)
            each = jnp.where(mine, told[..., None, :, :], others[..., None, :, :])
            told = each.reshape(*each.shape[:-2], n * width)
            state = jnp.broadcast_to(seen.state[..., None, :], (*seen.alive.shape, spec.state_dim))
            seen = seen._replace(agents=state)
        return jax.vmap(lambda p: net.apply(p, seen, first, told)[..., 0])(params)

    return init, q


def spread_out(
    key: Key, seen: Lesson, out: Float[Array, "rows B N D"], samples: int, spread: Real
) -> tuple[Float[Array, "K T B N D"], Float[Array, "K T B N"]]:
    """The actions that CQL holds down in each recorded step, and the log of their densities.

    As many uniform ones (``samples``) as near what the policy does there, ``out``, and near what it
    does in the next row; all are valued in the step itself.
    """
    shape = (samples, *seen.action.shape)
    anywhere_key, near_key = jax.random.split(key)
    anywhere = jax.random.uniform(anywhere_key, shape, minval=-1.0, maxval=1.0)
    noise = spread * jax.random.normal(near_key, (2, *shape))
    legal = seen.now.legal
    later = jnp.where(seen.seen.alive[1:, ..., None], out[1:], out[:-1])  # the dead have no μ
    middles = jnp.broadcast_to(jnp.stack([out[:-1], later])[:, None], noise.shape)
    near = jnp.clip(middles + noise, -1.0, 1.0)
    deviation = jnp.full_like(near, spread)
    density = jnp.where(legal, normal_log_density(near, middles, deviation), 0.0)
    flat = jnp.broadcast_to(-np.log(2.0) * jnp.sum(legal, axis=-1), shape[:-1])
    densities = jnp.concatenate([flat, density.sum(-1).reshape(-1, *shape[1:-1])])
    return jnp.concatenate([anywhere, near.reshape(-1, *shape[1:])]), densities


def soft_value(
    value: Callable[[Array], Float[Array, "2 *batch"]],
    actions: Float[Array, "K T B N D"],
    densities: Float[Array, "K T B N"],
) -> Float[Array, "2 *batch"]:
    """log ∫ exp Q(a) da of both critics, from actions drawn with these densities."""
    held = jax.vmap(value)(actions)
    return jax.nn.logsumexp(held - densities[:, None], axis=0) - np.log(len(actions))


def deterministic(actors: Rows, spec: Spec, spread: Real) -> Callable[..., Policy]:
    """``policy(params, *, greedy)``: μ_i = tanh of each agent's outputs; not greedy, near it."""
    low, high = spec.bounds or (-1.0, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2

    def policy(params: Any, *, greedy: bool) -> Policy:
        def act(key: Key, memory: Memory, observation: Observation) -> tuple[Any, Memory, Any]:
            out, memory = actors.act(params, memory, observation)
            x = jnp.tanh(out)
            if not greedy:
                x = jnp.clip(x + spread * jax.random.normal(key, x.shape), -1.0, 1.0)
            return middle + half * x, memory, {"output": out, "chosen": x}

        return Policy(start=actors.start, act=act, execution="decentralised")

    return policy
