"""Players of :mod:`tad_envs.football` that follow a script: with and without passing.

They see all of the state, and are something to compare learners with rather than the best that can be
done. Numbers of theirs may be traced, so that a search over them is one program.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs.football_pitch import (
    MOUTH,
    RELEASE_DIRECTION,
    SHORT_PASS,
    SHOT,
    SPRINT,
    WAYS,
    Play,
    length,
    receiver,
    unit,
)
from tad_envs.struct import Real

_WAYS = WAYS[1:]


def scripted(
    n: int,
    state: Play,
    *,
    passes: bool,
    shoot: Real = 10.0,
    near: Real = 7.0,
    wide: Real = 6.0,
    dodge: Real = 0.7,
) -> Int[Array, "n"]:
    """One action of each of the ``n`` own players.

    Who has the ball shoots within ``shoot`` metres of the goal; passes, if an opponent is within
    ``near`` metres and a mate stands clear; else runs for the goal, around opponents as much as
    ``dodge`` says. A free ball is fetched by the player nearest to where it will be; all others run
    level with the ball, ``wide`` metres to either side.
    """
    own, rivals = state.position[:n], state.position[n:]
    index = np.arange(n)
    mine = index == state.owner
    coming = state.ball + 0.4 * state.ball_velocity
    fetch = (index == jnp.argmin(length(own - coming))) & (state.owner < 0)
    side = jnp.where(own[:, 1] >= 0, 1.0, -1.0) * wide
    x = jnp.clip(state.ball[0] + 3.0, 0.0, 46.0)
    spot = jnp.stack([jnp.broadcast_to(x, (n,)), side], axis=1)
    to_spot = jnp.where(fetch[:, None], coming, spot) - own
    to_goal = MOUTH - own
    wish = jnp.where(mine[:, None], to_goal, to_spot)
    value = unit(wish) @ _WAYS.T - jnp.where(mine[:, None], dodge * _danger(own, rivals), 0.0)
    way = 1 + jnp.argmax(value, axis=1)
    arrived = ~mine & (length(wish) < 1.0)
    going = jnp.where(state.direction == way, jnp.where(state.sprint, 0, SPRINT), way)
    action = jnp.where(arrived, jnp.where(state.direction > 0, RELEASE_DIRECTION, 0), going)

    if passes and n > 1:
        mate, clear = _open_mate(n, state, mine)
        pressed = jnp.min(length(rivals - state.ball)) < near
        to_mate = jnp.sum(jnp.where(mate[:, None], own, 0.0), axis=0) - state.ball
        turn = 1 + jnp.argmax(_WAYS @ unit(to_mate))
        facing = jnp.sum(jnp.where(mine[:, None], state.facing, 0.0), axis=0)
        faces = jnp.any(mate & receiver(state, mine, facing, jnp.ones((), bool)))
        give = jnp.where(faces, SHORT_PASS, turn)
        action = jnp.where(mine & pressed & clear, give, action)
    action = jnp.where(mine & (length(to_goal) < shoot), SHOT, action)
    return action.astype(jnp.int32)


def _danger(own: Float[Array, "n 2"], rivals: Float[Array, "m 2"]) -> Float[Array, "n 8"]:
    """How much of each way leads into opponents within six metres."""
    between = rivals - own[:, None]
    close = jnp.clip(1 - length(between) / 6, 0.0, 1.0)
    facing = jnp.maximum(unit(between) @ _WAYS.T, 0.0)
    return jnp.sum(close[..., None] * facing, axis=1)


def _open_mate(n: int, state: Play, mine: Bool[Array, "n"]) -> tuple[Bool[Array, "n"], Bool[Array, ""]]:
    """The mate nearest to the goal, less so with an opponent by the way; whether none is."""
    own, rivals = state.position[:n], state.position[n:]
    way = own - state.ball
    along = jnp.sum((rivals - state.ball) * way[:, None], axis=2)
    share = jnp.clip(along / jnp.maximum(jnp.sum(way**2, axis=1), 1e-6)[:, None], 0.0, 1.0)
    lane = jnp.min(length(rivals - state.ball - share[..., None] * way[:, None]), axis=1)
    score = jnp.minimum(lane, 4.0) - length(MOUTH - own) / 5
    best = np.arange(n) == jnp.argmax(jnp.where(mine, -jnp.inf, score))
    return best, jnp.any(best & (lane > 1.5))
