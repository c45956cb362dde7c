"""What hunts on a grid share: cells, who stands where, what is near, and how two go after one.

Everybody moves one after the other into free cells. A place is one number, ``row * size + column``, or
-1 for who has left the grid. ``P`` prey, ``W`` cells of a window, besides the letters of
:mod:`tad_envs.types`. A window is 25 bits of a word until it is shown. Sums and the like run over the
first axis of small tables, never the last: compiled for a CPU, that is several times as fast.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from tad_envs.scene import Scene, board, pieces
from tad_envs.struct import require
from tad_envs.types import Key, Observation, TimeStep

RIGHT, DOWN, LEFT, UP, STAY, CATCH = range(6)
STEPS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 0]], np.int32)
"""Row and column of a move, in the order of the actions; staying last."""
SIGHT = 2
SIDE = 2 * SIGHT + 1
WINDOW = SIDE**2
BESIDE = sum(1 << ((SIGHT + row) * SIDE + SIGHT + column) for row, column in STEPS[:STAY].tolist())
"""The cells of a window that are one move away: bits of :meth:`Grid.views`."""
_FAR = 10_000


class Hunt(NamedTuple):
    """State of the hunts."""

    agents: Int[Array, "N"]
    """Cells; -1 who has left."""
    prey: Int[Array, "P"]
    """Cells; -1 who is caught."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


class Grid(NamedTuple):
    """A square grid, bounded or closed to a torus."""

    size: int
    toroidal: bool = False

    def places(self, cells: Int[Array, "*n"]) -> tuple[Int[Array, "*n"], Int[Array, "*n"]]:
        """Rows and columns: apart, since to reduce over an axis of two is slow."""
        return cells // self.size, cells % self.size

    def between(self, one: Int[Array, "n"], other: Int[Array, "m"]) -> tuple[Array, Array]:
        """Rows and columns from ``one`` to ``other``, ``[n, m]``; the short way round on a torus."""
        (row, column), (to_row, to_column) = self.places(one), self.places(other)
        return self._short(to_row - row[:, None]), self._short(to_column - column[:, None])

    def _short(self, way: Array) -> Array:
        half = self.size // 2
        return (way + half) % self.size - half if self.toroidal else way

    def targets(self, cells: Int[Array, "n"]) -> Int[Array, "n 5"]:
        """Where each move would lead; -1 outside, and for who has left."""
        rows, columns = (
            place[:, None] + step for place, step in zip(self.places(cells), STEPS.T, strict=True)
        )
        return self._cells(rows, columns, cells[:, None] >= 0)

    def onward(self, cells: Int[Array, "n ..."], action: Int[Array, "..."]) -> Int[Array, "n ..."]:
        """Where an action would lead; -1 outside, and for who has left. Shapes are broadcast."""
        rows, columns = self.places(cells)
        rows += (action == DOWN).astype(jnp.int32) - (action == UP)
        columns += (action == RIGHT).astype(jnp.int32) - (action == LEFT)
        return self._cells(rows, columns, cells >= 0)

    def _cells(self, rows: Array, columns: Array, present: Array) -> Array:
        if self.toroidal:
            rows, columns = rows % self.size, columns % self.size
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return jnp.where(inside & present, rows * self.size + columns, -1)

    def distance(self, one: Int[Array, "n"], other: Int[Array, "m"]) -> Int[Array, "n m"]:
        """Moves between cells; far from and to who has left."""
        rows, columns = self.between(one, other)
        here = (one[:, None] >= 0) & (other >= 0)
        return jnp.where(here, jnp.abs(rows) + jnp.abs(columns), _FAR)

    def views(self, one: Int[Array, "n"], *groups: Int[Array, "_"]) -> list[UInt32[Array, "n"]]:
        """Who is in the 5x5 window around each of ``one``: a bit per cell, and a word per group."""
        others = jnp.concatenate(groups)
        (row, column), (to_row, to_column) = self.places(one), self.places(others)
        rows, columns = self._short(to_row[:, None] - row), self._short(to_column[:, None] - column)
        near = (jnp.abs(rows) <= SIGHT) & (jnp.abs(columns) <= SIGHT)
        near &= (one >= 0) & (others >= 0)[:, None]
        cell = ((rows + SIGHT) * SIDE + columns + SIGHT).astype(jnp.uint32)
        bits = jnp.where(near, jnp.uint32(1) << cell, jnp.uint32(0))
        parts = jnp.split(bits, np.cumsum([len(group) for group in groups[:-1]]))
        # No two are in the same cell: the sum is the union.
        return [jnp.sum(part, axis=0, dtype=jnp.uint32) for part in parts]

    def centred(self, cells: Int[Array, "n"]) -> list[Float[Array, "n"]]:
        """Rows and columns scaled to [-1, 1]; 0 for who has left."""
        scale = 2 / (self.size - 1)
        return [jnp.where(cells >= 0, place * scale - 1, 0.0) for place in self.places(cells)]

    def everybody(self, state: Hunt) -> Float[Array, "S"]:
        """Place and presence of all: the global state."""
        cells = jnp.concatenate([state.agents, state.prey])
        present = (cells >= 0).astype(jnp.float32)
        row, column, present = (x[:, None] for x in (*self.centred(cells), present))
        which = np.arange(3)
        return jnp.where(which == 0, row, jnp.where(which == 1, column, present)).reshape(-1)


def seen(views: list[UInt32[Array, "n"]]) -> Float[Array, "n F"]:
    """Windows as features, one group after the other."""
    feature = np.arange(WINDOW * len(views))
    words = views[0][:, None]
    for group, view in enumerate(views[1:], 1):
        words = jnp.where(feature < group * WINDOW, words, view[:, None])
    return ((words >> (feature % WINDOW).astype(np.uint32)) & 1).astype(jnp.float32)


# --------------------------------------------------------------------------------------------------
# One after the other


def ranks(noise: Float[Array, "n"]) -> Int[Array, "n"]:
    """Whose turn it is when: a random order."""
    index = np.arange(noise.shape[0])
    earlier = (noise[:, None] < noise) | ((noise[:, None] == noise) & (index[:, None] < index))
    return jnp.sum(earlier, axis=0)


def moved(
    cells: Int[Array, "n"], target: Int[Array, "n"], others: Int[Array, "m"], rank: Int[Array, "n"]
) -> Int[Array, "n"]:
    """One after the other moves to its target, if that is a free cell."""
    target = jnp.where(jnp.any(others[:, None] == target, axis=0), -1, target)

    def move(turn: Array, cells: Array) -> Array:
        mine = rank == turn
        wanted = jnp.max(jnp.where(mine, target, -1))
        taken = (wanted < 0) | jnp.any(cells == wanted)
        return jnp.where(mine & ~taken, wanted, cells)

    return jax.lax.fori_loop(0, cells.shape[0], move, cells)


def distinct(noise: Float[Array, "n"], cells: int) -> Int[Array, "n"]:
    """Cells without repetition, uniformly: each is the k-th one that is still free."""
    count = noise.shape[0]
    steps = np.arange(count)

    def place(turn: Array, drawn: Array) -> Array:
        left = cells - turn
        kth = jnp.minimum((noise[turn] * left).astype(jnp.int32), left - 1)
        candidate = kth + steps
        before = jnp.sum(drawn <= candidate[:, None], axis=1)  # drawn ones not yet are beyond all
        first = jnp.argmax(before == steps)
        return drawn.at[turn].set(kth + first)

    return jax.lax.fori_loop(0, count, place, jnp.full(count, cells, jnp.int32))


def chase(
    grid: Grid, key: Key, state: Hunt, close: Array, hold: int
) -> tuple[Int[Array, "N"], Bool[Array, "N"], Int[Array, ""]]:
    """Two hunters after the prey that the second of them reaches first; everybody else holds back.

    Returns moves, who hunts, and how far the second hunter is. Hunters come as near as 1 if ``close``
    and the other too, else as near as ``hold``.
    """
    apart = grid.distance(state.prey, state.agents)
    order = jnp.sum((apart[:, None] < apart[..., None]) | _tied_before(apart), axis=2)
    second = jnp.sum(jnp.where(order == 1, apart, 0), axis=1)
    target = jnp.argmin(second)
    hunts = order[target] < 2
    near = jnp.where(close & (second[target] <= hold), 1, hold)
    leads = grid.targets(state.agents)
    occupied = jnp.concatenate([state.agents, state.prey])
    free = ~jnp.any(leads[:, :4, None] == occupied, axis=2) & (leads[:, :4] >= 0)
    away = grid.distance(leads.reshape(-1), state.prey).reshape(*leads.shape, -1)
    miss = jnp.where(hunts[:, None], jnp.abs(away[..., target] - near), _shy(away))
    score = miss + 0.5 * jax.random.uniform(key, miss.shape)
    score = score.at[:, :4].add(jnp.where(free, 0.0, _FAR))
    return jnp.argmin(score, axis=1).astype(jnp.int32), hunts, second[target]


def _tied_before(apart: Int[Array, "P N"]) -> Bool[Array, "P N N"]:
    index = np.arange(apart.shape[1])
    return (apart[:, None] == apart[..., None]) & (index < index[:, None])


def _shy(away: Int[Array, "N 5 P"]) -> Int[Array, "N 5"]:
    """How much too near a place is to any prey, for who does not hunt."""
    return jnp.max(jnp.maximum(2 - away, 0), axis=2)


def scene_of(size: int, state: Hunt, title: str) -> Scene:
    """The grid and who is on it."""
    points = pieces("agent", np.asarray(state.agents), size)
    return board(size, size, points + pieces("prey", np.asarray(state.prey), size, False), title)


# --------------------------------------------------------------------------------------------------
# Construction


def check_sizes(size: int, n_agents: int, n_prey: int, horizon: int) -> None:
    """Refuse what cannot be played."""
    require(size >= 3, f"size={size} must be at least 3.")
    require(n_agents >= 2, f"n_agents={n_agents} must be at least 2: nobody catches anything alone.")
    require(n_prey >= 1, f"n_prey={n_prey} must be at least 1.")
    require(horizon >= 1, f"horizon={horizon} must be at least 1.")
    require(
        n_agents + n_prey <= size**2,
        f"n_agents={n_agents} and n_prey={n_prey} need more cells than size={size} has.",
    )


def time_step(
    observation: Observation,
    reward: Array,
    terminated: Bool[Array, ""],
    expired: Bool[Array, ""],
    info: dict[str, Array],
) -> TimeStep:
    """What a step led to; ``expired`` tells that time is over."""
    info = {name: value.astype(jnp.float32) for name, value in info.items()}
    over = expired & ~terminated
    return TimeStep(observation, reward.astype(jnp.float32), terminated, over, info)
