"""A ring of the last items, as three pure functions; an item is any pytree, e.g. a whole episode.

:func:`record` plays the episodes that learners of values keep in it.

The ring is born with its first items, so there is always something to sample and nobody has to ask.
Items are written in blocks that never straddle the end, hence one contiguous write: where many
members are batched together, a write of scattered rows costs several times as much.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmarl_tad.rollout import episodes
from jaxmarl_tad.types import Key, Policy
from tad_envs import Environment, Observation, require


class Replay(NamedTuple):
    """The last ``C`` items; slots from ``filled`` on have not been written yet."""

    items: Any
    """Leaves ``[C, ...]``."""
    cursor: Int[Array, ""]
    """Where the next block goes."""
    filled: Int[Array, ""]
    """How many slots have been written."""


def init(items: Any, capacity: int) -> Replay:
    """A ring of ``capacity`` slots that holds ``items`` (leaves ``[count, ...]``)."""
    count = _count(items)
    require(
        1 <= count <= capacity,
        f"replay: capacity={capacity} cannot hold the first {count} items.",
    )

    def padded(x: Array) -> Array:
        return jnp.concatenate([x, jnp.zeros((capacity - count, *x.shape[1:]), x.dtype)])

    return Replay(
        items=jax.tree.map(padded, items),
        cursor=jnp.asarray(count % capacity, jnp.int32),
        filled=jnp.asarray(count, jnp.int32),
    )


def add(replay: Replay, items: Any) -> Replay:
    """Write a block of items over the oldest ones.

    Every block must have the same size, which divides the capacity and the number of first items.
    """
    count, capacity = _count(items), _count(replay.items)
    require(
        capacity % count == 0,
        f"replay: capacity={capacity} must be a multiple of the {count} items added at a time.",
    )

    def written(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, replay.cursor, axis=0)

    return Replay(
        items=jax.tree.map(written, replay.items, items),
        cursor=(replay.cursor + count) % capacity,
        filled=jnp.minimum(replay.filled + count, capacity),
    )


def sample(replay: Replay, key: Key, count: int) -> Any:
    """``count`` items (leaves ``[count, ...]``), uniformly and with replacement."""
    uniform = jax.random.uniform(key, (count,))
    rows = jnp.minimum((uniform * replay.filled).astype(jnp.int32), replay.filled - 1)
    return jax.tree.map(lambda x: x[rows], replay.items)


def _count(items: Any) -> int:
    return jax.tree.leaves(items)[0].shape[0]


class Record(NamedTuple):
    """Episodes as they are kept, ``[E, T, ...]``, and as they are learned from, ``[T, B, ...]``.

    What is seen has one row more than there are steps: the last shows what the last step led to.
    """

    views: Any
    """What each agent's network is fed."""
    state: Any
    """What the mixer is told of the global state."""
    legal: Bool[Array, "*batch N A"]
    alive: Bool[Array, "*batch N"]
    action: Int[Array, "*batch N"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    valid: Bool[Array, "*batch"]
    """Whether the step lies at or before the end of the episode."""

    def rows(self, rows: slice) -> "Record":
        """What was seen in these rows, of leaves ``[T, B, ...]``."""
        return self._replace(
            state=jax.tree.map(lambda x: x[rows], self.state),
            legal=self.legal[rows],
            alive=self.alive[rows],
        )


def record(
    env: Environment,
    policy: Policy,
    key: Key,
    envs: int,
    views: Callable[[Observation], Any],
    state_view: Callable[[Float[Array, "S"]], Any],
) -> Record:
    """One whole episode in each of ``envs`` environments; leaves ``[E, T, ...]``.

    ``views`` is what the agents' networks are fed of one observation, ``state_view`` what is kept of
    the global state. Rewards after an episode's end are 0.
    """
    played = episodes(env, policy, key, envs, env.spec.horizon)
    step = played.transition
    shown = jax.tree.map(
        lambda now, after: jnp.concatenate([now, after[-1:]]), step.observation, step.next
    )
    kept = Record(
        views=jax.vmap(jax.vmap(views))(shown),
        state=jax.vmap(jax.vmap(state_view))(shown.state),
        legal=shown.legal,
        alive=shown.alive,
        action=step.action,
        reward=jnp.where(played.valid, step.reward, 0.0),
        terminated=step.terminated,
        truncated=step.truncated,
        valid=played.valid,
    )
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept)
