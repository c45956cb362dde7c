"""Four cooperative games of jumanji behind this package's protocol, with clocks and masks put right.

Written for jumanji 1.1.2. What upstream says of an episode's end is never used: three of the four
games report the end of time as the end of the task, Cleaner ends when any agent does what is illegal,
and Connector's discounts are zero for single agents in the middle of an episode. Here ``terminated``
is read off the state, for all agents at once, and time is our own; what is illegal does nothing.
Nothing resets by itself, and a step draws from the key that it is given.

``connector``  pairs of points are joined by paths that block one another; an agent sees the board with
               itself as the first (upstream shows all the same board), and is done when connected
``cleaner``    tiles of a maze are cleaned; square boards, for upstream's masks are wrong on others
``rware``      robots fetch shelves; collisions end the task, which the original game does not do
``lbf``        foragers lift food together; agents never start in rows that are numbered as some food's
               row or column is, upstream's fault

The last two are oracles of native games, and what Mava's results were measured on.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Game = Literal["connector", "cleaner", "rware", "lbf"]
Reward = Literal["sum", "mean"]


class Wrapped(NamedTuple):
    """State of :class:`Jumanji`."""

    inner: Any
    """Upstream's own state."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


class Sizes(NamedTuple):
    """What a scenario fixes; a game uses some of them."""

    agents: int
    grid: int = 0
    """Cells along a side."""
    food: int = 0
    sight: int = 0
    """Cells that a forager sees in each direction."""
    together: bool = False
    """Whether food needs more than one forager."""
    shelf_rows: int = 0
    queue: int = 0
    """Shelves that are requested at a time."""


class _View(NamedTuple):
    """What a game makes of upstream's state."""

    rows: Float[Array, "N O"]
    state: Float[Array, "S"]
    alive: Bool[Array, "N"]
    ended: Bool[Array, ""]
    info: dict[str, Array]


class _Rules(NamedTuple):
    """One game: how upstream makes it, its sizes, and how its states are read."""

    build: Callable[[Any, Sizes], Any]
    spec: Callable[[Sizes], dict[str, Any]]
    view: Callable[[Sizes, Any, Any], _View]


@struct
class Jumanji:
    """A game of jumanji, with a clock of its own; see the module."""

    game: Game
    sizes: Sizes
    reward: Reward
    """How agents' rewards make the team's, where each has its own."""
    horizon: int
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        require(self.sizes.agents >= 1, f"agents={self.sizes.agents} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes, for which upstream is not asked."""
        sizes = GAMES[self.game].spec(self.sizes)
        return Spec(n_agents=self.sizes.agents, horizon=self.horizon, **sizes)

    @property
    def inside(self) -> Any:
        """Upstream's environment."""
        return _upstream(self.game, self.sizes)

    def reset(self, key: Key) -> tuple[Wrapped, Observation]:
        """Begin an episode as upstream does."""
        inner, seen = self.inside.reset(key)
        inner = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), inner)  # no weak types
        observation = _observation(self._view(inner, seen), seen)
        return Wrapped(inner, jnp.zeros((), jnp.int32)), observation

    def step(self, key: Key, state: Wrapped, action: Action) -> tuple[Wrapped, TimeStep]:
        """Advance as upstream does; truncated at the horizon."""
        inner, seen = self.inside.step(state.inner.replace(key=key), action)
        inner = jax.tree.map(_of_type, inner, state.inner)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        view = self._view(inner, seen)
        team = jnp.mean(seen.reward) if self.reward == "mean" else jnp.sum(seen.reward)
        over = (clock >= self.horizon) & ~view.ended
        observation = _observation(view, seen)
        step = TimeStep(observation, team.astype(jnp.float32), view.ended, over, view.info)
        return Wrapped(inner, clock), step

    def _view(self, inner: Any, seen: Any) -> _View:
        return GAMES[self.game].view(self.sizes, inner, seen.observation)


def _of_type(new: Array, old: Array) -> Array:
    """``new``, whose type upstream lets drift, as a loop's state must be; keys are left alone."""
    return new if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else jnp.asarray(new, old.dtype)


def _observation(view: _View, seen: Any) -> Observation:
    legal = jnp.asarray(seen.observation.action_mask, bool)
    return Observation(agents=view.rows, state=view.state, legal=legal, alive=view.alive)


@functools.cache
def _upstream(game: Game, sizes: Sizes) -> Any:
    """The upstream object, made once; its own limit is never reached, nor would it matter."""
    with warnings.catch_warnings(), jax.ensure_compile_time_eval():  # not arrays of what is traced
        warnings.simplefilter("ignore")
        return GAMES[game].build(
            importlib.import_module(f"jumanji.environments.routing.{_HOME[game]}"), sizes
        )


def _planes(*boards: Array) -> Float[Array, "F"]:
    return jnp.concatenate([jnp.asarray(board, jnp.float32).reshape(-1) for board in boards])


def _at(place: Int[Array, "N 2"], height: int, width: int) -> Bool[Array, "N G W"]:
    """A board for each agent, True where it stands."""
    row, column = (finite.one_hot(place[:, i], size) > 0 for i, size in enumerate((height, width)))
    return row[:, :, None] & column[:, None, :]


# --------------------------------------------------------------------------------------------------
# Connector


def _connector(module: Any, sizes: Sizes) -> Any:
    made = importlib.import_module(module.__name__ + ".generator")
    return module.Connector(made.RandomWalkGenerator(sizes.grid, sizes.agents))


def _connector_view(sizes: Sizes, inner: Any, seen: Any) -> _View:
    """Boards of heads and targets (agents' numbers, own first), paths, own head, own target."""
    n, grid = sizes.agents, seen.grid
    owner, kind = (grid - 1) // 3, (grid - 1) % 3  # path, head, target; an empty cell belongs to -1
    path, head, target = (grid > 0) & (kind == 0), (grid > 0) & (kind == 1), (grid > 0) & (kind == 2)
    turned = (owner - jnp.arange(n)[:, None, None]) % n
    own, rank = turned == 0, (1 + turned) / n
    boards = (head * rank, target * rank, jnp.broadcast_to(path, rank.shape),
              head & own, target & own)  # fmt: skip
    rows = jnp.stack([jnp.asarray(board, jnp.float32) for board in boards], axis=1).reshape(n, -1)
    connected = jnp.all(inner.agents.position == inner.agents.target, axis=-1)
    stuck = ~jnp.any(seen.action_mask[:, 1:], axis=1)
    return _View(
        rows=rows,
        state=_planes(head * (1 + owner) / n, target * (1 + owner) / n, path),
        alive=~connected,
        ended=jnp.all(connected | stuck),
        info={"won": jnp.all(connected), "connected": jnp.mean(connected.astype(jnp.float32))},
    )


# --------------------------------------------------------------------------------------------------
# Cleaner


def _cleaner(module: Any, sizes: Sizes) -> Any:
    made = importlib.import_module(module.__name__ + ".generator")
    return module.Cleaner(made.RandomGenerator(sizes.grid, sizes.grid, sizes.agents))


def _cleaner_view(sizes: Sizes, inner: Any, seen: Any) -> _View:
    """Boards of dirt, walls, oneself, and the share of agents at each place; agents' places at last."""
    n, g = sizes.agents, sizes.grid
    dirty, wall = inner.grid == 0, inner.grid == 2
    place = inner.agents_locations
    own = _at(place, g, g).astype(jnp.float32)
    shared = jnp.broadcast_to(jnp.stack([dirty, wall, jnp.mean(own, axis=0)]), (n, 3, g, g))
    clean = ~jnp.any(dirty)
    return _View(
        rows=jnp.concatenate([own[:, None], shared], axis=1).reshape(n, -1),
        state=_planes(dirty, wall, 2 * place / (g - 1) - 1),
        alive=jnp.ones(n, bool),
        ended=clean,
        info={"won": clean},
    )


# --------------------------------------------------------------------------------------------------
# Robot warehouse


def _rware(module: Any, sizes: Sizes) -> Any:
    made = importlib.import_module(module.__name__ + ".generator")
    return module.RobotWarehouse(
        made.RandomGenerator(
            shelf_rows=sizes.shelf_rows,
            shelf_columns=3,
            column_height=8,
            num_agents=sizes.agents,
            sensor_range=1,
            request_queue_size=sizes.queue,
        )
    )


def _floor(sizes: Sizes) -> tuple[int, int]:
    return 9 * sizes.shelf_rows + 2, 10


def _rware_view(sizes: Sizes, inner: Any, seen: Any) -> _View:
    """Upstream's 66 numbers, coordinates in [0, 1]; boards of shelves and requests, and the robots."""
    n, (height, width) = sizes.agents, _floor(sizes)
    rows = jnp.asarray(seen.agents_view, jnp.float32)
    sides = np.array([height - 1, width - 1], np.float32)
    rows = jnp.concatenate([rows[:, :2] / sides, rows[:, 2:]], axis=1)
    place = jnp.stack([inner.agents.position.x, inner.agents.position.y], axis=1)
    same = jnp.all(place[:, None] == place, axis=-1)
    shelf = jnp.stack([inner.shelves.position.x, inner.shelves.position.y], axis=1)
    asked = jnp.asarray(inner.shelves.is_requested, bool)
    stands = _at(shelf, height, width)
    robots = jnp.concatenate(
        [
            place / sides,
            finite.one_hot(inner.agents.direction, 4),
            jnp.asarray(inner.agents.is_carrying, jnp.float32)[:, None],
        ],
        axis=1,
    )
    return _View(
        rows=rows,
        state=_planes(jnp.any(stands, axis=0), jnp.any(stands & asked[:, None, None], axis=0), robots),
        alive=jnp.ones(n, bool),
        ended=jnp.sum(same) > n,
        info={"collided": jnp.sum(same) > n},
    )


# --------------------------------------------------------------------------------------------------
# Level-based foraging


def _lbf(module: Any, sizes: Sizes) -> Any:
    made = importlib.import_module(module.__name__ + ".generator")
    return module.LevelBasedForaging(
        made.RandomGenerator(
            grid_size=sizes.grid,
            num_agents=sizes.agents,
            num_food=sizes.food,
            fov=sizes.sight,
            max_agent_level=_LEVELS,
            force_coop=sizes.together,
        )
    )


_LEVELS = 2
"""Of foragers; food is at most as heavy as the three weakest of them."""


def _lbf_view(sizes: Sizes, inner: Any, seen: Any) -> _View:
    """Upstream's view, scaled by the board and the largest level; all places, levels, what is eaten."""
    n, g = sizes.agents, sizes.grid
    scale = np.array([g - 1, g - 1, _LEVELS * min(n, 3)], np.float32)
    rows = jnp.asarray(seen.agents_view, jnp.float32).reshape(n, -1, 3) / scale
    agents, food = inner.agents, inner.food_items
    whole = [jnp.concatenate([x.position, x.level[:, None]], axis=1) / scale for x in (agents, food)]
    eaten = jnp.asarray(food.eaten, bool)
    return _View(
        rows=rows.reshape(n, -1),
        state=_planes(*whole, eaten),
        alive=jnp.ones(n, bool),
        ended=jnp.all(eaten),
        info={"won": jnp.all(eaten), "eaten": jnp.mean(eaten.astype(jnp.float32))},
    )


# --------------------------------------------------------------------------------------------------
# The table


_HOME = {"connector": "connector", "cleaner": "cleaner", "rware": "robot_warehouse", "lbf": "lbf"}

GAMES: dict[str, _Rules] = {
    "connector": _Rules(
        _connector,
        lambda s: {"n_actions": 5, "obs_dim": 5 * s.grid**2, "state_dim": 3 * s.grid**2,
                   "order_dependent": True},
        _connector_view,
    ),
    "cleaner": _Rules(
        _cleaner,
        lambda s: {"n_actions": 4, "obs_dim": 4 * s.grid**2, "state_dim": 2 * s.grid**2 + 2 * s.agents},
        _cleaner_view,
    ),
    "rware": _Rules(
        _rware,
        lambda s: {"n_actions": 5, "obs_dim": 66, "order_dependent": True,
                   "state_dim": 2 * int(np.prod(_floor(s))) + 7 * s.agents},
        _rware_view,
    ),
    "lbf": _Rules(
        _lbf,
        lambda s: {"n_actions": 6, "obs_dim": 3 * (s.agents + s.food),
                   "state_dim": 3 * s.agents + 4 * s.food},
        _lbf_view,
    ),
}  # fmt: skip
"""How each game is made and read."""

SCENARIOS: dict[Game, dict[str, tuple[Sizes, int]]] = {
    "connector": {
        "con-5x5x3a": (Sizes(agents=3, grid=5), 25),
        "con-7x7x5a": (Sizes(agents=5, grid=7), 49),
        "con-10x10x10a": (Sizes(agents=10, grid=10), 100),
        "con-15x15x23a": (Sizes(agents=23, grid=15), 225),
    },
    "cleaner": {
        f"clean-{g}x{g}": (Sizes(agents=g, grid=g), limit)
        for g, limit in ((5, 25), (10, 100), (15, 225), (20, 400), (30, 600))
    },
    "rware": {
        "tiny-2ag": (Sizes(agents=2, shelf_rows=1, queue=2), 500),
        "tiny-4ag": (Sizes(agents=4, shelf_rows=1, queue=4), 500),
        "tiny-4ag-easy": (Sizes(agents=4, shelf_rows=1, queue=8), 500),
        "small-4ag": (Sizes(agents=4, shelf_rows=2, queue=4), 500),
    },
    "lbf": {
        "8x8-2p-2f-coop": (Sizes(agents=2, grid=8, food=2, sight=8, together=True), 100),
        "2s-8x8-2p-2f-coop": (Sizes(agents=2, grid=8, food=2, sight=2, together=True), 100),
        "10x10-3p-3f": (Sizes(agents=3, grid=10, food=3, sight=10), 100),
        "2s-10x10-3p-3f": (Sizes(agents=3, grid=10, food=3, sight=2), 100),
        "15x15-3p-5f": (Sizes(agents=3, grid=15, food=5, sight=15), 100),
        "15x15-4p-3f": (Sizes(agents=4, grid=15, food=3, sight=15), 100),
        "15x15-4p-5f": (Sizes(agents=4, grid=15, food=5, sight=15), 100),
    },
}
"""Mava's scenarios: sizes and steps of an episode; the smallest of each game first."""


def scenario(game: Game, name: str) -> Callable[..., Jumanji]:
    """The factory of one scenario."""
    sizes, limit = SCENARIOS[game][name]

    def made(*, horizon: int = limit, reward: Reward = "sum") -> Jumanji:
        return Jumanji(game=game, sizes=sizes, reward=reward, horizon=horizon)

    made.__doc__ = f"jumanji's {game}, Mava's scenario {name}."
    return made


def connector(
    *, grid: int = 10, agents: int = 10, horizon: int = 50, reward: Reward = "sum"
) -> Jumanji:
    """Pairs of points to be joined on a board; jumanji's own sizes by default."""
    _check_grid(grid)
    require(3 * agents <= grid**2, f"agents={agents} do not fit on {grid} x {grid} cells.")
    return Jumanji(
        game="connector", sizes=Sizes(agents=agents, grid=grid), reward=reward, horizon=horizon
    )


def cleaner(*, grid: int = 10, agents: int = 3, horizon: int = 100) -> Jumanji:
    """A square maze to be cleaned; jumanji's own sizes by default."""
    _check_grid(grid)
    sizes = Sizes(agents=agents, grid=grid)
    return Jumanji(game="cleaner", sizes=sizes, reward="sum", horizon=horizon)


def _check_grid(grid: int) -> None:
    require(grid >= 3, f"grid={grid} must be at least 3 cells wide.")
