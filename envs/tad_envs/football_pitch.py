"""What :mod:`tad_envs.football` and its scripts share: the pitch, the actions, the state, and vectors.

Metres; ``x`` to the opponents' goal, ``y`` down. ``P`` players, ``n`` of them own, ``D`` opponents
without their keeper, ``M`` mates.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs.struct import AnyArray, Real
from tad_envs.types import Action

IDLE, LONG_PASS, HIGH_PASS, SHORT_PASS, SHOT = 0, 9, 10, 11, 12
SPRINT, RELEASE_DIRECTION, RELEASE_SPRINT, SLIDING, DRIBBLE, RELEASE_DRIBBLE = range(13, 19)
ACTIONS = 19
"""Idle, eight directions, and those above: the order of GRF's ``action_set_v1``."""

LENGTH, WIDTH, GOAL = 55.0, 36.0, 3.7
"""Half the pitch, and half the goal, in metres."""
SCALE = np.array([LENGTH, WIDTH], np.float32)
MOUTH = np.array([LENGTH, 0.0], np.float32)
"""The middle of the goal that is attacked."""
WAYS = np.array(
    [[0, 0], [-1, 0], [-1, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1]], np.float32
)
WAYS[2::2] *= np.sqrt(0.5)
"""Unit vectors of the actions 0 to 8; the first is none."""
_GAIN = 4.0
"""Opponents slow down within a quarter second of where they want to be."""


class Play(NamedTuple):
    """State of the game. Players: own, opponents, their keeper."""

    position: Float[Array, "P 2"]
    velocity: Float[Array, "P 2"]
    facing: Float[Array, "n 2"]
    """Unit vectors."""
    direction: Int[Array, "n"]
    """The direction that is on, 1 to 8, or 0."""
    sprint: Bool[Array, "n"]
    dribble: Bool[Array, "n"]
    ball: Float[Array, "2"]
    ball_velocity: Float[Array, "2"]
    owner: Int[Array, ""]
    """Who has the ball; -1 nobody."""
    kicker: Int[Array, ""]
    """Who kicked it last; -1 nobody."""
    since: Float[Array, ""]
    """Seconds since that kick."""
    air: Float[Array, ""]
    """Seconds for which a high pass cannot be reached yet."""
    shot: Bool[Array, ""]
    """Whether a shot is on its way."""
    tried: Bool[Array, ""]
    """Whether the keeper had his try at it."""
    reached: Int[Array, ""]
    """Checkpoints passed."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


# --------------------------------------------------------------------------------------------------
# Vectors


def square(vector: Float[AnyArray, "*b 2"]) -> Float[Array, "*b"]:
    """Squared lengths."""
    x, y = jnp.asarray(vector[..., 0]), jnp.asarray(vector[..., 1])
    return x**2 + y**2


def length(vector: Float[AnyArray, "*b 2"]) -> Float[Array, "*b"]:
    """Lengths."""
    return jnp.sqrt(square(vector))


def unit(vector: Float[AnyArray, "*b 2"]) -> Float[Array, "*b 2"]:
    """The direction; none of a vector without length."""
    return jnp.asarray(vector) / jnp.maximum(length(vector), 1e-6)[..., None]


def turned(vector: Float[Array, "2"], angle: Float[Array, ""]) -> Float[Array, "2"]:
    """Rotated by an angle."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]])


def towards(
    place: Float[Array, "*b 2"], aim: Float[Array, "*b 2"], speed: Real
) -> Float[Array, "*b 2"]:
    """A velocity of at most ``speed`` that ends at ``aim``."""
    way = aim - place
    away = length(way)
    return way * (jnp.minimum(speed, _GAIN * away) / jnp.maximum(away, 1e-6))[..., None]


def outside(place: Float[Array, "*b 2"]) -> Bool[Array, "*b"]:
    """Whether it is beyond a line of the pitch."""
    return (jnp.abs(place[..., 0]) > LENGTH) | (jnp.abs(place[..., 1]) > WIDTH)


def soft(relative: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """Places near by in detail, those far away roughly; in (-1, 1)."""
    return relative / (jnp.abs(relative) + 10)


# --------------------------------------------------------------------------------------------------
# Players


def is_one(index: Int[Array, ""], count: int) -> Bool[Array, "count"]:
    """Which of ``count`` it is, if any."""
    return np.arange(count) == index


def earlier(hits: Bool[Array, "T"]) -> Bool[Array, "T"]:
    """Whether there was one before."""
    return jnp.cumsum(hits) - hits > 0


def others(rows: Float[Array, "n P 2"], n: int) -> Float[Array, "n M 2"]:
    """Of every own player, the rows of the mates."""
    mates = np.array([[j for j in range(n) if j != i] for i in range(n)], np.int32).reshape(n, n - 1)
    return rows[np.arange(n)[:, None], mates]


def receiver(
    state: Play, mine: Bool[Array, "n"], facing: Float[Array, "2"], short: Bool[Array, ""]
) -> Bool[Array, "n"]:
    """Who is passed to: the mate best in line with where one faces; short passes mind how far."""
    n = mine.shape[0]
    way = state.position[:n] - state.ball
    far = length(way)
    fit = jnp.sum(unit(way) * facing, axis=1) - jnp.where(short, far / 90, 0.0)
    return is_one(jnp.argmax(jnp.where(mine, -jnp.inf, fit)), n)


def sticky(state: Play, action: Action) -> Play:
    """Directions, sprinting and dribbling stay on until released."""
    moves = (action >= 1) & (action < len(WAYS))
    held = jnp.where(action == RELEASE_DIRECTION, 0, state.direction)
    return state._replace(
        direction=jnp.where(moves, action, held).astype(jnp.int32),
        sprint=(state.sprint | (action == SPRINT)) & (action != RELEASE_SPRINT),
        dribble=(state.dribble | (action == DRIBBLE)) & (action != RELEASE_DRIBBLE),
    )
