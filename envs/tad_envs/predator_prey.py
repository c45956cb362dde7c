"""The modified predator-prey of QTRAN (Son et al. 2019), as in ma-gym.

*Standing* next to a prey is what catches it, two predators together; one alone costs. Prey keeps away
from predators.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite, hunt
from tad_envs.hunt import STAY, STEPS, Grid, Hunt
from tad_envs.scene import Scene
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

_TRIES = 5
"""Moves that prey considers."""
_MOVE_CHANCE = 0.175
"""Of each of the four moves; staying has the rest."""


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
        hunt.check_sizes(self.size, self.n_agents, self.n_prey, self.horizon)
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
            obs_dim=3 + hunt.WINDOW,
            state_dim=3 * (self.n_agents + self.n_prey),
            horizon=self.horizon,
            n_actions=STAY + 1,
            order_dependent=True,
        )

    @property
    def _grid(self) -> Grid:
        return Grid(self.size)

    def reset(self, key: Key) -> tuple[Hunt, Observation]:
        """Draw cells, of their own for everybody, and for prey next to no predator."""
        n, p, cells = self.n_agents, self.n_prey, self.size**2
        noise = jax.random.uniform(key, (n + p * cells,))
        agents = hunt.distinct(noise[:n], cells)
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
        place = jnp.stack(grid.centred(state.agents), axis=1)
        views = [place, hunt.seen(grid.views(state.agents, state.prey)), time]
        return Observation(
            agents=jnp.concatenate(views, axis=1),
            state=grid.everybody(state),
            legal=jnp.ones((n, STAY + 1), bool),
            alive=jnp.ones(n, bool),
        )

    def step(self, key: Key, state: Hunt, action: Action) -> tuple[Hunt, TimeStep]:
        """Predators move, then prey is caught or moves; one draw of uniform numbers."""
        grid, p = self._grid, self.n_prey
        noise = jax.random.uniform(key, (p, _TRIES))
        target = grid.onward(state.agents, action)
        order = jnp.arange(self.n_agents)
        agents = hunt.moved(state.agents, target, state.prey, order)
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
        seen, expired = self.observe(following), following.clock >= self.horizon
        return following, hunt.time_step(seen, reward, terminated, expired, info)

    def _fled(
        self,
        noise: Float[Array, "P T"],
        prey: Int[Array, "P"],
        agents: Int[Array, "N"],
        caught: Bool[Array, "P"],
    ) -> Int[Array, "P"]:
        """Where prey goes; it leaves in its turn: those before it still find it in their way."""
        considered = jnp.sum(noise[..., None] >= _MOVE_CHANCE * np.arange(1, 5), axis=-1)
        apart = [
            jnp.abs((place[:, None] + step)[:, :, None] - own)
            for place, step, own in zip(
                self._grid.places(prey), STEPS.T, self._grid.places(agents), strict=True
            )
        ]
        beside = apart[0] + apart[1] == 1
        safe = ~jnp.any(beside, axis=2)  # of each direction; outside as well, which is then not free
        chosen = finite.one_hot(considered, STAY + 1) > 0
        fits = jnp.any(chosen & safe[:, None], axis=-1)
        first = jnp.argmax(fits, axis=1)
        way = jnp.any(chosen & (first[:, None] == np.arange(_TRIES))[..., None], axis=1)
        target = jnp.sum(jnp.where(way, self._grid.targets(prey), 0), axis=1)
        target = jnp.where(jnp.any(fits, axis=1), target, -1)

        def turn(k: Array, cells: Array) -> Array:
            mine = np.arange(self.n_prey) == k
            wanted = jnp.sum(jnp.where(mine, target, 0))
            free = (wanted >= 0) & ~jnp.any(cells == wanted) & ~jnp.any(agents == wanted)
            onward = jnp.where(free & (cells >= 0), wanted, cells)
            return jnp.where(mine, jnp.where(caught, -1, onward), cells)

        return jax.lax.fori_loop(0, self.n_prey, turn, prey)

    def heuristic(self, key: Key, state: Hunt) -> Action:
        """Two predators wait two steps away from a prey until both are there, then close in."""
        return hunt.chase(self._grid, key, state, jnp.ones((), bool), 2)[0]

    def scene(self, state: Hunt) -> Scene:
        """The grid and who is on it."""
        return hunt.scene_of(self.size, state, f"step {int(state.clock)}")


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
