"""The robotic warehouse: robots bring requested shelves to the goals, and get in each other's way.

After Papoudakis et al. 2021 (RWARE). Shelves stand in blocks two wide between highways, corridors of
one cell; two goals lie in the middle of the last row, behind a free stretch to queue in. A robot does
nothing (0), goes forward (1), turns left (2) or right (3), or toggles its load (4): it lifts the shelf
above it, or puts its own down, which it may off the highways only. Robots without a load pass beneath
shelves, others do not. A requested shelf that reaches a goal pays the team 1, and another one, which
is not requested yet, is requested in its place. Time runs out after 500 steps.

Who moves is ``rules``:

* ``"rware"`` (robotic-warehouse 2, EPyMARL): all at once. Robots that want into one another's cells
  form queues and rings. A ring of three or more turns; two do not swap. Of the queues that end in one
  free cell the longest moves up (of equals, that whose front robot has the lower index; upstream leaves
  it to the order of a hash table), and all others stay.
* ``"terminate"``: the same, and the task ends where a robot is kept from moving by another.
* ``"jumanji"`` (1.1.2, Mava): one after another. The task ends when two share a cell, when one goes
  where a robot of higher index has just left, or when two swap. Whoever carries a load cannot enter a
  cell that a shelf stands in or is carried in. Whoever carries a load off the highways and does nothing
  (or what is not legal) puts it down. What upstream calls the end by time is truncation here.

A view has 8 numbers of oneself (place, load, direction, on a highway) and of each of the 9 cells around
whether a robot is there (1) and its direction (4), whether a shelf is and whether it is requested (2):
71. Under ``"jumanji"``, without a robot in the own cell and ordered otherwise: 66. Places are divided
by the last row and column. As upstream, an empty cell shows the direction up, except ``"jumanji"``.

``S`` shelves, ``Q`` requests, ``C`` cells in sight, besides the letters of :mod:`tad_envs.types`.
"""

import functools
import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs.scene import Point, Scene, board
from tad_envs.struct import lookup, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Rules = Literal["rware", "jumanji", "terminate"]

SIZES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
"""Blocks of shelves, in rows and columns."""
REQUESTS = {"easy": 2.0, "normal": 1.0, "hard": 0.5}
"""Requested shelves per robot."""
AGENTS = (2, 4, 6, 8)
"""Robots of the named tasks."""

_FORWARD, _LEFT, _RIGHT, _TOGGLE = 1, 2, 3, 4
_ACTIONS = 5
_AHEAD = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)
"""Rows and columns of a step up, right, down, left: directions 0 to 3, clockwise."""
_SHOWN = np.array([0, 2, 3, 1])
"""Order of the directions in a view: up, down, left, right."""
_GOALS = 2


class Floor(NamedTuple):
    """State of :class:`Warehouse`. Shelves are alike but for whether they are requested."""

    position: Int[Array, "N 2"]
    """Row and column."""
    direction: Int[Array, "N"]
    """Up, right, down, left."""
    carrying: Bool[Array, "N"]
    """Whether a robot carries a shelf."""
    carries_wanted: Bool[Array, "N"]
    """Whether that shelf is requested."""
    stored: Bool[Array, "S"]
    """Whether a shelf stands at each of the places for shelves, row by row."""
    wanted: Bool[Array, "S"]
    """Whether that shelf is requested."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


class _Layout(NamedTuple):
    """The building: arrays of the host, made once for a size."""

    shape: tuple[int, int]
    places: np.ndarray
    """Cells for shelves, counted row by row, ``[S]``."""
    place: np.ndarray
    """Of each cell, which of these it is; their number if it is a highway."""
    goals: np.ndarray
    """Cells, ``[2]``."""


@functools.cache
def _layout(rows: int, columns: int, height: int) -> _Layout:
    shape = ((height + 1) * rows + 2, 3 * columns + 1)
    r, c = np.indices(shape)
    middle = shape[1] // 2
    queue = (r > shape[0] - (height + 3)) & ((c == middle - 1) | (c == middle))
    highway = (c % 3 == 0) | (r % (height + 1) == 0) | (r == shape[0] - 1) | queue
    last = (shape[0] - 1) * shape[1]
    goals = np.array([last + middle - 1, last + middle])
    places = np.flatnonzero(~highway)
    place = np.full(highway.size, len(places), np.int32)
    place[places] = np.arange(len(places))
    return _Layout(shape, places, place, goals)


@struct
class Warehouse:
    """Deliver requested shelves; see the module.

    The state lists place, direction, load and request of each robot, and for every place of a shelf
    whether one stands there and whether it is requested.
    """

    rows: int = 1
    """Blocks of shelves from top to bottom."""
    columns: int = 3
    """Blocks from left to right, odd."""
    height: int = 8
    """Shelves from top to bottom of a block."""
    n_agents: int = 2
    requests: int = 2
    """Shelves requested at any time."""
    sight: int = 1
    """How many cells away things are seen."""
    rules: Rules = "rware"
    horizon: int = 500
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("rows", "columns", "height", "n_agents", "requests", "sight", "horizon"):
            value = getattr(self, field)
            require(value >= 1, f"{field}={value} must be at least 1.")
        require(self.columns % 2 == 1, f"columns={self.columns} must be odd.")
        shelves = len(self._layout.places)
        require(
            self.requests < shelves, f"requests={self.requests} must be below the {shelves} shelves."
        )
        require(self.n_agents <= shelves, f"n_agents={self.n_agents} must be at most {shelves} here.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        cells = (1 + 2 * self.sight) ** 2
        ends = self.rules != "rware"
        return Spec(
            n_agents=self.n_agents,
            obs_dim=8 + 7 * cells - (5 if self.rules == "jumanji" else 0),
            state_dim=8 * self.n_agents + 2 * len(self._layout.places),
            horizon=self.horizon,
            n_actions=_ACTIONS,
            terminates=ends,
            order_dependent=True,
            reset_pool=min(self.horizon, 20) if ends else self.horizon,
        )

    @property
    def _layout(self) -> _Layout:
        return _layout(self.rows, self.columns, self.height)

    def reset(self, key: Key) -> tuple[Floor, Observation]:
        """Draw robots' cells and directions and what is requested."""
        layout, n = self._layout, self.n_agents
        cells, shelves = len(layout.place), len(layout.places)
        drawn = jax.random.uniform(key, (cells + shelves + n,))
        cell = _first(drawn[:cells], n)
        wanted = _first(drawn[cells : cells + shelves], self.requests)
        none = jnp.zeros(n, bool)
        state = Floor(
            position=jnp.stack([cell // layout.shape[1], cell % layout.shape[1]], axis=1),
            # Uniform numbers are below 1, but the product may round up to 4.
            direction=jnp.minimum((drawn[cells + shelves :] * 4).astype(jnp.int32), 3),
            carrying=none,
            carries_wanted=none,
            stored=jnp.ones(shelves, bool),
            wanted=jnp.any(wanted[:, None] == np.arange(shelves), axis=0),
            clock=jnp.zeros((), jnp.int32),
        )
        return state, self.observe(state)

    def step(self, key: Key, state: Floor, action: Action) -> tuple[Floor, TimeStep]:
        """Move, turn, lift and put down; truncated at the horizon. Draws the new requests."""
        cell, target = self._cells(state.position), self._target(state)
        standing = self._standing(state, target) > 0
        if self.rules == "jumanji":
            obstructed = self._obstructed(state, target, standing) & (action == _FORWARD)
            action = jnp.where(obstructed, 0, action)
            forward = action == _FORWARD
            moved, collided = forward, _collided(cell, target, forward)
        else:
            forward = (action == _FORWARD) & ~(state.carrying & standing) & (target != cell)
            moved = resolve(cell, jnp.where(forward, target, cell)) & forward
            collided = jnp.any(forward & ~moved)
        width = self._layout.shape[1]
        arrived = jnp.where(moved, target, cell)
        turn = (action == _RIGHT).astype(jnp.int32) - (action == _LEFT).astype(jnp.int32)
        state = self._loaded(state, cell, action)._replace(
            position=jnp.stack([arrived // width, arrived % width], axis=1),
            direction=(state.direction + turn) % 4,
            clock=jnp.minimum(state.clock + 1, self.horizon),
        )
        state, delivered = self._delivered(key, state, arrived)
        ends = self.rules != "rware"
        terminated = collided if ends else jnp.zeros((), bool)
        over = (state.clock >= self.horizon) & ~terminated
        info = {"collided": collided} if ends else {}
        reward = delivered.astype(jnp.float32)
        return state, TimeStep(self.observe(state), reward, terminated, over, info)

    def _cells(self, position: Int[Array, "*b 2"]) -> Int[Array, "*b"]:
        return position[..., 0] * self._layout.shape[1] + position[..., 1]

    def _target(self, state: Floor) -> Int[Array, "N"]:
        """The cell ahead of each robot; its own at the wall."""
        facing = state.direction[:, None] == np.arange(4)
        ahead = jnp.sum(jnp.where(facing[..., None], _AHEAD, 0), axis=1)
        last = np.array(self._layout.shape) - 1
        return self._cells(jnp.clip(state.position + ahead, 0, last))

    def _standing(self, state: Floor, cell: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """0 for no shelf at a cell, 1 for one that stands there, 2 for one that is requested."""
        place = _looked_up(jnp.asarray(self._layout.place), cell)
        return _looked_up(self._codes(state), place)

    def _codes(self, state: Floor) -> Int[Array, "K"]:
        """The same for each place, and 0 for where there is no place."""
        return jnp.append(jnp.where(state.stored, 1 + state.wanted.astype(jnp.int32), 0), 0)

    def _obstructed(
        self, state: Floor, target: Int[Array, "N"], standing: Bool[Array, "N"]
    ) -> Bool[Array, "N"]:
        """Whose load would meet another shelf ahead; for jumanji's rules."""
        cell = self._cells(state.position)
        carried = jnp.any((target[:, None] == cell) & state.carrying, axis=1)
        return state.carrying & (standing | carried) & (target != cell)

    def _loaded(self, state: Floor, cell: Int[Array, "N"], action: Action) -> Floor:
        """Shelves lifted and put down."""
        shelf = self._standing(state, cell)
        releases = action == _TOGGLE
        if self.rules == "jumanji":
            releases |= action == 0
        lifted = (action == _TOGGLE) & ~state.carrying & (shelf > 0)
        place = _looked_up(jnp.asarray(self._layout.place), cell)
        dropped = releases & state.carrying & (place < len(self._layout.places))
        # What is lifted leaves its place, and what is dropped comes to a place that is empty.
        changed = lifted | dropped
        request = (lifted & (shelf > 1)) | (dropped & state.carries_wanted)
        here = place[:, None] == np.arange(len(self._layout.places))  # [N, S]
        return state._replace(
            carrying=state.carrying ^ changed,
            carries_wanted=state.carries_wanted ^ request,
            stored=state.stored ^ jnp.any(here & changed[:, None], axis=0),
            wanted=state.wanted ^ jnp.any(here & request[:, None], axis=0),
        )

    def _delivered(self, key: Key, state: Floor, cell: Int[Array, "N"]) -> tuple[Floor, Int[Array, ""]]:
        """How many requested shelves are at the goals; others are requested for them."""
        shelves = len(self._layout.places)
        rest = shelves - self.requests
        choice = jnp.minimum((jax.random.uniform(key, (_GOALS,)) * rest).astype(jnp.int32), rest - 1)
        exists = jnp.concatenate([state.stored, state.carrying])
        wanted = jnp.concatenate([state.wanted, state.carries_wanted])
        place = jnp.concatenate([jnp.full(shelves, -1), cell])
        count = jnp.zeros((), jnp.int32)
        for goal, index in zip(self._layout.goals, choice, strict=True):  # one after the other
            brought = wanted & (place == goal)
            served = jnp.any(brought)
            free = exists & ~wanted
            chosen = np.arange(free.shape[0]) == _numbered(free, index)
            wanted = (wanted & ~brought) | (chosen & served)
            count += served
        state = state._replace(wanted=wanted[:shelves], carries_wanted=wanted[shelves:])
        return state, count

    # --- what is seen ---------------------------------------------------------------------------

    def observe(self, state: Floor) -> Observation:
        """Each robot's surroundings; all robots and shelves as the state."""
        n = self.n_agents
        legal = jnp.ones((n, _ACTIONS), bool)
        if self.rules == "jumanji":
            target = self._target(state)
            blocked = self._obstructed(state, target, self._standing(state, target) > 0)
            legal &= ~(blocked[:, None] & (np.arange(_ACTIONS) == _FORWARD))
        return Observation(
            agents=self._views(state),
            state=self._global_state(state),
            legal=legal,
            alive=jnp.ones(n, bool),
        )

    def _facing(self, state: Floor) -> Float[Array, "N 4"]:
        return (state.direction[:, None] == self._directions).astype(jnp.float32)

    @property
    def _directions(self) -> np.ndarray:
        """Their order in a view."""
        return np.arange(4) if self.rules == "jumanji" else _SHOWN

    def _places(self, state: Floor) -> Float[Array, "N 2"]:
        scaled = state.position / (np.array(self._layout.shape, np.float32) - 1)
        return scaled if self.rules == "jumanji" else scaled[:, ::-1]

    def _views(self, state: Floor) -> Float[Array, "N O"]:
        n, layout = self.n_agents, self._layout
        reach = np.arange(-self.sight, self.sight + 1)
        window = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
        # Cells are numbered with a margin, in which there is nothing.
        stride = layout.shape[1] + 2 * self.sight
        margin = np.pad(
            layout.place.reshape(layout.shape), self.sight, constant_values=len(layout.places)
        )
        cell = (state.position + self.sight) @ np.array([stride, 1])
        around = cell[:, None] + window @ np.array([stride, 1])  # [N, C]
        standing = _looked_up(self._codes(state), _looked_up(jnp.asarray(margin.ravel()), around))
        # Of who is there: direction, load and its request as bits of one number; -1 for nobody.
        robots = state.direction + 4 * state.carrying + 8 * state.carries_wanted
        who = jnp.max(jnp.where(around[..., None] == cell, robots, -1), axis=2)
        robot = who >= 0
        facing = self._facing(state)
        heading = robot[..., None] & ((who & 3)[..., None] == self._directions)  # [N, C, 4]
        shelf = (standing > 0) | (robot & (who & 4 > 0))
        wanted = (standing > 1) | (robot & (who & 8 > 0))
        place = _looked_up(jnp.asarray(layout.place), self._cells(state.position))
        highway = place == len(layout.places)
        own = [
            self._places(state),
            state.carrying[:, None],
            facing,
            highway[:, None],
        ]
        if self.rules == "jumanji":
            others = np.arange(len(window)) != len(window) // 2
            seen = jnp.concatenate([robot[..., None], heading], axis=2)[:, others]
            shelves = jnp.stack([shelf, wanted], axis=2)
            parts = [*own, seen.reshape(n, -1), shelves.reshape(n, -1)]
        else:
            heading |= ~robot[..., None] & (self._directions == 0)
            of_cell = [robot[..., None], heading, shelf[..., None], wanted[..., None]]
            parts = [*own, jnp.concatenate(of_cell, axis=2).reshape(n, -1)]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)

    def _global_state(self, state: Floor) -> Float[Array, "S"]:
        """All but the clock, whose last value no critic is taught; see :mod:`tad_envs.mpe`."""
        parts = [self._places(state), self._facing(state), state.carrying, state.carries_wanted]
        parts += [state.stored, state.wanted]
        return jnp.concatenate([part.astype(jnp.float32).reshape(-1) for part in parts])

    def scene(self, state: Floor) -> Scene:
        """Shelves, requested ones in their colour, goals, and robots with where they look."""
        (rows, columns), places, goals = self._layout.shape, self._layout.places, self._layout.goals
        cells = zip(places, state.stored, state.wanted, strict=True)
        shelves = [
            Point("requested" if wanted else "shelf", cell % columns, cell // columns)
            for cell, stored, wanted in cells
            if stored
        ]
        exits = [Point("goal", goal % columns, goal // columns) for goal in goals]
        robots = []
        for (r, c), looks, carries, wanted in zip(*state[:4], strict=True):
            if carries:
                shelves.append(Point("requested" if wanted else "shelf", c, r, radius=0.45))
            robots.append(Point("agent", c, r, "↑→↓←"[looks]))
        return board(rows, columns, [*exits, *shelves, *robots])


# --------------------------------------------------------------------------------------------------
# Who moves


def resolve(cell: Int[Array, "N"], target: Int[Array, "N"]) -> Bool[Array, "N"]:
    """Who gets to its target when all move at once; those whose target is their own cell do not.

    ``behind[i, j]``: robot j wants the cell of robot i. A robot follows one other at most, so that
    robots form rings with queues before them, and queues before free cells or robots that stay.
    """
    n = cell.shape[0]
    itself = np.eye(n, dtype=bool)
    behind = (cell[:, None] == target) & ~itself
    stays = cell == target
    length = jnp.ones(n, jnp.int32)  # robots in the longest queue up to each
    for _ in range(n - 1):
        length = 1 + jnp.max(jnp.where(behind, length, 0), axis=1, initial=0)
    index = np.arange(n)
    longer = (length[:, None] < length) | ((length[:, None] == length) & (index < index[:, None]))
    rivals = (target[:, None] == target) & ~itself
    first = ~stays & ~jnp.any(rivals & longer, axis=1)
    before = behind.T  # [i, j]: robot i wants the cell of robot j
    moves = first & ~jnp.any(before, axis=1)
    for _ in range(n - 1):
        moves |= first & jnp.any(before & moves, axis=1)
    ring = before
    reach = 1
    while reach < n:  # where everybody is after so many steps from robot to robot
        ring = jnp.any(ring[:, :, None] & ring[None], axis=1)
        reach *= 2
    swaps = jnp.any(before & behind, axis=1)
    return moves | (jnp.any(ring, axis=0) & ~swaps)


def _collided(
    cell: Int[Array, "N"], target: Int[Array, "N"], forward: Bool[Array, "N"]
) -> Bool[Array, ""]:
    """Whether any robot is not found where it is after all moved one after another (jumanji).

    A robot that goes forward wipes its old cell and marks its new one, over whatever is marked there.
    """
    n = cell.shape[0]
    now = jnp.where(forward, target, cell)[:, None]
    later = np.arange(n) > np.arange(n)[:, None]
    wiped = forward & ((target == now) | (cell == now)) & later
    marked = forward & (target == now) & ~forward[:, None] & ~np.eye(n, dtype=bool)
    return jnp.any(wiped | marked)


def _numbered(true: Bool[Array, "K"], number: Int[Array, ""]) -> Int[Array, ""]:
    """Where the entry lies that is true and has so many true ones before it: first its row of 16."""
    width = 16
    rows = jnp.pad(true, (0, -true.shape[0] % width)).reshape(-1, width).astype(jnp.int32)
    count = jnp.sum(rows, axis=1)
    upto = jnp.sum(jnp.where(np.tri(len(count), dtype=bool), count, 0), axis=1)
    row = jnp.sum(upto <= number)
    earlier = jnp.sum(jnp.where(upto <= number, count, 0))
    cells = jnp.sum(jnp.where(np.arange(len(count))[:, None] == row, rows, 0), axis=0)
    upto = jnp.sum(jnp.where(np.tri(width, dtype=bool), cells, 0), axis=1)
    return row * width + jnp.sum(earlier + upto <= number)


def _looked_up(table: Int[Array, "K"], index: Int[Array, "*b"]) -> Int[Array, "*b"]:
    return table.at[index].get(mode="promise_in_bounds")


def _first(order: Float[Array, "K"], count: int) -> Int[Array, "count"]:
    """The ``count`` entries that come first in a random order: so many without repetition."""

    def take(order: Array, _: None) -> tuple[Array, Array]:
        chosen = jnp.argmax(order).astype(jnp.int32)
        return jnp.where(np.arange(order.shape[0]) == chosen, -1.0, order), chosen

    return jax.lax.scan(take, order, length=count)[1]


# --------------------------------------------------------------------------------------------------
# By name


def warehouse(
    *,
    size: str = "tiny",
    n_agents: int = 2,
    requests: int | None = None,
    height: int = 8,
    sight: int = 1,
    rules: Rules = "rware",
    horizon: int = 500,
) -> Warehouse:
    """A warehouse of the given size (``tiny``, ``small``, ``medium``, ``large``); a request a robot."""
    rows, columns = lookup(SIZES, size, "size")
    return Warehouse(
        rows=rows,
        columns=columns,
        height=height,
        n_agents=n_agents,
        requests=n_agents if requests is None else requests,
        sight=sight,
        rules=rules,
        horizon=horizon,
    )


def scenarios() -> list[str]:
    """Names of the tasks: size, robots, and how many shelves are requested."""
    levels = ["" if level == "normal" else f"-{level}" for level in REQUESTS]
    return [f"{size}-{n}ag{level}" for size in SIZES for n in AGENTS for level in levels]


def scenario(text: str, *, rules: Rules = "rware", horizon: int = 500) -> Warehouse:
    """The task that robotic-warehouse calls ``text``, e.g. ``tiny-4ag-easy``."""
    found = re.fullmatch(r"([a-z]+)-(\d+)ag(?:-([a-z]+))?", text)
    require(found is not None, f"{text!r} is no scenario such as 'tiny-4ag-easy'.")
    size, agents, level = found.groups() if found else ("", "", "")
    requests = int(int(agents) * lookup(REQUESTS, level or "normal", "difficulty"))
    return warehouse(size=size, n_agents=int(agents), requests=requests, rules=rules, horizon=horizon)
