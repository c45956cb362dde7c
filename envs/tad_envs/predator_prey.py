"""Hunts on a grid that succeed only together, and punish whoever tries alone.

Two tasks in which averaging over what the others do says that it is better not to try (relative
overgeneralisation), the more so the larger the punishment:

:class:`StagHunt`: Böhmer, Kurin and Whiteson 2020 (DCG), also the task of weighted QMIX and QPLEX.
Hunters
*choose* to catch, and leave the grid together with what they caught.

:class:`Qtran`: the modified predator-prey of Son et al. 2019 (QTRAN), as in ma-gym. *Standing* next to
a prey is what catches it, and prey keeps away from predators.

Everybody moves one after the other into free cells. A place is one number, ``row * columns + column``,
or -1 for who has left the grid. ``P`` prey, ``C`` cells, besides the letters of :mod:`tad_envs.types`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from tad_envs import finite
from tad_envs.scene import Scene, board, pieces
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

RIGHT, DOWN, LEFT, UP, STAY, CATCH = range(6)
_STEPS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0], [0, 0]], np.int32)
"""Row and column of a move, in the order of the actions; staying last."""
_SIGHT = 2
_WINDOW = (2 * _SIGHT + 1) ** 2
_TRIES = 5
"""Moves that the prey of :class:`Qtran` considers."""
_MOVE_CHANCE = 0.175
"""Of each of the four moves; staying has the rest."""
_FAR = 10_000
_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)
_UNROLLED = 4
"""Turns of prey in one round of the compiled loop: faster than one, for half a second of compiling."""


class Hunt(NamedTuple):
    """State of both games."""

    agents: Int[Array, "N"]
    """Cells; -1 who has left."""
    prey: Int[Array, "P"]
    """Cells; -1 who is caught."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


# --------------------------------------------------------------------------------------------------
# The grid


class _Grid(NamedTuple):
    """A square grid, bounded or closed to a torus."""

    size: int
    toroidal: bool = False

    def places(self, cells: Int[Array, "*n"]) -> Int[Array, "*n 2"]:
        """Rows and columns."""
        return jnp.stack([cells // self.size, cells % self.size], axis=-1)

    def apart(self, one: Int[Array, "... 2"], other: Int[Array, "... 2"]) -> Int[Array, "... 2"]:
        """``other - one``, the short way round on a torus."""
        difference = other - one
        if self.toroidal:
            half = self.size // 2
            difference = (difference + half) % self.size - half
        return difference

    def targets(self, cells: Int[Array, "n"]) -> Int[Array, "n 5"]:
        """Where each move would lead; -1 outside, and for who has left."""
        places = self.places(cells)[:, None] + _STEPS
        if self.toroidal:
            places = places % self.size
        inside = jnp.all((places >= 0) & (places < self.size), axis=-1) & (cells[:, None] >= 0)
        return jnp.where(inside, places[..., 0] * self.size + places[..., 1], -1)

    def distance(self, one: Int[Array, "n"], other: Int[Array, "m"]) -> Int[Array, "n m"]:
        """Moves between cells; far from and to who has left."""
        between = self.apart(self.places(one)[:, None], self.places(other))
        here = (one[:, None] >= 0) & (other >= 0)
        return jnp.where(here, jnp.sum(jnp.abs(between), axis=-1), _FAR)

    def window(self, one: Int[Array, "n"], other: Int[Array, "m"]) -> Float[Array, "n W"]:
        """Who of ``other`` is in the 5x5 window around each of ``one``; row by row."""
        between = self.apart(self.places(one)[:, None], self.places(other)) + _SIGHT
        seen = jnp.all((between >= 0) & (between <= 2 * _SIGHT), axis=-1)
        seen &= (one[:, None] >= 0) & (other >= 0)
        code = jnp.where(seen, between[..., 0] * (2 * _SIGHT + 1) + between[..., 1], -1)
        return jnp.any(code[..., None] == np.arange(_WINDOW), axis=1).astype(jnp.float32)

    def centred(self, cells: Int[Array, "*n"]) -> Float[Array, "*n 2"]:
        """Rows and columns scaled to [-1, 1]; 0 for who has left."""
        scaled = self.places(cells) * (2 / (self.size - 1)) - 1
        return jnp.where((cells >= 0)[..., None], scaled, 0.0)


def _everybody(grid: _Grid, state: Hunt) -> Float[Array, "S"]:
    """Place and presence of all: the global state."""
    cells = jnp.concatenate([state.agents, state.prey])
    present = (cells >= 0).astype(jnp.float32)[:, None]
    return jnp.concatenate([grid.centred(cells), present], axis=1).reshape(-1)


def _ranks(noise: Float[Array, "n"]) -> Int[Array, "n"]:
    """Whose turn it is when: a random order."""
    index = np.arange(noise.shape[0])
    earlier = (noise < noise[:, None]) | ((noise == noise[:, None]) & (index < index[:, None]))
    return jnp.sum(earlier, axis=1)


def _picked(mine: Bool[Array, "n n"], rows: Shaped[Array, "n ..."]) -> Shaped[Array, "n ..."]:
    """Row ``k`` is that of the ``rows`` whose ``mine[k]`` holds: a permutation without a gather."""
    chosen = mine.reshape(mine.shape + (1,) * (rows.ndim - 1))
    return jnp.sum(jnp.where(chosen, rows, 0), axis=1, dtype=rows.dtype)


def _preference(noise: Float[Array, "P"]) -> Int[Array, "P 4"]:
    """How much prey likes each direction: one of 24 orders, whose first free one is uniform."""
    index = jnp.minimum((noise * len(_ORDERS)).astype(jnp.int32), len(_ORDERS) - 1)
    return jnp.asarray(_ORDERS)[index]


def _moved(
    cells: Int[Array, "n"], target: Int[Array, "n"], others: Int[Array, "m"], rank: Int[Array, "n"]
) -> Int[Array, "n"]:
    """One after the other moves to its target, if that is a free cell."""

    def move(turn: Array, cells: Array) -> Array:
        mine = rank == turn
        wanted = jnp.sum(jnp.where(mine, target, 0))
        taken = jnp.any(cells == wanted) | jnp.any(others == wanted)
        return jnp.where(mine & ~taken & (wanted >= 0), wanted, cells)

    return jax.lax.fori_loop(0, cells.shape[0], move, cells)


def _distinct(noise: Float[Array, "n"], cells: int) -> Int[Array, "n"]:
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


def _chase(
    grid: _Grid, key: Key, state: Hunt, close: Array, hold: int
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


def _scene(size: int, state: Hunt, title: str) -> Scene:
    points = pieces("agent", np.asarray(state.agents), size)
    return board(size, size, points + pieces("prey", np.asarray(state.prey), size, False), title)


# --------------------------------------------------------------------------------------------------
# Stag hunt


@struct
class StagHunt:
    """Hunters on a grid catch prey in pairs; whoever tries alone is punished (module docstring).

    Actions: right, down, left, up, stay, catch. Agents move in random order, only into free cells. Then
    each prey in random order: if at least 2 of the agents orthogonally next to it chose to catch, it is
    caught, pays ``reward``, and leaves the grid with these agents; if exactly 1 did, that pays
    ``punishment``; unless caught it moves to a free neighbouring cell, if there is one (with
    probability ``rest`` it does not). It ends when nobody is left of either side; the clock truncates.

    What is legal: moves that stay on the grid, to catch next to prey, and for who has left, to stay.
    An agent sees two 5x5 windows around itself, of agents (itself included) and of prey: 50 features,
    and 25 more for what lies outside the grid with ``walls``; zeros once it has left. The state is
    row, column (in [-1, 1]) and presence of everybody. Eight agents can make four pairs, so that 40 is
    the most that 8 agents and 8 prey can bring. ``info``: ``caught`` and ``missed`` in this step,
    ``won`` if none of the possible pairs is left.
    """

    punishment: Real = -2.0
    """For each prey that a single agent tries to catch, not above 0."""
    reward: Real = 10.0
    """For each prey caught."""
    rest: Real = 0.0
    """Probability that prey does not move although it could."""
    size: int = 10
    n_agents: int = 8
    n_prey: int = 8
    horizon: int = 200
    toroidal: bool = False
    walls: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        _check_sizes(self.size, self.n_agents, self.n_prey, self.horizon)
        if finite.scalar_check(self.punishment):
            value = float(self.punishment)
            require(value <= 0, f"punishment={value:g} must not be above 0; did you mean {-value:g}?")
        if finite.scalar_check(self.rest):
            require(0 <= float(self.rest) <= 1, f"rest={float(self.rest):g} must lie in [0, 1].")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=(3 if self.walls else 2) * _WINDOW,
            state_dim=3 * (self.n_agents + self.n_prey),
            horizon=self.horizon,
            n_actions=CATCH + 1,
        )

    @property
    def _grid(self) -> _Grid:
        return _Grid(self.size, self.toroidal)

    def reset(self, key: Key) -> tuple[Hunt, Observation]:
        """Draw a cell of its own for everybody: one uniform number each."""
        noise = jax.random.uniform(key, (self.n_agents + self.n_prey,))
        cells = _distinct(noise, self.size**2)
        state = Hunt(cells[: self.n_agents], cells[self.n_agents :], jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def observe(self, state: Hunt) -> Observation:
        """What is near, and where everybody is."""
        grid, alive = self._grid, state.agents >= 0
        views = [grid.window(state.agents, cells) for cells in (state.agents, state.prey)]
        if self.walls:
            views.append(self._outside(state.agents))
        moves = grid.targets(state.agents) >= 0
        near = jnp.any(grid.distance(state.agents, state.prey) == 1, axis=1, keepdims=True)
        waits = np.arange(CATCH + 1) == STAY
        legal = jnp.where(alive[:, None], jnp.concatenate([moves, near], axis=1), waits)
        return Observation(jnp.concatenate(views, axis=1), _everybody(grid, state), legal, alive)

    def _outside(self, agents: Int[Array, "N"]) -> Float[Array, "N W"]:
        """Cells of each agent's window that are not on the grid; none on a torus."""
        offsets = np.indices((2 * _SIGHT + 1,) * 2).reshape(2, -1).T - _SIGHT
        places = self._grid.places(agents)[:, None] + offsets
        beyond = jnp.any((places < 0) | (places >= self.size), axis=-1)
        return (beyond & (agents >= 0)[:, None] & (not self.toroidal)).astype(jnp.float32)

    def step(self, key: Key, state: Hunt, action: Action) -> tuple[Hunt, TimeStep]:
        """Agents move, then prey is caught or moves; one draw of uniform numbers."""
        n, p = self.n_agents, self.n_prey
        noise = jax.random.uniform(key, (n + 3 * p,))
        turns, order, pick, lazy = jnp.split(noise, np.cumsum([n, p, p]))
        grid = self._grid
        moves = finite.one_hot(action, CATCH).astype(jnp.int32)
        target = jnp.sum(moves * grid.targets(state.agents), axis=1) - (action >= CATCH)
        agents = _moved(state.agents, target, state.prey, _ranks(turns))
        catches = (action == CATCH) & (grid.distance(state.prey, agents) == 1)
        moving = lazy >= jnp.asarray(self.rest)
        options = jnp.where(moving[:, None], grid.targets(state.prey)[:, :4], -1)
        # Put into the order of their turns once, so that each turn is a slice and not a gather.
        mine = _ranks(order) == np.arange(p)[:, None]
        rows = (_picked(mine, catches), _picked(mine, options), _picked(mine, _preference(pick)))
        begun = (jnp.concatenate([agents, _picked(mine, state.prey)]), *jnp.zeros((2,), jnp.int32))

        def turn(k: Array, carry: tuple) -> tuple:
            cells, caught, missed = carry
            catching, option, preference = (row[k] for row in rows)
            hands = catching & (cells[:n] >= 0)
            count = jnp.sum(hands)
            leaving = jnp.concatenate([hands, jnp.zeros(p, bool)]) & (count >= 2)
            cells = jnp.where(leaving, -1, cells)
            free = (option >= 0) & ~jnp.any(option[:, None] == cells, axis=1)
            best = jnp.max(jnp.where(free, preference * self.size**2 + option, -1))
            here = jnp.where(best >= 0, best % self.size**2, cells[n + k])
            here = jnp.where((cells[n + k] >= 0) & (count < 2), here, -1)
            return cells.at[n + k].set(here), caught + (count >= 2), missed + (count == 1)

        cells, caught, missed = jax.lax.fori_loop(0, p, turn, begun, unroll=_UNROLLED)
        agents, prey = cells[:n], _picked(mine.T, cells[n:])
        reward = jnp.asarray(self.reward) * caught + jnp.asarray(self.punishment) * missed
        following = Hunt(agents, prey, jnp.minimum(state.clock + 1, self.horizon))
        left = jnp.minimum(jnp.sum(agents >= 0) // 2, jnp.sum(prey >= 0))
        terminated = jnp.all(agents < 0) | jnp.all(prey < 0)
        info = {"caught": caught, "missed": missed, "won": left == 0}
        return following, _time_step(self.observe(following), reward, terminated, following, self, info)

    def heuristic(self, key: Key, state: Hunt) -> Action:
        """Two agents at a time go to the prey that they reach first, and catch it together."""
        moves, hunts, second = _chase(self._grid, key, state, jnp.ones((), bool), 1)
        return jnp.where(hunts & (second == 1) & (state.agents >= 0), CATCH, moves)

    def scene(self, state: Hunt) -> Scene:
        """The grid and who is on it."""
        return _scene(self.size, state, f"step {int(state.clock)}")


# --------------------------------------------------------------------------------------------------
# The predator-prey of QTRAN


@struct
class Qtran:
    """Predators that catch by standing next to prey, two at a time (module docstring).

    Actions: right, down, left, up, stay; all are always legal, and a move outside or into an occupied
    cell does nothing. Predators move in the order of their indices. Then each prey in the order of its
    index: with at least 2 predators orthogonally next to it, it is caught, pays ``reward`` and leaves
    the grid; with exactly 1, that pays ``-penalty``. What is not caught considers up to 5 moves (each
    direction with probability 0.175, else staying), takes the first that leads next to no predator,
    and stays if there is none or the cell is not free. Each step costs ``step_cost``. It ends when all
    prey is caught; the clock truncates.

    A predator sees its row and column (in [-1, 1]), the prey in a 5x5 window around itself, and the
    share of time that is gone: 28 features. The state is row, column and presence of everybody.
    Rewards are QTRAN's, 1 and -P for the team; ma-gym's own are ``reward=5, penalty=0.5``. Where
    ma-gym never starts anybody in the last row and column, here all cells are as likely; prey starts
    next to no predator. ``info``: ``caught`` and ``missed`` in this step, and ``won``.
    """

    penalty: Real = 0.5
    """P, not negative: cost of each prey that has a single predator next to it."""
    reward: Real = 1.0
    """For each prey caught."""
    step_cost: Real = 0.01
    size: int = 5
    n_agents: int = 2
    n_prey: int = 1
    horizon: int = 100
    name: str = ""

    def __post_init__(self) -> None:
        _check_sizes(self.size, self.n_agents, self.n_prey, self.horizon)
        room = self.size**2 - 5 * self.n_agents
        require(
            room >= self.n_prey,
            f"size={self.size} has no room for n_prey={self.n_prey} and n_agents={self.n_agents}.",
        )
        if finite.scalar_check(self.penalty):
            value = float(self.penalty)
            require(value >= 0, f"penalty={value:g} must not be negative; did you mean {-value:g}?")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=3 + _WINDOW,
            state_dim=3 * (self.n_agents + self.n_prey),
            horizon=self.horizon,
            n_actions=STAY + 1,
            order_dependent=True,
        )

    @property
    def _grid(self) -> _Grid:
        return _Grid(self.size)

    def reset(self, key: Key) -> tuple[Hunt, Observation]:
        """Draw cells, of their own for everybody, and for prey next to no predator."""
        n, p, cells = self.n_agents, self.n_prey, self.size**2
        noise = jax.random.uniform(key, (n + p * cells,))
        agents = _distinct(noise[:n], cells)
        open_cells = jnp.min(self._grid.distance(jnp.arange(cells), agents), axis=1) > 1
        prey = []
        for scores in noise[n:].reshape(p, cells):
            prey.append(jnp.argmax(jnp.where(open_cells, scores, -1.0)).astype(jnp.int32))
            open_cells &= jnp.arange(cells) != prey[-1]
        state = Hunt(agents, jnp.stack(prey), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def observe(self, state: Hunt) -> Observation:
        """Own place, prey nearby and the time; where everybody is."""
        grid, n = self._grid, self.n_agents
        time = jnp.broadcast_to(state.clock / self.horizon, (n, 1))
        views = [grid.centred(state.agents), grid.window(state.agents, state.prey), time]
        return Observation(
            agents=jnp.concatenate(views, axis=1),
            state=_everybody(grid, state),
            legal=jnp.ones((n, STAY + 1), bool),
            alive=jnp.ones(n, bool),
        )

    def step(self, key: Key, state: Hunt, action: Action) -> tuple[Hunt, TimeStep]:
        """Predators move, then prey is caught or moves; one draw of uniform numbers."""
        grid, p = self._grid, self.n_prey
        noise = jax.random.uniform(key, (p, _TRIES))
        moves = finite.one_hot(action, STAY + 1).astype(jnp.int32)
        target = jnp.sum(moves * grid.targets(state.agents), axis=1)
        agents = _moved(state.agents, target, state.prey, jnp.arange(self.n_agents))
        present = state.prey >= 0
        count = jnp.sum(grid.distance(state.prey, agents) == 1, axis=1)
        caught, missed = present & (count >= 2), present & (count == 1)
        prey = self._fled(noise, state.prey, agents, caught)
        caught, missed = (jnp.sum(x) for x in (caught, missed))
        reward = jnp.asarray(self.reward) * caught - jnp.asarray(self.penalty) * missed
        reward -= jnp.asarray(self.step_cost)
        following = Hunt(agents, prey, jnp.minimum(state.clock + 1, self.horizon))
        terminated = jnp.all(prey < 0)
        info = {"caught": caught, "missed": missed, "won": terminated}
        return following, _time_step(self.observe(following), reward, terminated, following, self, info)

    def _fled(
        self,
        noise: Float[Array, "P T"],
        prey: Int[Array, "P"],
        agents: Int[Array, "N"],
        caught: Bool[Array, "P"],
    ) -> Int[Array, "P"]:
        """Where prey goes; it leaves in its turn: those before it still find it in their way."""
        considered = jnp.sum(noise[..., None] >= _MOVE_CHANCE * np.arange(1, 5), axis=-1)
        places = self._grid.places(prey)[:, None] + _STEPS
        beside = jnp.sum(jnp.abs(places[:, :, None] - self._grid.places(agents)), axis=-1) == 1
        safe = ~jnp.any(beside, axis=2)  # of each direction; outside as well, which is then not free
        chosen = finite.one_hot(considered, STAY + 1) > 0
        fits = jnp.any(chosen & safe[:, None], axis=-1)
        first = jnp.argmax(fits, axis=1)
        taken = chosen & (first[:, None] == np.arange(_TRIES))[..., None] & fits[..., None]
        targets = jnp.where(jnp.any(taken, axis=1), self._grid.targets(prey), 0)
        target = jnp.where(jnp.any(fits, axis=1), jnp.sum(targets, axis=1), -1)

        def turn(k: Array, cells: Array) -> Array:
            mine = np.arange(self.n_prey) == k
            wanted = jnp.sum(jnp.where(mine, target, 0))
            free = (wanted >= 0) & ~jnp.any(cells == wanted) & ~jnp.any(agents == wanted)
            onward = jnp.where(free & (cells >= 0), wanted, cells)
            return jnp.where(mine, jnp.where(caught, -1, onward), cells)

        return jax.lax.fori_loop(0, self.n_prey, turn, prey)

    def heuristic(self, key: Key, state: Hunt) -> Action:
        """Two predators wait two steps away from a prey until both are there, then close in."""
        return _chase(self._grid, key, state, jnp.ones((), bool), 2)[0]

    def scene(self, state: Hunt) -> Scene:
        """The grid and who is on it."""
        return _scene(self.size, state, f"step {int(state.clock)}")


# --------------------------------------------------------------------------------------------------
# Construction


def _check_sizes(size: int, n_agents: int, n_prey: int, horizon: int) -> None:
    require(size >= 3, f"size={size} must be at least 3.")
    require(n_agents >= 2, f"n_agents={n_agents} must be at least 2: nobody catches anything alone.")
    require(n_prey >= 1, f"n_prey={n_prey} must be at least 1.")
    require(horizon >= 1, f"horizon={horizon} must be at least 1.")
    require(
        n_agents + n_prey <= size**2,
        f"n_agents={n_agents} and n_prey={n_prey} need more cells than size={size} has.",
    )


def _time_step(
    observation: Observation,
    reward: Array,
    terminated: Array,
    state: Hunt,
    env: StagHunt | Qtran,
    info: dict[str, Array],
) -> TimeStep:
    over = (state.clock >= env.horizon) & ~terminated
    info = {name: value.astype(jnp.float32) for name, value in info.items()}
    return TimeStep(observation, reward.astype(jnp.float32), terminated, over, info)


def stag_hunt(
    *,
    punishment: Real = -2.0,
    reward: Real = 10.0,
    rest: Real = 0.0,
    size: int = 10,
    n_agents: int = 8,
    n_prey: int = 8,
    horizon: int = 200,
    toroidal: bool = False,
    walls: bool = False,
) -> StagHunt:
    """Catch prey in pairs; whoever tries alone is punished (DCG, weighted QMIX, QPLEX)."""
    return StagHunt(
        punishment=finite.number(punishment, "punishment"),
        reward=finite.number(reward, "reward"),
        rest=finite.number(rest, "rest"),
        size=size,
        n_agents=n_agents,
        n_prey=n_prey,
        horizon=horizon,
        toroidal=toroidal,
        walls=walls,
    )


def qtran(
    *,
    penalty: Real = 0.5,
    reward: Real = 1.0,
    step_cost: Real = 0.01,
    size: int = 5,
    n_agents: int = 2,
    n_prey: int = 1,
    horizon: int = 100,
) -> Qtran:
    """Surround prey in pairs (QTRAN, ma-gym); its larger grid is size=7, n_agents=4, n_prey=2."""
    return Qtran(
        penalty=finite.number(penalty, "penalty"),
        reward=finite.number(reward, "reward"),
        step_cost=finite.number(step_cost, "step_cost"),
        size=size,
        n_agents=n_agents,
        n_prey=n_prey,
        horizon=horizon,
    )
