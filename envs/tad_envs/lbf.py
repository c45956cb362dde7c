"""Level-based foraging: agents of different strength collect food that may take several of them.

After Albrecht and Ramamoorthy 2013, as benchmarked by Papoudakis et al. 2021 (EPyMARL) and by Mava.
``F`` pieces of food lie on a square board. An agent stays (0), goes north (1), south (2), west (3) or
east (4), or loads (5). A piece is collected by the agents that stand next to it and load in the same
step if their levels add up to its level at least. The team receives the piece's level divided by that
of all food, so that a full clear pays 1; it ends the task.

Whose rules hold in detail is ``rules``:

===================  ==========================================  ====================================
``rules``            ``"lbforaging"`` (lb-foraging 3, EPyMARL)   ``"jumanji"`` (1.1.2, Mava)
===================  ==========================================  ====================================
entering a cell      that its owner leaves, or swaps with: yes;  never if somebody stood there
                     also if the owner wants to leave and fails
                     because of a third agent (two share a cell)
space around food    no other food in the eight cells around or  no other food in the four cells
                     two steps away in line: a loader has one    around: a load counts for every
                     piece                                       piece next to it
a failed load costs  ``penalty`` for each of its loaders         ``penalty`` / (loaders' levels times
                                                                 level of all food), to every agent
who is seen          food within ``sight``; agents too, and      food and agents within ``sight``
                     near the north and west border further
order in the view    what is seen comes first, food row by row   fixed slots
legal moves          not into food or the border                 nor to where somebody stands
episode              50 steps                                    100 steps
===================  ==========================================  ====================================

In both, agents start on any free cell (jumanji forbids them whole rows of the board, which is a
fault), levels are uniform, and food is as strong as the three weakest agents together (``coop``) or
uniformly weaker. Where there is no place left, a piece of food is left out.
"""

import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.scene import Point, Scene, board
from tad_envs.struct import AnyArray, Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Rules = Literal["lbforaging", "jumanji"]

SCENARIOS = (
    "8x8-2p-2f-coop",
    "2s-8x8-2p-2f-coop",
    "10x10-3p-3f",
    "2s-10x10-3p-3f",
    "15x15-3p-5f",
    "15x15-4p-3f",
    "15x15-4p-5f",
)
"""The tasks of EPyMARL and of Mava: board, players, food; ``2s`` sees two cells far."""

_HORIZON = {"lbforaging": 50, "jumanji": 100}
_LOAD = 5
_ACTIONS = 6
_TOGETHER = 3
"""At most so many agents are needed for a piece of food."""
_STEPS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
"""Rows and columns of a move north, south, west, east."""
_UNSEEN = np.array([-1.0, -1.0, 0.0], np.float32)


class Board(NamedTuple):
    """State of :class:`Foraging`; places are rows and columns from the north-west corner."""

    position: Int[Array, "N 2"]
    level: Int[Array, "N"]
    food: Int[Array, "F 2"]
    """Where food lies or lay; row by row under ``rules="lbforaging"``."""
    food_level: Int[Array, "F"]
    """Of each piece, also after it is eaten; 0 if there was no place for it."""
    eaten: Bool[Array, "F"]
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


@struct
class Foraging:
    """Collect all food together; see the module.

    An agent sees (row, column, level) of every piece of food, of itself and of the other agents, and
    (-1, -1, 0) for what it does not see or what is eaten. Rows and columns count from the corner of
    what it can see, and are divided by the last row of the board; an agent's level is divided by the
    highest of an agent, and that of food by the highest of food. The state lists the same of all,
    from the board's corner, which food is eaten, and the share of the time that has gone by.
    """

    penalty: Real = 0.0
    """Reward lost by a load that fails, at least 0."""
    size: int = 8
    """Rows and columns."""
    n_agents: int = 2
    foods: int = 2
    sight: int = 8
    """How many cells away things are seen, in rows and in columns; ``size``: all."""
    coop: bool = False
    """Whether food takes the three weakest agents together (or all, if there are fewer)."""
    max_level: int = 2
    """Agents' levels are uniform from 1 to this."""
    rules: Rules = "lbforaging"
    horizon: int = 50
    name: str = ""

    def __post_init__(self) -> None:
        least = {"size": 5, "n_agents": 2, "foods": 1, "sight": 1, "max_level": 1, "horizon": 1}
        for field, low in least.items():
            value = getattr(self, field)
            require(value >= low, f"{field}={value} must be at least {low}.")
        most = self.size**2 // 4
        require(
            self.n_agents <= most, f"n_agents={self.n_agents} must be at most {most} on this board."
        )
        if finite.scalar_check(self.penalty):
            penalty = float(self.penalty)
            require(penalty >= 0, f"penalty={penalty:g} must be at least 0.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        things = self.n_agents + self.foods
        return Spec(
            n_agents=self.n_agents,
            obs_dim=3 * things,
            state_dim=3 * things + self.foods + 1,
            horizon=self.horizon,
            n_actions=_ACTIONS,
            reset_pool=2 * self.size,  # a reset costs ten steps; whoever clears crosses the board twice
        )

    def reset(self, key: Key) -> tuple[Board, Observation]:
        """Draw places and levels: two random orders of the cells, and a number per level."""
        n, cells = self.n_agents, self.size**2
        drawn = jax.random.uniform(key, (2 * cells + n + self.foods,))
        orders = drawn[: 2 * cells].reshape(2, self.size, self.size)
        level = 1 + _below(self.max_level, drawn[2 * cells : 2 * cells + n])
        board = np.ones((self.size, self.size), bool)
        inner = jnp.asarray(np.pad(board[2:, 2:], 1))
        if self.rules == "lbforaging":  # agents come first
            position, _, free = _places(orders[0], jnp.asarray(board), n, apart=0)
            food, there, _ = _places(orders[1], inner & free, self.foods, apart=2)
            # Food without a place goes last, beyond every row.
            row_by_row = _rank(jnp.where(there, food @ np.array([self.size, 1]), cells))
            food = _at(row_by_row, food)
            there = jnp.arange(self.foods) < jnp.sum(there)
        else:
            food, there, _ = _places(orders[1], inner, self.foods, apart=1)
            free = jnp.all(_distance(food, self.size) > 0, axis=0)
            position, _, _ = _places(orders[0], free, n, apart=0)
        most = jnp.sum(jnp.where(_rank(level) < _TOGETHER, level, 0))
        food_level = most if self.coop else 1 + _below(most, drawn[2 * cells + n :])
        state = Board(
            position=position,
            level=level,
            food=food,
            food_level=jnp.where(there, food_level, 0),
            eaten=~there,
            clock=jnp.zeros((), jnp.int32),
        )
        return state, self.observe(state)

    def observe(self, state: Board) -> Observation:
        """What each agent sees; all of the board as the state."""
        beside = state.food - state.position[:, None]  # [N, F, 2]
        return Observation(
            agents=self._views(state, beside),
            state=self._global_state(state),
            legal=self._legal(state, beside),
            alive=jnp.ones(self.n_agents, bool),
        )

    def step(self, key: Key, state: Board, action: Action) -> tuple[Board, TimeStep]:
        """Move, then load; truncated at the horizon. Draws nothing."""
        del key
        position = self._moved(state, action)
        loading = _next_to(state.food - position[:, None]) & (action == _LOAD)[:, None]  # [N, F]
        strength = jnp.sum(jnp.where(loading, state.level[:, None], 0), axis=0)
        tried = (strength > 0) & ~state.eaten
        collected = tried & (strength >= state.food_level)
        total = jnp.sum(state.food_level)
        reward = jnp.sum(jnp.where(collected, state.food_level, 0)) / total
        failed = tried & ~collected
        if self.rules == "lbforaging":
            fined = jnp.sum(loading & failed)
        else:
            fined = jnp.sum(jnp.where(failed, self.n_agents / (strength * total), 0.0))
        reward -= jnp.asarray(self.penalty) * fined
        clock = jnp.minimum(state.clock + 1, self.horizon)
        state = state._replace(position=position, eaten=state.eaten | collected, clock=clock)
        won = jnp.all(state.eaten)
        there = state.food_level > 0
        info = {"won": won, "eaten": jnp.sum(state.eaten & there) / jnp.sum(there)}
        over = (clock >= self.horizon) & ~won
        return state, TimeStep(self.observe(state), reward.astype(jnp.float32), won, over, info)

    def _moved(self, state: Board, action: Action) -> Int[Array, "N 2"]:
        """Where agents stand after all moved at once; who is in each other's way stays."""
        moves = finite.one_hot(action - 1, len(_STEPS)).astype(jnp.int32) @ _STEPS
        wanted = state.position + moves
        inside = jnp.all((wanted >= 0) & (wanted < self.size), axis=1)
        blocked = jnp.any(_same(wanted, state.food) & ~state.eaten, axis=1)
        others = ~np.eye(self.n_agents, dtype=bool)
        if self.rules == "jumanji":
            blocked |= jnp.any(_same(wanted, state.position) & others, axis=1)
        target = jnp.where((inside & ~blocked)[:, None], wanted, state.position)
        contested = jnp.any(_same(target, target) & others, axis=1)
        return jnp.where(contested[:, None], state.position, target)

    def _legal(self, state: Board, beside: Int[Array, "N F 2"]) -> Bool[Array, "N A"]:
        """What is possible; anything else is the same as staying."""
        at = state.position
        last = self.size - 1
        inside = jnp.stack([at[:, 0] > 0, at[:, 0] < last, at[:, 1] > 0, at[:, 1] < last], axis=1)
        food = _same(_STEPS, beside) & ~state.eaten[None, None]  # [N, 4, F]
        adjacent = jnp.any(food, axis=2)
        free = inside & ~adjacent
        if self.rules == "jumanji":
            free &= ~jnp.any(_same(_STEPS, at - at[:, None]), axis=2)
        load = jnp.any(adjacent, axis=1, keepdims=True)
        return jnp.concatenate([jnp.ones_like(load), free, load], axis=1)

    def _views(self, state: Board, beside: Int[Array, "N F 2"]) -> Float[Array, "N O"]:
        """Food, then oneself, then the others."""
        n = self.n_agents
        corner = jnp.minimum(state.position, self.sight)[:, None]
        mates = state.position - state.position[:, None]
        here = jnp.all(jnp.abs(beside) <= self.sight, axis=2) & ~state.eaten
        own = np.eye(n, dtype=bool)
        index = np.arange(n)
        if self.rules == "lbforaging":
            window = mates + corner
            met = jnp.all((window >= 0) & (window <= 2 * self.sight), axis=2)
            # Oneself comes first, then who is seen.
            slot = jnp.where(own, 0, 1 + _before(met & ~own))
            food_slot = _before(here)
        else:
            met = jnp.all(jnp.abs(mates) <= self.sight, axis=2)
            food_slot = jnp.broadcast_to(np.arange(self.foods), here.shape)
            slot = jnp.asarray(np.where(own, 0, index + (index < index[:, None])))
        foods = self._rows(beside + corner, jnp.broadcast_to(self._food_levels(state), here.shape))
        agents = self._rows(mates + corner, jnp.broadcast_to(self._levels(state), met.shape))
        rows = [_in_slots(food_slot, here, foods), _in_slots(slot, met, agents)]
        return jnp.concatenate(rows, axis=1).reshape(n, -1)

    def _rows(self, place: Int[Array, "*b 2"], level: Float[Array, "*b"]) -> Float[Array, "*b 3"]:
        return jnp.concatenate([place / (self.size - 1), level[..., None]], axis=-1)

    def _levels(self, state: Board) -> Float[Array, "N"]:
        return state.level / self.max_level

    def _food_levels(self, state: Board) -> Float[Array, "F"]:
        return state.food_level / (self.max_level * min(_TOGETHER, self.n_agents))

    def _global_state(self, state: Board) -> Float[Array, "S"]:
        """The board, and the time up to the last step that is acted in.

        A truncated episode bootstraps from the value of its last state, which no step begins in: the
        clock shown there must be one that a critic was taught.
        """
        time = jnp.minimum(state.clock, self.horizon - 1) / self.horizon
        foods = self._rows(state.food, self._food_levels(state))
        agents = self._rows(state.position, self._levels(state))
        parts = (foods, agents, state.eaten, time)
        return jnp.concatenate([jnp.asarray(part, jnp.float32).reshape(-1) for part in parts])

    def scene(self, state: Board) -> Scene:
        """Agents and food with their levels; what is eaten is gone."""
        rows = zip(state.food, state.food_level, state.eaten, strict=True)
        food = [Point("food", c, r, str(level)) for (r, c), level, eaten in rows if not eaten]
        pairs = zip(state.position, state.level, strict=True)
        agents = [Point("agent", c, r, str(level)) for (r, c), level in pairs]
        return board(self.size, self.size, [*food, *agents])


# --------------------------------------------------------------------------------------------------
# Cells and orders


def _same(one: AnyArray, other: AnyArray) -> Bool[Array, "..."]:
    """Which places of ``[..., I, 2]`` and ``[..., J, 2]`` are the same: ``[..., I, J]``."""
    return jnp.all(one[..., :, None, :] == other[..., None, :, :], axis=-1)


def _next_to(offset: Int[Array, "N F 2"]) -> Bool[Array, "N F"]:
    return jnp.sum(jnp.abs(offset), axis=-1) == 1


def _distance(place: Int[Array, "K 2"], size: int) -> Int[Array, "K G G"]:
    """Steps from each place to each cell of the board."""
    cells = np.arange(size)
    rows, columns = (jnp.abs(place[:, axis, None] - cells) for axis in range(2))
    return rows[:, :, None] + columns[:, None, :]


def _places(
    order: Float[Array, "G G"], free: Bool[Array, "G G"], count: int, apart: int
) -> tuple[Int[Array, "K 2"], Bool[Array, "K"], Bool[Array, "G G"]]:
    """``count`` uniform free cells, one after another, each more than ``apart`` steps from the others.

    Also whether there was a free cell, and what is left of them. One random ``order`` of the cells is
    enough: among the cells that are still free after the first ones are taken, it is still uniform.
    """
    size = free.shape[0]

    def place(free: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        cell = jnp.argmax(jnp.where(free, order, -1.0)).astype(jnp.int32)
        at = jnp.stack([cell // size, cell % size])
        return free & (_distance(at[None], size)[0] > apart), (at, jnp.any(free))

    free, (places, there) = jax.lax.scan(place, free, length=count)
    return places, there, free


def _below(top: Int[Array, ""] | int, uniform: Float[Array, "K"]) -> Int[Array, "K"]:
    """Uniform whole numbers below ``top``; the product may round up to it."""
    return jnp.minimum((uniform * top).astype(jnp.int32), top - 1)


def _rank(value: Int[Array, "K"]) -> Int[Array, "K"]:
    """Each entry's place if they were sorted, the first of equal ones first."""
    index = np.arange(value.shape[0])
    ahead = (value < value[:, None]) | ((value == value[:, None]) & (index < index[:, None]))
    return jnp.sum(ahead, axis=1)


def _at(slot: Int[Array, "K"], rows: Int[Array, "K 2"]) -> Int[Array, "K 2"]:
    """Rows put at their slots."""
    chosen = slot[:, None] == np.arange(slot.shape[0])
    return jnp.sum(jnp.where(chosen[..., None], rows[:, None], 0), axis=0)


def _before(seen: Bool[Array, "N K"]) -> Int[Array, "N K"]:
    """How many of those before it are seen."""
    width = seen.shape[1]
    earlier = np.tri(width, k=-1, dtype=bool)
    return jnp.sum(seen[:, None, :] & earlier, axis=2)


def _in_slots(
    slot: Int[Array, "N K"], seen: Bool[Array, "N K"], rows: Float[Array, "N K 3"]
) -> Float[Array, "N K 3"]:
    """What is seen put at its slots, nothing where no slot is taken."""
    chosen = (slot[..., None] == np.arange(slot.shape[1])) & seen[..., None]  # [N, K, slots]
    return jnp.asarray(_UNSEEN) + jnp.sum(
        jnp.where(chosen[..., None], rows[:, :, None] - _UNSEEN, 0.0), axis=1
    )


# --------------------------------------------------------------------------------------------------
# By name


def foraging(
    *,
    size: int = 8,
    n_agents: int = 2,
    foods: int = 2,
    sight: int | None = None,
    coop: bool = False,
    max_level: int = 2,
    penalty: Real = 0.0,
    rules: Rules = "lbforaging",
    horizon: int | None = None,
) -> Foraging:
    """Level-based foraging of any size; sees everything unless ``sight`` says how far."""
    return Foraging(
        size=size,
        n_agents=n_agents,
        foods=foods,
        sight=size if sight is None else min(sight, size),
        coop=coop,
        max_level=max_level,
        penalty=finite.number(penalty, "penalty"),
        rules=rules,
        horizon=_HORIZON[rules] if horizon is None else horizon,
    )


def scenario(
    text: str, *, penalty: Real = 0.0, rules: Rules = "lbforaging", horizon: int | None = None
) -> Foraging:
    """The task that lb-foraging and Mava call ``text``, e.g. ``2s-8x8-2p-2f-coop``."""
    found = re.fullmatch(r"(?:(\d+)s-)?(\d+)x(\d+)-(\d+)p-(\d+)f(-coop)?", text)
    require(found is not None, f"{text!r} is no scenario such as '2s-8x8-2p-2f-coop'.")
    sight, rows, _, agents, foods, coop = found.groups() if found else ("",) * 6
    return foraging(
        size=int(rows),
        n_agents=int(agents),
        foods=int(foods),
        sight=int(sight) if sight else None,
        coop=bool(coop),
        penalty=penalty,
        rules=rules,
        horizon=horizon,
    )
