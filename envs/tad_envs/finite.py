"""What finite games share: features, and sampling ``reset`` and ``step`` from the exact model."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs.struct import concrete, require
from tad_envs.types import Action, Environment, FiniteEnvironment, Key, Observation, State, TimeStep

_Tree = TypeVar("_Tree")


def number(value: Any, name: str) -> Any:
    """``value`` as a float32 leaf of rank 0; a tracer or device array is left as it is."""
    if not concrete(value):
        return value
    leaf = np.asarray(value, np.float32)
    require(leaf.ndim == 0, f"{name} must be one number, not an array of shape {leaf.shape}.")
    require(math.isfinite(leaf), f"{name} must be finite, not {leaf}.")
    return leaf


def scalar_check(value: Any) -> bool:
    """Whether a leaf is one host number of an unstacked environment, so that rules apply to it.

    A bare ``int`` is let through unseen: ``jax.tree.map(lambda _: 0, env)`` builds environments
    whose leaves are axes of ``vmap``.
    """
    return isinstance(value, (float, np.ndarray, np.generic)) and np.ndim(value) == 0


def one_hot(index: Int[Array, "..."], width: int) -> Float[Array, "... width"]:
    """Indicator features ``[..., width]``, all zero where the index is outside."""
    return (jnp.arange(width) == jnp.asarray(index)[..., None]).astype(jnp.float32)


def common_view(feature: Float[Array, "S"], legal: Bool[Array, "N A"]) -> Observation:
    """The observation of a game in which every agent sees the whole state."""
    agents = legal.shape[0]
    return Observation(
        agents=jnp.broadcast_to(feature, (agents, feature.shape[0])),
        state=feature,
        legal=legal,
        alive=jnp.ones(agents, bool),
    )


def all_common(env: Environment, row: Float[Array, "O"], agent: Int[Array, ""]) -> Float[Array, "O"]:
    """``common_knowledge`` of such a game (:mod:`tad_envs.knowledge`): everything that is seen."""
    del env, agent
    return row


def joint_index(action: Int[Array, "*batch N"], n_actions: int) -> Int[Array, "*batch"]:
    """Row-major index of a joint action, so that a payoff tensor is read with one gather."""
    strides = n_actions ** np.arange(action.shape[-1])[::-1]
    return jnp.sum(action * strides.astype(np.int32), axis=-1)


def certain(tree: _Tree) -> tuple[Float[Array, "1"], _Tree]:
    """The distribution with one outcome: probabilities ``[1]`` and the tree stacked on an axis."""
    return jnp.ones(1, jnp.float32), jax.tree.map(lambda x: jnp.asarray(x)[None], tree)


def choose(key: Key, probabilities: Float[Array, "K"], tree: _Tree) -> _Tree:
    """Draw one of ``K`` stacked alternatives by inverse CDF; no draw where there is only one."""
    if probabilities.shape[0] == 1:
        return jax.tree.map(lambda x: x[0], tree)
    below = jnp.cumsum(probabilities)
    # Scaled by the total, whose rounding could otherwise select an alternative of probability 0.
    index = jnp.sum(jax.random.uniform(key) * below[-1] >= below)
    return jax.tree.map(lambda x: x[index], tree)


def enumerable(env: Environment) -> bool:
    """Whether a game, and whatever it wraps as ``env.env``, is a finite one."""
    inner = getattr(env, "env", None)
    return isinstance(env, FiniteEnvironment) and (inner is None or enumerable(inner))


def begin(env: FiniteEnvironment, key: Key) -> tuple[State, Observation]:
    """``reset`` of a finite game: draw a start."""
    probabilities, states = env.starts()
    state = choose(key, probabilities, states)
    return state, env.observe(state)


def never(state: State) -> Bool[Array, ""]:
    """The clock rule of a game that always ends by itself."""
    del state
    return jnp.zeros((), bool)


def advance(
    env: FiniteEnvironment,
    key: Key,
    state: State,
    action: Action,
    expired: Callable[[State], Bool[Array, ""]] = never,
) -> tuple[State, TimeStep]:
    """``step`` of a finite game: draw an outcome; ``expired(state)`` tells that time is over."""
    probabilities, *stacked = env.outcomes(state, action)
    state, reward, terminated = choose(key, probabilities, tuple(stacked))
    truncated = expired(state) & ~terminated
    return state, TimeStep(env.observe(state), reward, terminated, truncated, info={})
