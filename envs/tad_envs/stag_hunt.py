"""The stag hunt: hunters choose to catch, two together, and whoever tries alone is punished.

Böhmer, Kurin and Whiteson 2020 (DCG), also the task of weighted QMIX and QPLEX. Averaging over what the
others do says that it is better not to try (relative overgeneralisation), the more so the larger the
punishment.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from tad_envs import finite, hunt
from tad_envs.hunt import CATCH, STAY, Grid, Hunt
from tad_envs.scene import Scene
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

_ORDERS = np.array(list(itertools.permutations(range(4))), np.uint32)
_PACKED = np.sum(_ORDERS.reshape(2, 12, 4) << (2 * np.arange(12, dtype=np.uint32)[:, None]), axis=1)
"""The first and the last twelve orders, two bits each, in a word per direction."""
_OUTSIDE = -2
"""Where prey cannot go, and nobody is: who has left is at -1."""
_UNROLLED = 2
"""Turns in one round of the compiled loop: faster than one."""


def _permuted(to: Bool[Array, "n n"], values: Shaped[Array, "n"]) -> Shaped[Array, "n"]:
    """Value ``i`` is put where ``to[i]`` holds: a permutation without a gather."""
    return jnp.sum(jnp.where(to, values[:, None], 0), axis=0, dtype=values.dtype)


def _preference(noise: Float[Array, "P"]) -> Int[Array, "P 4"]:
    """How much prey likes each direction: one of 24 orders, whose first free one is uniform."""
    index = jnp.minimum((noise * 24).astype(jnp.uint32), 23)[:, None]
    words = jnp.where(index < 12, _PACKED[0], _PACKED[1])
    return ((words >> (2 * (index % 12))) & 3).astype(jnp.int32)


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
        hunt.check_sizes(self.size, self.n_agents, self.n_prey, self.horizon)
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
            obs_dim=(3 if self.walls else 2) * hunt.WINDOW,
            state_dim=3 * (self.n_agents + self.n_prey),
            horizon=self.horizon,
            n_actions=CATCH + 1,
            reset_pool=2 * self.size,  # whoever catches all has crossed the grid twice
        )

    @property
    def _grid(self) -> Grid:
        return Grid(self.size, self.toroidal)

    def reset(self, key: Key) -> tuple[Hunt, Observation]:
        """Draw a cell of its own for everybody: one uniform number each."""
        noise = jax.random.uniform(key, (self.n_agents + self.n_prey,))
        cells = hunt.distinct(noise, self.size**2)
        state = Hunt(cells[: self.n_agents], cells[self.n_agents :], jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def observe(self, state: Hunt) -> Observation:
        """What is near, and where everybody is."""
        grid, alive = self._grid, state.agents >= 0
        views = grid.views(state.agents, state.agents, state.prey)
        beside = (views[1] & hunt.BESIDE) > 0
        if self.walls:
            views.append(self._outside(state.agents))
        actions = jnp.arange(CATCH + 1)
        moves = grid.onward(state.agents[:, None], actions) >= 0
        legal = jnp.where(actions == CATCH, beside[:, None], moves)
        legal = jnp.where(alive[:, None], legal, actions == STAY)
        return Observation(hunt.seen(views), grid.everybody(state), legal, alive)

    def _outside(self, agents: Int[Array, "N"]) -> UInt32[Array, "N"]:
        """Cells of each agent's window that are not on the grid; none on a torus."""
        offsets = np.arange(hunt.SIDE) - hunt.SIGHT
        rows, columns = (place[:, None] + offsets for place in self._grid.places(agents))
        rows, columns = ((x < 0) | (x >= self.size) for x in (rows, columns))
        beyond = (rows[:, :, None] | columns[:, None]).reshape(-1, hunt.WINDOW)
        bits = np.uint32(1) << np.arange(hunt.WINDOW, dtype=np.uint32)
        words = jnp.sum(jnp.where(beyond, bits, 0), axis=1, dtype=jnp.uint32)
        return jnp.where((agents >= 0) & (not self.toroidal), words, 0)

    def step(self, key: Key, state: Hunt, action: Action) -> tuple[Hunt, TimeStep]:
        """Agents move, then prey is caught or moves; one draw of uniform numbers."""
        n, p = self.n_agents, self.n_prey
        noise = jax.random.uniform(key, (n + 3 * p,))
        turns, order, pick, lazy = jnp.split(noise, np.cumsum([n, p, p]))
        grid = self._grid
        target, catch = grid.onward(state.agents, action), action == CATCH
        agents = hunt.moved(state.agents, target, state.prey, hunt.ranks(turns))
        # Put into the order of their turns once, so that each turn is a slice and not a gather.
        to = hunt.ranks(order)[:, None] == np.arange(p)
        prey, pick, lazy = (_permuted(to, x) for x in (state.prey, pick, lazy))
        around = grid.targets(prey)[:, :4]
        around = jnp.where(around < 0, _OUTSIDE, around)
        moving = lazy >= jnp.asarray(self.rest)
        liking = jnp.where(moving[:, None] & (around >= 0), _preference(pick), -1)
        begun = (jnp.concatenate([agents, prey]), *jnp.zeros((2,), jnp.int32))

        def turn(k: Array, carry: tuple) -> tuple:
            cells, caught, missed = carry
            hands = catch & jnp.any(around[k][:, None] == cells[:n], axis=0)
            count = jnp.sum(hands)
            leaving = jnp.concatenate([hands, jnp.zeros(p, bool)]) & (count >= 2)
            cells = jnp.where(leaving, -1, cells)
            liked = jnp.where(jnp.any(cells[:, None] == around[k], axis=0), -1, liking[k])
            best = jnp.max(liked)
            there = jnp.max(jnp.where(liked == best, around[k], -1))
            here = jnp.where(best >= 0, there, cells[n + k])
            here = jnp.where((cells[n + k] >= 0) & (count < 2), here, -1)
            return cells.at[n + k].set(here), caught + (count >= 2), missed + (count == 1)

        cells, caught, missed = jax.lax.fori_loop(0, p, turn, begun, unroll=_UNROLLED)
        agents, prey = cells[:n], _permuted(to.T, cells[n:])
        reward = jnp.asarray(self.reward) * caught + jnp.asarray(self.punishment) * missed
        following = Hunt(agents, prey, jnp.minimum(state.clock + 1, self.horizon))
        left = jnp.minimum(jnp.sum(agents >= 0) // 2, jnp.sum(prey >= 0))
        terminated = jnp.all(agents < 0) | jnp.all(prey < 0)
        info = {"caught": caught, "missed": missed, "won": left == 0}
        seen, expired = self.observe(following), following.clock >= self.horizon
        return following, hunt.time_step(seen, reward, terminated, expired, info)

    def heuristic(self, key: Key, state: Hunt) -> Action:
        """Two agents at a time go to the prey that they reach first, and catch it together."""
        moves, hunts, second = hunt.chase(self._grid, key, state, jnp.ones((), bool), 1)
        return jnp.where(hunts & (second == 1) & (state.agents >= 0), CATCH, moves)

    def scene(self, state: Hunt) -> Scene:
        """The grid and who is on it."""
        return hunt.scene_of(self.size, state, f"step {int(state.clock)}")


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
