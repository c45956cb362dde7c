"""Small battles after StarCraft micromanagement: JaxMARL's SMAX behind this package's protocol.

Allies fight scripted enemies (``HeuristicEnemySMAX``) on an open field of 32 x 32; a step is half a
second, in which a unit moves in one of four directions, stops, or attacks a unit in its range.
Dynamics, rewards and observations are those of JaxMARL 0.2.0, read and checked against it step by
step. What is put right:

* episodes last exactly ``horizon`` steps (upstream's one more) and are then truncated; ``terminated``
is
  that one side is dead, told from the state;
* the state for training is rebuilt with all features in [-1, 1]: upstream's has cooldowns that fall
without
  bound while a unit is idle, positions up to 32 and unit types as bare integers;
* randomly placed units start on the field (of upstream's SMACv2 maps one reset in ten puts a unit
outside,
  where it dies at once);
* what agents see of the enemies is computed once per step, not twice.

SMAX is not SMAC: no terrain, shields, healing, or line-ups with medivacs, colossi or banelings; hidden
memory of the enemies, so that no state is Markov; results do not carry over.

``U = N + E`` units, allies first; ``E`` enemies, besides the letters of :mod:`tad_envs.types`.
"""

import functools
import importlib.metadata
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.jaxmarl import jaxmarl_package, strong
from tad_envs.scene import Point, Scene
from tad_envs.struct import lookup, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

UPSTREAM = "jaxmarl-0.2.0"
"""The version whose rules these are; part of every environment, of its file and of its program."""

_LETTERS = {"m": 0, "M": 1, "s": 2, "z": 3, "l": 4, "h": 5}
"""Marine, marauder, stalker, zealot, zergling, hydralisk: upstream's numbers."""
_TYPES = 6
_HEALTH = np.array([45.0, 125.0, 160.0, 150.0, 35.0, 80.0], np.float32)
_COOLDOWN = np.array([0.61, 1.07, 1.87, 0.86, 0.5, 0.59], np.float32)
"""Seconds between two attacks."""
_RANGE = np.array([5.0, 6.0, 6.0, 2.0, 2.0, 5.0], np.float32)
_SIGHT = np.array([9.0, 10.0, 10.0, 9.0, 8.0, 9.0], np.float32)
_FIELD = 32.0
_STOP = 4
_MOVES = 5
_OTHER_FEATURES, _OWN_FEATURES = 13, 10
_MARGIN = 1.0
"""How far from the border randomly placed units start at least."""


class Map(NamedTuple):
    """A line-up: ``"3s5z"`` is three stalkers and five zealots."""

    allies: str
    enemies: str
    horizon: int = 100
    """Steps; upstream's for all its maps."""
    random: bool = False
    """SMACv2: types and places are drawn anew in each episode."""


MAPS = {
    "3m": Map("3m", "3m"),
    "8m": Map("8m", "8m"),
    "25m": Map("25m", "25m"),
    "2s3z": Map("2s3z", "2s3z"),
    "3s5z": Map("3s5z", "3s5z"),
    "5m_vs_6m": Map("5m", "6m"),
    "10m_vs_11m": Map("10m", "11m"),
    "27m_vs_30m": Map("27m", "30m"),
    "3s_vs_5z": Map("3s", "5z"),
    # Three stalkers need 72 steps of fire for five zealots and 116 for eight: SMAC's time is longer.
    "3s_vs_5z-250": Map("3s", "5z", 250),
    "3s_vs_8z-300": Map("3s", "8z", 300),
    "3s5z_vs_3s6z": Map("3s5z", "3s6z"),
    "3s5z_vs_3s7z": Map("3s5z", "3s7z"),
    "6h_vs_8z": Map("6h", "8z"),
    "corridor_open": Map("6z", "24l"),  # SMAC's numbers without its corridor
    "smacv2_5_units": Map("5m", "5m", random=True),
    "smacv2_10_units": Map("10m", "10m", random=True),
    "smacv2_20_units": Map("20m", "20m", random=True),
}


class Battle(NamedTuple):
    """State of :class:`Smax`."""

    inner: Any
    """Upstream's state of all units."""
    memory: Any
    """What the enemies remember."""
    seen: Float[Array, "E V"]
    """What the enemies see."""
    action: Int[Array, "N"]
    """What allies did last; -1 before the first step."""
    spawn: Float[Array, "N 2"]
    """Where allies began: their scripted policy marches by it, as the enemies' does."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


@struct
class Smax:
    """A map of SMAX; see the module.

    Actions: up, right, down, left, stop, then attack enemy j. Legal for the living: to move and stop,
    and to attack who is alive and nearer than the range of one's weapon; for the dead: to stop. An
    agent sees, of each other ally and then each enemy within its sight: health, relative place, last
    move and attack, cooldown and type (13 features), and of itself health, place, cooldown and type
    (10).

    The state, of ``(10 + A) N + 10 E + 1`` features: for each unit health, place in [-1, 1], cooldown
    as a share, and type, zeros if it is dead; for each ally its last action; the share of time that is
    gone.

    All allies receive the same: the share of the enemies' health that was lost in the step, averaged
    over enemies, and 1 when the last enemy dies while an ally lives; 2 in all for a victory. ``info``:
    ``won``, ``draw`` (both sides dead), ``allies_left``, ``enemies_left``.
    """

    allies: tuple[int, ...]
    """Types of the allies."""
    enemies: tuple[int, ...]
    random: bool
    horizon: int
    upstream: Literal["jaxmarl-0.2.0"] = UPSTREAM
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        require(
            len(self.allies) >= 1 and len(self.enemies) >= 1,
            f"allies={self.allies} and enemies={self.enemies} must have a unit each.",
        )

    @property
    def spec(self) -> Spec:
        """Sizes; known without upstream, which is imported when an episode begins."""
        n, enemies = len(self.allies), len(self.enemies)
        actions = _MOVES + enemies
        return Spec(
            n_agents=n,
            obs_dim=_OTHER_FEATURES * (n - 1 + enemies) + _OWN_FEATURES,
            state_dim=(_OWN_FEATURES + actions) * n + _OWN_FEATURES * enemies + 1,
            horizon=self.horizon,
            n_actions=actions,
            order_dependent=len(set(self.allies)) > 1,
            state_markov=False,
        )

    @property
    def _inside(self) -> Any:
        return _upstream(self.allies, self.enemies, self.random)

    def reset(self, key: Key) -> tuple[Battle, Observation]:
        """Place both sides as upstream does, but nobody outside the field."""
        env, n = self._inside, len(self.allies)
        _, begun = env.reset(key)
        inner, memory = strong(begun.state), strong(begun.enemy_policy_state)
        if self.random:
            inside = jnp.clip(inner.unit_positions, _MARGIN, _FIELD - _MARGIN)
            inner = inner.replace(unit_positions=inside)
        views = self._views(env._env.get_obs(inner))
        state = Battle(
            inner=inner,
            memory=memory,
            seen=views[n:],
            action=jnp.full(n, -1, jnp.int32),
            spawn=inner.unit_positions[:n],
            clock=jnp.zeros((), jnp.int32),
        )
        return state, self._observation(state, views)

    def step(self, key: Key, state: Battle, action: Action) -> tuple[Battle, TimeStep]:
        """Both sides act at once; truncated at the horizon."""
        env, n = self._inside, len(self.allies)
        key, enemy_key = jax.random.split(key)
        answers, memory = env.get_enemy_actions(enemy_key, state.memory, state.seen)
        answer = jnp.stack([answers[name] for name in env.enemy_agents])
        pairs = [env._env._decode_discrete_actions(chosen) for chosen in (action, answer)]
        moves, attacks = (jnp.concatenate(both) for both in zip(*pairs, strict=True))
        seen, inner, rewards, _, _ = env._env.step_env_no_decode(key, state.inner, (moves, attacks))
        # Types may drift upstream, and a loop's state must keep them.
        inner, memory = jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype), (inner, memory), (state.inner, state.memory)
        )
        views = self._views(seen)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        following = Battle(inner, memory, views[n:], action.astype(jnp.int32), state.spawn, clock)
        allies, enemies = (jnp.sum(side) for side in self._sides(inner.unit_alive))
        terminated = (allies == 0) | (enemies == 0)
        info = {
            "won": (enemies == 0) & (allies > 0),
            "draw": (enemies == 0) & (allies == 0),
            "allies_left": allies,
            "enemies_left": enemies,
        }
        return following, TimeStep(
            observation=self._observation(following, views),
            reward=jnp.asarray(rewards[env.agents[0]], jnp.float32),
            terminated=terminated,
            truncated=(clock >= self.horizon) & ~terminated,
            info={name: value.astype(jnp.float32) for name, value in info.items()},
        )

    def _sides(self, units: Array) -> tuple[Array, Array]:
        return units[: len(self.allies)], units[len(self.allies) :]

    def _views(self, seen: Any) -> Float[Array, "U V"]:
        """What all units see, in upstream's order of agents (and not that of sorted names)."""
        return jnp.stack([seen[name] for name in self._inside.all_agents])

    def _observation(self, state: Battle, views: Float[Array, "U V"]) -> Observation:
        alive, _ = self._sides(state.inner.unit_alive)
        return Observation(
            agents=views[: len(self.allies)],
            state=self._features(state),
            legal=self._legal(state.inner),
            alive=alive,
        )

    def _features(self, state: Battle) -> Float[Array, "S"]:
        """All that is known, scaled."""
        inner = state.inner
        kind = _kind(inner.unit_types)
        health = inner.unit_health / (kind @ _HEALTH)
        cooldown = jnp.clip(inner.unit_weapon_cooldowns / (kind @ _COOLDOWN), 0.0, 1.0)
        place = inner.unit_positions * (2 / _FIELD) - 1
        units = jnp.concatenate([health[:, None], place, cooldown[:, None], kind], axis=1)
        units = jnp.where(inner.unit_alive[:, None], units, 0.0)
        last = finite.one_hot(state.action, self.spec.n_actions)
        time = jnp.asarray(state.clock / self.horizon, jnp.float32)
        return jnp.concatenate([units.reshape(-1), last.reshape(-1), time[None]])

    def _legal(self, inner: Any) -> Bool[Array, "N A"]:
        """Dead: stop. Alive: move, stop, and attack who is alive and in range."""
        (alive, targets), (own, others) = (
            self._sides(inner.unit_alive),
            self._sides(inner.unit_positions),
        )
        reach = _kind(self._sides(inner.unit_types)[0]) @ _RANGE
        apart = jnp.linalg.norm(own[:, None] - others, axis=-1)
        attack = (apart < reach[:, None]) & targets
        moves = jnp.ones((len(self.allies), _MOVES), bool)
        stops = np.arange(self.spec.n_actions) == _STOP
        return jnp.where(alive[:, None], jnp.concatenate([moves, attack], axis=1), stops)

    def heuristic(self, key: Key, state: Battle) -> Action:
        """Upstream's scripted enemies' policy, played by the allies.

        It attacks the nearest enemy in range until that is dead, walks towards an enemy in sight, and
        else towards the point that mirrors where it began.
        """
        inner, n = state.inner, len(self.allies)
        (alive, targets), (own, others) = (
            self._sides(inner.unit_alive),
            self._sides(inner.unit_positions),
        )
        kind = _kind(self._sides(inner.unit_types)[0])
        away = others - own[:, None]
        apart = jnp.linalg.norm(away, axis=-1)
        visible = (apart < (kind @ _SIGHT)[:, None]) & targets
        reached = visible & (apart < (kind @ _RANGE)[:, None])
        before = reached & (state.action[:, None] - _MOVES == np.arange(len(self.enemies)))
        nearest = jnp.argmin(jnp.where(reached, apart, jnp.inf), axis=1)
        attack = jnp.where(jnp.any(before, axis=1), jnp.argmax(before, axis=1), nearest)
        anyone = jnp.argmax(jnp.where(visible, jax.random.uniform(key, visible.shape), -1.0), axis=1)
        towards = jnp.take_along_axis(away, anyone[:, None, None], axis=1)[:, 0]
        towards = jnp.where(jnp.any(visible, axis=1)[:, None], towards, _FIELD - state.spawn - own)
        ways = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)
        move = jnp.argmax(towards @ ways.T, axis=1)
        chosen = jnp.where(jnp.any(reached, axis=1), _MOVES + attack, move)
        return jnp.where(alive[:n], chosen, _STOP).astype(jnp.int32)

    def scene(self, state: Battle) -> Scene:
        """The field, its units by the first letter of their type, and their health."""
        inner, letters = state.inner, list(_LETTERS)
        points = [
            Point(
                kind="agent" if i < len(self.allies) else "enemy",
                x=float(inner.unit_positions[i][0]),
                y=float(inner.unit_positions[i][1]),
                label=letters[int(inner.unit_types[i])],
                alive=bool(inner.unit_alive[i]),
                value=float(inner.unit_health[i] / _HEALTH[int(inner.unit_types[i])]),
                radius=0.6,
            )
            for i in range(len(self.allies) + len(self.enemies))
        ]
        return Scene((0, 0), (_FIELD, _FIELD), tuple(points), title=f"step {int(state.clock)}")


def _kind(types: Array) -> Float[Array, "n 6"]:
    return finite.one_hot(types.astype(jnp.int32), _TYPES)


@functools.cache
def _upstream(allies: tuple[int, ...], enemies: tuple[int, ...], random: bool) -> Any:
    """The upstream object, made once: jax compares programs by it."""
    found = f"jaxmarl-{importlib.metadata.version('jaxmarl')}"
    require(found == UPSTREAM, f"smax needs {UPSTREAM}, whose rules its results are of; found {found}.")
    with jax.ensure_compile_time_eval():  # its arrays must not belong to whatever is being traced
        package = jaxmarl_package()
        from jaxmarl.environments.smax.smax_env import Scenario

        types = jnp.asarray(allies + enemies, jnp.uint8)
        scenario = Scenario(types, len(allies), len(enemies), random, random)
        env = package.make("HeuristicEnemySMAX", scenario=scenario)
    # Upstream's `done` says not which end it was, and is not asked.
    return env


def _units(text: str) -> tuple[int, ...]:
    """``"3s5z"`` as types of units."""
    types, count = [], ""
    for sign in text:
        if sign.isdigit():
            count += sign
        else:
            types += [_LETTERS[sign]] * int(count)
            count = ""
    return tuple(types)


def smax(scenario: str, horizon: int | None = None) -> Smax:
    """The battle called ``scenario``, one of :data:`MAPS`; ``horizon`` steps, or the map's own."""
    line_up = lookup(MAPS, scenario, "map")
    return Smax(
        allies=_units(line_up.allies),
        enemies=_units(line_up.enemies),
        random=line_up.random,
        horizon=line_up.horizon if horizon is None else horizon,
    )
