"""Traffic signals: the intersections of a grid of roads choose who may go, and queues must not grow.

A store-and-forward network of queues after the usual models of signal control (Varaiya 2013), with the
sizes and speeds of CityFlow. Every intersection is an agent. Each of its four approaches, told by where
vehicles are *heading* (north, east, south, west), is a link with a lane for those who turn left, go
straight on, or turn right. A step is 10 seconds, in which an agent gives green to one of

    0 north-south straight   1 north-south left   2 east-west straight   3 east-west left

while right turns always go. Then, all at once,

    out    = min(queue, saturation (10 s - ``lost`` if the phase changed, right turns exempt)),
             reduced so that no more enter a link than it has room for: 3 capacity - vehicles on it
    queue' = queue - out + (what has driven down the link) x (left, straight, right)
    border = min(backlog + arrivals, room), the rest waits outside as ``backlog``

and what enters a link joins a queue two steps later. Links that are full hold up the intersection
before them (spillback), and a jam around a block of streets can hold up itself: gridlock.

``vehicles="fluid"`` splits vehicles into fractions where they turn; ``"integer"`` draws each one's
turn, and serves them whole: where there is not room for all, first who goes straight, then left turns,
then right turns. Arrivals are Poisson, or ``"constant"``. A step draws once.

``R`` rows and ``C`` columns, row 0 in the north; 4 headings, 3 movements, besides the letters of
:mod:`tad_envs.types`.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.scene import Point, Scene
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Vehicles = Literal["fluid", "integer"]
Arrivals = Literal["poisson", "constant"]
Reward = Literal["queue", "pressure", "throughput"]

_SECONDS = 10.0
"""Of a step."""
_DRIVE = 2
"""Steps from one end of a link to the other."""
_LANES = 3
_PHASES = 4
_MOST = 16
"""Arrivals at a border in a step are cut off there: one in a million if four are expected."""
_DRAWN = 32
"""Vehicles that may reach the end of a link in one step, if each draws its turn."""
_ENDLESS = 1e9
"""Room outside."""
_GREEN = np.zeros((_PHASES, 4, _LANES), np.float32)
_GREEN[0, 0::2, 1] = _GREEN[1, 0::2, 0] = _GREEN[2, 1::2, 1] = _GREEN[3, 1::2, 0] = 1
"""Lanes that a phase lets go, right turns aside."""
_RIGHT = np.array([0, 0, 1], np.float32)
PLAN = (3, 1, 3, 1)
"""Steps of each phase in the fixed plan."""


class Streets(NamedTuple):
    """State of :class:`Traffic`; whole numbers if vehicles are."""

    queue: Float[Array, "4 3 R C"]
    """Vehicles that wait, by heading and movement."""
    pipe: Float[Array, "D 4 R C"]
    """Vehicles under way on a link; the last ones join the queue next."""
    backlog: Float[Array, "4 R C"]
    """Vehicles outside that found no room, at the border they come from."""
    phase: Int[Array, "R C"]
    held: Int[Array, "R C"]
    """Steps that the phase has lasted, up to ``min_green``."""
    spent: Float[Array, ""]
    """Sum over steps of all vehicles present."""
    served: Float[Array, ""]
    """Vehicles that have left."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


@struct
class Traffic:
    """Signals of ``rows`` x ``columns`` intersections; see the module.

    Roads begin empty, with everybody's phase 0. An agent sees, of its own intersection, the queues of
    its 12 lanes as shares of ``capacity``, the vehicles under way on its 4 links as shares of theirs
    and its phase; and the queues on the 4 links of each of the 4 neighbours, to the north, east, south
    and west, as shares of the link, -1 where there is no neighbour: 36 features. The state is all
    lanes, links, phases (and how long they have lasted if ``min_green`` asks), backlogs, and the share
    of the time that has gone by.

    ``reward``: ``"queue"``, minus the mean over lanes of who waits, those outside included;
    ``"pressure"``, minus the mean over intersections of ``|in - out|`` with the queues on its links
    and on those that leave it; ``"throughput"``, who left, per intersection. ``info``:
    ``travel_time``, the mean seconds per vehicle served, all those present included (Little's law),
    ``served``, ``longest`` (the longest queue of a lane) and ``backlog``.
    """

    demand_ns: Real = 0.16
    """Vehicles per second that arrive at each border from the north and the south, at most 0.5."""
    demand_ew: Real = 0.16
    """The same, from the east and the west."""
    capacity: Real = 40.0
    """Vehicles that fit on a lane."""
    saturation: Real = 0.5
    """Vehicles per second that a green lane serves."""
    lost: Real = 3.0
    """Seconds without service when a phase begins, in [0, 10]."""
    left: Real = 0.15
    """Share that turns left."""
    right: Real = 0.15
    """Share that turns right."""
    rows: int = 3
    columns: int = 3
    vehicles: Vehicles = "fluid"
    arrivals: Arrivals = "poisson"
    reward: Reward = "queue"
    min_green: int = 1
    """Steps that a phase lasts at least; any other is illegal before."""
    horizon: int = 360
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("rows", "columns", "min_green", "horizon"):
            value = getattr(self, field)
            require(value >= 1, f"{field}={value} must be at least 1.")
        require(self.rows * self.columns >= 2, "rows=1 and columns=1: one agent is no team.")
        ranges = {
            "demand_ns": (0.0, 0.5),
            "demand_ew": (0.0, 0.5),
            "capacity": (1.0, 1e4),
            "saturation": (0.0, 0.6),
            "lost": (0.0, _SECONDS),
            "left": (0.0, 0.5),
            "right": (0.0, 0.5),
        }
        for field, (low, high) in ranges.items():
            value = getattr(self, field)
            if finite.scalar_check(value):
                inside = low <= float(value) <= high
                require(inside, f"{field}={float(value):g} must lie in [{low:g}, {high:g}].")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        n = self.rows * self.columns
        each = 4 * _LANES + 4 * _DRIVE + _PHASES + 4 + (self.min_green > 1)
        return Spec(
            n_agents=n,
            obs_dim=4 * _LANES + 4 + _PHASES + 16,
            state_dim=each * n + 1,
            horizon=self.horizon,
            n_actions=_PHASES,
            terminates=False,
            order_dependent=True,
        )

    def reset(self, key: Key) -> tuple[Streets, Observation]:
        """Empty roads. Draws nothing."""
        del key
        state = self._empty()
        return state, self.observe(state)

    def _empty(self) -> Streets:
        grid = (self.rows, self.columns)
        return Streets(
            queue=jnp.zeros((4, _LANES, *grid)),
            pipe=jnp.zeros((_DRIVE, 4, *grid)),
            backlog=jnp.zeros((4, *grid)),
            phase=jnp.zeros(grid, jnp.int32),
            held=jnp.full(grid, self.min_green, jnp.int32),
            spent=jnp.zeros(()),
            served=jnp.zeros(()),
            clock=jnp.zeros((), jnp.int32),
        )

    def step(self, key: Key, state: Streets, action: Action) -> tuple[Streets, TimeStep]:
        """Ten seconds of traffic; truncated at the horizon."""
        came = 0 if self.arrivals == "constant" else 2 * (self.rows + self.columns)
        turned = 0 if self.vehicles == "fluid" else _DRAWN * state.pipe[-1].size
        uniform = jax.random.uniform(key, (came + turned,))
        joining = self._turning(uniform[came:], state.pipe[-1])
        return self._after(state, action, self._arriving(uniform[:came]), joining)

    def _after(
        self,
        state: Streets,
        action: Action,
        arriving: Float[Array, "4 R C"],
        joining: Float[Array, "4 3 R C"],
    ) -> tuple[Streets, TimeStep]:
        """The step, given who arrives and which lanes they join who reach the end of a link."""
        chosen = finite.one_hot(action, _PHASES) * self._legal(state)
        changed = jnp.sum(chosen * ~self._now(state), axis=1).reshape(state.phase.shape) > 0
        phase = jnp.where(changed, action.reshape(state.phase.shape), state.phase).astype(jnp.int32)
        room = _LANES * jnp.asarray(self.capacity) - _on_link(state)
        leaving = self._admitted(jnp.minimum(state.queue, self._served(phase, changed)), room)
        turned = jnp.sum(_by_exit(leaving), axis=0)
        waiting = state.backlog + arriving
        entering = jnp.minimum(waiting, jnp.maximum(room, 0.0)) * _border(phase.shape)
        streets = state._replace(
            queue=state.queue - leaving + joining,
            pipe=jnp.concatenate([(_onwards(turned) + entering)[None], state.pipe[:-1]]),
            backlog=waiting - entering,
            phase=phase,
            held=jnp.where(changed, 1, jnp.minimum(state.held + 1, self.min_green)),
            served=state.served + jnp.sum(turned * _outwards(phase.shape)),
            clock=jnp.minimum(state.clock + 1, self.horizon),
        )
        streets = streets._replace(spent=state.spent + self.present(streets))
        seconds = _SECONDS * streets.spent / jnp.maximum(streets.served, 1.0)
        info = {
            "travel_time": seconds,
            "served": streets.served,
            "longest": jnp.max(streets.queue),
            "backlog": jnp.sum(streets.backlog),
        }
        step = TimeStep(
            observation=self.observe(streets),
            reward=self._reward(streets, streets.served - state.served),
            terminated=jnp.zeros((), bool),
            truncated=streets.clock >= self.horizon,
            info=info,
        )
        return streets, step

    @staticmethod
    def present(state: Streets) -> Float[Array, ""]:
        """All vehicles: those that wait, drive, or stand outside."""
        return jnp.sum(state.queue) + jnp.sum(state.pipe) + jnp.sum(state.backlog)

    def _arriving(self, uniform: Float[Array, "B"]) -> Float[Array, "4 R C"]:
        """New vehicles at the border: Poisson by inverse CDF, one number for each way in."""
        demand = jnp.stack([jnp.asarray(self.demand_ns), jnp.asarray(self.demand_ew)])
        expected = _SECONDS * demand[:, None]
        if self.arrivals == "constant":
            border = _border((self.rows, self.columns))
            return jnp.asarray(jnp.tile(expected, (2, 1))[..., None] * border, jnp.float32)
        count = np.arange(_MOST)
        chance = jnp.exp(-expected) * expected**count / np.cumprod(np.maximum(count, 1.0))
        below = jnp.cumsum(chance, axis=1)
        split = 2 * self.columns
        ns = jnp.sum(uniform[:split, None] >= below[0], axis=1).reshape(2, self.columns)
        ew = jnp.sum(uniform[split:, None] >= below[1], axis=1).reshape(2, self.rows)
        down, across = (0, self.rows - 1), (0, self.columns - 1)
        return jnp.stack(
            [
                jnp.pad(ns[:1], (down[::-1], (0, 0))),
                jnp.pad(ew[:1].T, ((0, 0), across)),
                jnp.pad(ns[1:], (down, (0, 0))),
                jnp.pad(ew[1:].T, ((0, 0), across[::-1])),
            ]
        ).astype(jnp.float32)

    def _turning(
        self, uniform: Float[Array, "U"], ready: Float[Array, "4 R C"]
    ) -> Float[Array, "4 3 R C"]:
        """Which lanes they join who are at the end of a link."""
        if self.vehicles == "fluid":
            return ready[:, None] * self._shares()[:, None, None]
        each = uniform.reshape(_DRAWN, *ready.shape)
        there = np.arange(_DRAWN)[:, None, None, None] < ready
        lefts = jnp.sum(there & (each < self.left), axis=0)
        rights = jnp.sum(there & (each >= 1 - jnp.asarray(self.right)), axis=0)
        return jnp.stack([lefts, ready - lefts - rights, rights], axis=1)

    def _shares(self) -> Float[Array, "3"]:
        left, right = jnp.asarray(self.left), jnp.asarray(self.right)
        return jnp.stack([left, 1 - left - right, right]).astype(jnp.float32)

    def _served(self, phase: Int[Array, "R C"], changed: Bool[Array, "R C"]) -> Float[Array, "4 3 R C"]:
        """How many could leave each lane."""
        green = jnp.tensordot(_GREEN, finite.one_hot(phase, _PHASES), axes=((0,), (2,)))
        open_for = _SECONDS - jnp.asarray(self.lost) * changed
        most = jnp.asarray(self.saturation) * (green * open_for + _SECONDS * _RIGHT[:, None, None])
        return most if self.vehicles == "fluid" else jnp.floor(most + 1e-4)

    def _admitted(
        self, wanting: Float[Array, "4 3 R C"], room: Float[Array, "4 R C"]
    ) -> Float[Array, "4 3 R C"]:
        """Who may leave: no more than there is room for on the link ahead."""
        flows, ahead = _by_exit(wanting), _ahead(room, _ENDLESS)
        if self.vehicles == "fluid":
            share = jnp.maximum(ahead, 0.0) / jnp.maximum(jnp.sum(flows, axis=0), 1e-6)
            return _by_lane(flows * jnp.minimum(share, 1.0))
        left, straight, right = flows
        first = jnp.minimum(straight, ahead)
        second = jnp.minimum(left, ahead - first)
        return _by_lane(jnp.stack([second, first, jnp.minimum(right, ahead - first - second)]))

    def _reward(self, state: Streets, left_now: Float[Array, ""]) -> Float[Array, ""]:
        """The team's, for the state that a step led to."""
        n = self.rows * self.columns
        if self.reward == "throughput":
            return left_now / n
        if self.reward == "queue":
            return -(jnp.sum(state.queue) + jnp.sum(state.backlog)) / (4 * _LANES * n)
        links = jnp.sum(state.queue, axis=1)
        return -jnp.sum(jnp.abs(jnp.sum(links - _ahead(links, 0.0), axis=0))) / n

    def observe(self, state: Streets) -> Observation:
        """Own lanes, links and phase, and the neighbours' queues."""
        n, capacity = self.rows * self.columns, jnp.asarray(self.capacity)
        links = jnp.sum(state.queue, axis=1) / (_LANES * capacity)
        near = [_ahead(jnp.broadcast_to(link, links.shape), -1.0) for link in links]  # [4][side, R, C]
        lanes = (state.queue / capacity).reshape(-1, n)
        driving = (jnp.sum(state.pipe, axis=0) / (_LANES * capacity)).reshape(-1, n)
        signal = self._now(state).astype(jnp.float32)
        around = jnp.stack(near, axis=1).reshape(-1, n)
        return Observation(
            agents=jnp.concatenate([lanes.T, driving.T, signal, around.T], axis=1),
            state=self._global_state(state, lanes, signal),
            legal=self._legal(state),
            alive=jnp.ones(n, bool),
        )

    def _now(self, state: Streets) -> Bool[Array, "N 4"]:
        """The phase of each agent."""
        return state.phase.reshape(-1, 1) == np.arange(_PHASES)

    def _legal(self, state: Streets) -> Bool[Array, "N 4"]:
        """All phases, or the present one if it is not over; any other counts as the present one."""
        return (state.held.reshape(-1, 1) >= self.min_green) | self._now(state)

    def _global_state(
        self, state: Streets, lanes: Float[Array, "L N"], signal: Float[Array, "N 4"]
    ) -> Float[Array, "S"]:
        """All of it, and the time up to the last step that is acted in.

        A truncated episode bootstraps from the value of its last state, which no step begins in: the
        clock shown there must be one that a critic was taught.
        """
        capacity = _LANES * jnp.asarray(self.capacity)
        time = jnp.minimum(state.clock, self.horizon - 1) / self.horizon
        parts = [lanes, state.pipe / capacity, state.backlog / capacity, signal, time]
        if self.min_green > 1:
            parts.insert(4, state.held / self.min_green)
        return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])

    # --- reference policies: functions of the state, which may draw ties but do not ---------------

    def heuristic(self, key: Key, state: Streets) -> Action:
        """The best of the policies in which every intersection decides for itself: max-pressure."""
        del key
        return self.max_pressure(state)

    def fixed(self, state: Streets, plan: tuple[int, ...] = PLAN) -> Action:
        """All intersections in step: each phase for so many steps in turn."""
        phases = np.repeat(np.arange(_PHASES), plan)
        now = jnp.asarray(phases, jnp.int32)[state.clock % len(phases)]
        return jnp.full(self.rows * self.columns, now)

    def longest_queue(self, state: Streets) -> Action:
        """The phase that most vehicles wait for."""
        return self._greedy(state.queue, state, 0.0)

    def max_pressure(self, state: Streets, hysteresis: float = 0.0) -> Action:
        """The phase with the largest sum of queues minus those that they would join (Varaiya 2013).

        With ``hysteresis``, a phase goes on unless another one's sum is larger by more vehicles.
        """
        ahead = jnp.einsum("hmrc,m->hrc", state.queue, self._shares())
        joined = _by_lane(jnp.broadcast_to(_ahead(ahead, 0.0), (_LANES, *ahead.shape)))
        return self._greedy(state.queue - joined, state, hysteresis)

    def _greedy(self, weight: Float[Array, "4 3 R C"], state: Streets, hysteresis: float) -> Action:
        """The phase with the largest weight, the lowest of equal ones."""
        weights = jnp.einsum("phm,hmrc->rcp", _GREEN, weight).reshape(-1, _PHASES)
        weights = jnp.where(self._legal(state), weights + hysteresis * self._now(state), -jnp.inf)
        return jnp.argmax(weights, axis=-1).astype(jnp.int32)

    def scene(self, state: Streets) -> Scene:
        """Signals by who may go, and how many wait on each of their links, green where some may go."""
        points, names = [], ("↕", "↕L", "↔", "↔L")
        for row, column in np.ndindex(self.rows, self.columns):
            phase = int(state.phase[row, column])
            x, y = 4.0 * column, -4.0 * row
            points.append(Point("signal", x, y, names[phase], radius=0.6))
            for heading, (dx, dy) in enumerate(((0, 1), (1, 0), (0, -1), (-1, 0))):
                waiting = float(np.sum(state.queue[heading, :, row, column]))
                moving = float(np.sum(state.pipe[:, heading, row, column]))
                kind = "going" if _GREEN[phase, heading].any() else "waiting"
                share = (waiting + moving) / float(_LANES * np.asarray(self.capacity))
                # Vehicles keep to the right, so that both directions of a road are seen.
                place = (x - 1.35 * dx + 0.55 * dy, y - 1.35 * dy - 0.55 * dx)
                points.append(Point(kind, *place, f"{waiting:.0f}", value=share, radius=0.45))
        outside = float(np.sum(state.backlog))
        title = f"step {int(state.clock)}   served {float(state.served):.0f}   outside {outside:.0f}"
        high = (4.0 * self.columns - 1.7, 2.3)
        return Scene((-2.3, 1.7 - 4.0 * self.rows), high, tuple(points), title=title)


@struct
class Arterial(Traffic):
    """Intersections whose traffic is certain, so that :func:`tad_envs.solve` finds the optimum.

    Vehicles are whole, arrive at a constant rate, and all go straight on, so that only the phases 0
    and 2 are legal. The state counts neither who has left nor the time spent, so that ways which lead
    to the same traffic meet, and stands still past the end; no ``info``.
    """

    vehicles: Vehicles = "integer"
    arrivals: Arrivals = "constant"

    def starts(self) -> tuple[Float[Array, "1"], Streets]:
        """Empty roads."""
        return finite.certain(self._empty())

    def outcomes(
        self, state: Streets, action: Action
    ) -> tuple[Float[Array, "1"], Streets, Float[Array, "1"], Bool[Array, "1"]]:
        """The only one."""
        joining = state.pipe[-1][:, None] * jnp.asarray(np.array([0, 1, 0], np.float32)[:, None, None])
        arriving = jnp.floor(self._arriving(jnp.zeros(0)) + 1e-4)
        following, step = self._after(state, action, arriving, joining)
        following = following._replace(spent=state.spent, served=state.served)
        over = state.clock >= self.horizon
        following = jax.tree.map(lambda old, new: jnp.where(over, old, new), state, following)
        one, rest = finite.certain((following, step.reward, step.terminated))
        return one, *rest

    def _legal(self, state: Streets) -> Bool[Array, "N 4"]:
        return super()._legal(state) & (np.arange(_PHASES) % 2 == 0)

    def reset(self, key: Key) -> tuple[Streets, Observation]:
        """Empty roads. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: Streets, action: Action) -> tuple[Streets, TimeStep]:
        """Ten seconds of traffic; truncated at the horizon. Draws nothing."""
        return finite.advance(self, key, state, action, lambda s: s.clock >= self.horizon)


# --------------------------------------------------------------------------------------------------
# Roads


def _by_exit(lanes: Float[Array, "4 3 R C"]) -> Float[Array, "3 4 R C"]:
    """From the heading before a movement to that after it."""
    return jnp.stack([jnp.roll(lanes[:, 0], -1, axis=0), lanes[:, 1], jnp.roll(lanes[:, 2], 1, axis=0)])


def _by_lane(flows: Float[Array, "3 4 R C"]) -> Float[Array, "4 3 R C"]:
    """The inverse of :func:`_by_exit`."""
    left, straight, right = flows
    return jnp.stack([jnp.roll(left, 1, axis=0), straight, jnp.roll(right, -1, axis=0)], axis=1)


def _ahead(links: Float[Array, "4 R C"], outside: float) -> Float[Array, "4 R C"]:
    """What is found one intersection further on, in the direction of each heading."""
    wide = jnp.pad(links, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    return _shifted(wide, 1)


def _onwards(links: Float[Array, "4 R C"]) -> Float[Array, "4 R C"]:
    """Everything moved one intersection further on; what leaves the grid is dropped."""
    return _shifted(jnp.pad(links, ((0, 0), (1, 1), (1, 1))), -1)


def _shifted(wide: Float[Array, "4 R2 C2"], by: int) -> Float[Array, "4 R C"]:
    """The inside of a padded grid, seen ``by`` intersections ahead."""
    rows, columns = wide.shape[1] - 2, wide.shape[2] - 2
    begin = [(1 - by, 1), (1, 1 + by), (1 + by, 1), (1, 1 - by)]
    return jnp.stack([wide[h, r : r + rows, c : c + columns] for h, (r, c) in enumerate(begin)])


def _border(grid: tuple[int, ...]) -> Float[np.ndarray, "4 R C"]:
    """1 where a link comes from outside: heading north in the last row, and so on."""
    border = np.zeros((4, *grid), np.float32)
    border[0, -1] = border[1, :, 0] = border[2, 0] = border[3, :, -1] = 1
    return border


def _outwards(grid: tuple[int, ...]) -> Float[np.ndarray, "4 R C"]:
    """1 where a heading leads out of the grid."""
    return np.roll(_border(grid), 2, axis=0)


def _on_link(state: Streets) -> Float[Array, "4 R C"]:
    return jnp.sum(state.queue, axis=1) + jnp.sum(state.pipe, axis=0)


# --------------------------------------------------------------------------------------------------
# By name


def traffic(
    *,
    rows: int = 3,
    columns: int = 3,
    demand_ns: Real = 0.16,
    demand_ew: Real = 0.16,
    capacity: Real = 40.0,
    saturation: Real = 0.5,
    lost: Real = 3.0,
    left: Real = 0.15,
    right: Real = 0.15,
    vehicles: Vehicles = "fluid",
    arrivals: Arrivals = "poisson",
    reward: Reward = "queue",
    min_green: int = 1,
    horizon: int = 360,
) -> Traffic:
    """Signals of a grid of any size."""
    return Traffic(
        demand_ns=finite.number(demand_ns, "demand_ns"),
        demand_ew=finite.number(demand_ew, "demand_ew"),
        capacity=finite.number(capacity, "capacity"),
        saturation=finite.number(saturation, "saturation"),
        lost=finite.number(lost, "lost"),
        left=finite.number(left, "left"),
        right=finite.number(right, "right"),
        rows=rows,
        columns=columns,
        vehicles=vehicles,
        arrivals=arrivals,
        reward=reward,
        min_green=min_green,
        horizon=horizon,
    )


SETTINGS: dict[str, tuple[dict[str, float | int], str]] = {
    "grid3x3": (
        {"rows": 3, "columns": 3},
        "Nine intersections far enough apart to be nearly independent: greedy control is hard to beat.",
    ),
    "grid6x6": ({"rows": 6, "columns": 6}, "36 intersections: many agents."),
    "spill2x4": (
        {"rows": 2, "columns": 4, "demand_ns": 0.12, "demand_ew": 0.2, "capacity": 2.0},
        "Links so short that greedy control ends in gridlock, where a plan in step serves more.",
    ),
}
"""Grids that are known by name: what differs from :func:`traffic`, and what they are for."""


def setting(key: str) -> Callable[..., Traffic]:
    """What makes one of :data:`SETTINGS`; its arguments are those of :func:`traffic` less sizes."""
    own, about = SETTINGS[key]
    arguments = [
        argument.replace(default=own.get(name, argument.default))
        for name, argument in inspect.signature(traffic).parameters.items()
        if name not in ("rows", "columns")
    ]

    def game(**fields: Any) -> Traffic:
        return traffic(**{**own, **fields})

    game.__doc__ = about
    game.__annotations__ = {argument.name: argument.annotation for argument in arguments}
    game.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return game


def arterial(
    *,
    demand_ns: Real = 0.1,
    demand_ew: Real = 0.2,
    capacity: Real = 4.0,
    rows: int = 1,
    columns: int = 2,
    horizon: int = 10,
) -> Arterial:
    """A road through two crossings whose traffic is certain: solved exactly."""
    return Arterial(
        demand_ns=finite.number(demand_ns, "demand_ns"),
        demand_ew=finite.number(demand_ew, "demand_ew"),
        capacity=finite.number(capacity, "capacity"),
        left=finite.number(0.0, "left"),
        right=finite.number(0.0, "right"),
        rows=rows,
        columns=columns,
        horizon=horizon,
    )
