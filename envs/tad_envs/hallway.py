"""Hallways: several steps of agreement, with a safer and worse exit next to every one of them.

:class:`Hallway` is a fully observed multi-step trap: agents share one position. At every cell, all
going forward leads on, to ``+5`` from the last one; all stopping ends at once with ``+4``. It has
the optimum of 5 and the local optimum of 4 that are reported for TAD (arXiv 2207.11143).

:class:`Meet` is the partially observed hallway of NDQ (Wang et al. 2020): each agent walks its own
chain, sees only its own position, and all must arrive in the same step.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.scene import Point, Scene, board
from tad_envs.struct import AnyArray, Real, concrete, require, struct
from tad_envs.types import Action, Key, Observation, Spec, State, TimeStep

FORWARD, STOP, WAIT = 0, 1, 2
STAY, LEFT, RIGHT = 0, 1, 2

_JOINT_FEATURES = 512
"""Largest one-hot code of the joint position; beyond it the agents' codes are concatenated."""


@struct
class Hallway:
    """A shared corridor of ``length`` cells; the state is the position ``k``, ``[]`` int32.

    Joint actions: all forward moves on, and pays 5 and ends from the last cell; all stop pays 4 and
    ends; nobody forward but somebody waiting pays 3 and ends; some but not all forward pays
    ``-penalty`` and ends. Everybody sees the one-hot position.

    With two actions a trap for independent policy gradient from ``length`` 2 on; with waiting,
    already at length 1, and for VDN and QMIX too. ``length``, ``penalty`` and ``waiting`` are
    leaves, so that one program runs all of them up to ``max_length``.
    """

    length: Real
    """Number of cells, a whole number in ``[1, max_length]``."""
    penalty: Real
    """Cost of a mixed joint action, not negative, in units of reward."""
    waiting: Real
    """1 if ``WAIT`` is legal, else 0."""
    max_length: int
    n_agents: int = 2
    n_actions: Literal[2, 3] = 2
    name: str = ""

    def __post_init__(self) -> None:
        require(self.max_length >= 1, f"max_length={self.max_length} must be at least 1.")
        require(self.n_agents >= 2, f"n_agents={self.n_agents} must be at least 2.")
        if finite.scalar_check(self.length):
            require(
                float(self.length).is_integer() and 1 <= float(self.length) <= self.max_length,
                f"length={float(self.length):g} must be a whole number from 1 to "
                f"max_length={self.max_length}.",
            )
        if finite.scalar_check(self.penalty):
            require(
                0 <= float(self.penalty) < np.inf,
                f"penalty={float(self.penalty):g} must be finite and not negative.",
            )
        if finite.scalar_check(self.waiting):
            require(
                float(self.waiting) in ((0, 1) if self.n_actions == 3 else (0,)),
                f"waiting={float(self.waiting):g} must be 0, or 1 with n_actions=3.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes; equal for all lengths up to ``max_length``."""
        return Spec(
            n_agents=self.n_agents,
            obs_dim=self.max_length,
            state_dim=self.max_length,
            horizon=self.max_length,
            n_actions=self.n_actions,
            one_hot=True,
        )

    def starts(self) -> tuple[Float[Array, "1"], State]:
        """Cell 0, with certainty."""
        return finite.certain(jnp.zeros((), jnp.int32))

    def observe(self, state: State) -> Observation:
        """The position, and ``WAIT`` only where it is part of the task."""
        feature = finite.one_hot(state, self.max_length)
        allowed = jnp.arange(self.n_actions) < WAIT + (jnp.asarray(self.waiting) > 0)
        legal = jnp.broadcast_to(allowed, (self.n_agents, self.n_actions))
        return finite.common_view(feature, legal)

    common_knowledge = finite.all_common

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "1"], State, Float[Array, "1"], Bool[Array, "1"]]:
        """Move on or end; a ``WAIT`` that is not legal counts as ``STOP``."""
        forward = action == FORWARD
        waits = (action == WAIT) & (jnp.asarray(self.waiting) > 0)
        onward = jnp.all(forward)
        mixed = jnp.any(forward) & ~onward
        last = state + 1 >= jnp.asarray(self.length)
        exit_reward = jnp.where(jnp.any(waits), 3.0, 4.0)
        here = jnp.where(mixed, -jnp.asarray(self.penalty), exit_reward)
        reward = jnp.where(onward, jnp.where(last, 5.0, 0.0), here).astype(jnp.float32)
        following = jnp.where(onward & ~last, state + 1, state)
        p, stacked = finite.certain((following, reward, ~onward | last))
        return p, *stacked

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Begin at cell 0. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Move on or end; ends by itself within ``max_length`` steps. Draws nothing."""
        return finite.advance(self, key, state, action)

    def heuristic(self, key: Key, state: State) -> Action:
        """All go forward: the optimum."""
        del key, state
        return jnp.full(self.n_agents, FORWARD, jnp.int32)

    def scene(self, state: State) -> Scene:
        """The corridor, all agents in one cell."""
        return board(1, int(self.length), [Point("agent", float(state), 0.0, str(self.n_agents))])


def hallway(
    *,
    length: Real = 2,
    max_length: int | None = None,
    penalty: Real = 0.0,
    n_agents: int = 2,
    n_actions: int = 2,
) -> Hallway:
    """The hallway without waiting; ``n_actions=3`` pads it to the shape of :func:`wait`."""
    return _hallway(length, max_length, penalty, 0.0, n_agents, n_actions)


def wait(
    *,
    length: Real = 1,
    max_length: int | None = None,
    penalty: Real = 2.0,
    n_agents: int = 2,
) -> Hallway:
    """The hallway with a third action, to wait; it also traps VDN and QMIX."""
    return _hallway(length, max_length, penalty, 1.0, n_agents, 3)


def _hallway(length, max_length, penalty, waiting, n_agents, n_actions) -> Hallway:
    length = finite.number(length, "length")
    if max_length is None:
        require(concrete(length), "max_length is needed where length is traced.")
        require(
            float(length).is_integer() and float(length) >= 1,
            f"length={float(length):g} must be a whole number, at least 1.",
        )
        max_length = int(length)
    return Hallway(
        length=length,
        penalty=finite.number(penalty, "penalty"),
        waiting=finite.number(waiting, "waiting"),
        max_length=max_length,
        n_agents=n_agents,
        n_actions=n_actions,
    )


class Walk(NamedTuple):
    """State of :class:`Meet`."""

    position: Int[Array, "N"]
    """Distance of each agent from the goal."""
    clock: Int[Array, ""]
    """Steps taken."""


@struct
class Meet:
    """Agents on chains of their own must reach cell 0 in the same step (hallway of NDQ).

    Agent i starts uniformly in ``1..lengths[i]`` and stays, goes left (towards 0) or right (up to
    its length). All at 0 pays 10 and ends; some but not all at 0 pays 0 and ends. Time runs out
    after ``max_length + 10`` steps, which truncates: it is a clock, not a part of the task.

    An agent sees its own position only. A joint policy reaches 10, and so does a decentralised one
    with memory or with ``clock``: walk to cell 1, wait until everybody has had time to, step
    together. A memoryless policy on its own position cannot: it does not know when the others stand
    at cell 1, so that its value is below that of :func:`tad_envs.solve`, which is a joint policy's.
    """

    lengths: Int[AnyArray, "N"]
    """Last cell of each agent's chain, in ``[1, max_length]``."""
    max_length: int
    clock: bool = False
    """Whether the step is shown, as a one-hot appended to every observation and to the state."""
    name: str = ""

    def __post_init__(self) -> None:
        require(self.max_length >= 1, f"max_length={self.max_length} must be at least 1.")
        lengths = self.lengths
        if isinstance(lengths, np.ndarray) and lengths.ndim == 1:
            require(len(lengths) >= 2, f"lengths={lengths.tolist()} must name at least 2 agents.")
            require(
                bool(np.all((lengths >= 1) & (lengths <= self.max_length))),
                f"lengths={lengths.tolist()} must lie between 1 and max_length={self.max_length}.",
            )

    @property
    def spec(self) -> Spec:
        """Sizes; equal for all lengths up to ``max_length``."""
        ticks = self._limit if self.clock else 0
        return Spec(
            n_agents=self.lengths.shape[0],
            obs_dim=self._cells + ticks,
            state_dim=self._state_features + ticks,
            horizon=self._limit,
            n_actions=3,
            one_hot=self._joint_code and not self.clock,
        )

    @property
    def _cells(self) -> int:
        return self.max_length + 1

    @property
    def _limit(self) -> int:
        return self.max_length + 10

    @property
    def _joint_code(self) -> bool:
        return self._cells ** self.lengths.shape[0] <= _JOINT_FEATURES

    @property
    def _state_features(self) -> int:
        agents = self.lengths.shape[0]
        return self._cells**agents if self._joint_code else self._cells * agents

    def starts(self) -> tuple[Float[Array, "K"], Walk]:
        """All cells from 1 to ``max_length``; those beyond an agent's chain have probability 0."""
        agents = self.lengths.shape[0]
        grid = np.indices((self.max_length,) * agents).reshape(agents, -1).T + 1
        position = jnp.asarray(grid, jnp.int32)
        inside = jnp.all(position <= jnp.asarray(self.lengths), axis=1)
        probability = inside / jnp.sum(inside)
        return probability, Walk(position, jnp.zeros(len(grid), jnp.int32))

    def observe(self, state: Walk) -> Observation:
        """Own position as a row of ``agents``; the joint position as ``state``."""
        agents = self.lengths.shape[0]
        rows = finite.one_hot(state.position, self._cells)
        joint = rows.reshape(-1)
        if self._joint_code:
            code = finite.joint_index(state.position, self._cells)
            joint = finite.one_hot(code, self._state_features)
        if self.clock:
            tick = finite.one_hot(jnp.minimum(state.clock, self._limit - 1), self._limit)
            rows = jnp.concatenate([rows, jnp.broadcast_to(tick, (agents, self._limit))], axis=1)
            joint = jnp.concatenate([joint, tick])
        return Observation(rows, joint, jnp.ones((agents, 3), bool), jnp.ones(agents, bool))

    def outcomes(
        self, state: Walk, action: Action
    ) -> tuple[Float[Array, "1"], Walk, Float[Array, "1"], Bool[Array, "1"]]:
        """Everybody moves at once, deterministically."""
        move = (action == RIGHT).astype(jnp.int32) - (action == LEFT).astype(jnp.int32)
        position = jnp.clip(state.position + move, 0, jnp.asarray(self.lengths, jnp.int32))
        home = position == 0
        reward = jnp.where(jnp.all(home), 10.0, 0.0).astype(jnp.float32)
        following = Walk(position, jnp.minimum(state.clock + 1, self._limit))
        p, stacked = finite.certain((following, reward, jnp.any(home)))
        return p, *stacked

    def reset(self, key: Key) -> tuple[Walk, Observation]:
        """Draw the start cells: one uniform number per agent."""
        agents = self.lengths.shape[0]
        lengths = jnp.asarray(self.lengths, jnp.int32)
        drawn = jnp.floor(jax.random.uniform(key, (agents,)) * lengths).astype(jnp.int32)
        # The product may round up to the length itself.
        state = Walk(jnp.minimum(drawn + 1, lengths), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key: Key, state: Walk, action: Action) -> tuple[Walk, TimeStep]:
        """Move; truncated when the clock has run out. Draws nothing."""
        return finite.advance(self, key, state, action, lambda s: s.clock >= self._limit)

    def heuristic(self, key: Key, state: Walk) -> Action:
        """Walk to cell 1, wait until everybody has had time to, step together: the optimum."""
        del key
        ready = state.clock >= self.max_length - 1
        return jnp.where((state.position > 1) | ready, LEFT, STAY).astype(jnp.int32)

    def scene(self, state: Walk) -> Scene:
        """One row for each chain, the goal at its left; cells beyond a chain are walls."""
        lengths, rows = np.asarray(self.lengths), self.lengths.shape[0]
        walls = tuple(
            (i, cell) for i in range(rows) for cell in range(int(lengths[i]) + 1, self.max_length + 1)
        )
        points = [Point("goal", 0.0, float(i), radius=0.45) for i in range(rows)]
        points += [
            Point("agent", float(cell), float(i), str(i)) for i, cell in enumerate(state.position)
        ]
        return board(rows, self._cells, points, f"step {int(state.clock)}", walls)


def meet(
    *,
    lengths: tuple[int, ...] = (2, 6, 10),
    max_length: int | None = None,
    clock: bool = False,
) -> Meet:
    """The hallway of NDQ; ``lengths`` names one chain per agent."""
    longest = max(lengths, default=0) if max_length is None else max_length
    return Meet(lengths=np.asarray(lengths, np.int32), max_length=longest, clock=clock)
