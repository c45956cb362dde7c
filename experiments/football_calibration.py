"""Which constants of football ask for passing: scripted players on a grid, then learners at one point.

    python experiments/football_calibration.py                         # scripts on the grid
    PART=learners STEPS=1000000 SEEDS=2 python experiments/football_calibration.py
    PART=order python experiments/football_calibration.py              # scripts on all scenarios

Football here is a model of our own (:mod:`tad_envs.football`), so its constants are ours to choose, by
what they are to show on ``3_vs_1_with_keeper``:

(a) random play scores in at most 1 % of episodes;
(b) a player who learns alone, the mates standing still, in at most 35 %;
(c) forbidding this player to pass changes that by at most 5 points, so that it is solo play;
(d) a team that learns reaches 80 % within 10 M steps;
(f) by learned scores, ``pass_and_shoot`` is easier than ``3_vs_1_with_keeper`` and
    ``counterattack_easy``, these easier than ``run_pass_and_shoot``, ``counterattack_hard`` is last.

``scripts`` looks for (a), for a low best score of scripted solo play (bounding (b) from below) and a
high one of scripted passing (bounding (d) from below): each point of the grid is scored with every
setting of the scripts, as one program over constants and settings. A script's best setting is chosen on
half of the episodes and told on the other half. ``learners`` measures (b), (c) and (d) with PPO, with
checkpoint rewards, at the constants given by ``CONSTANTS``; (d) and (f) at 10 M steps are work for an
accelerator. ``order`` scores the scripts on all scenarios. Tables go to ``runs/football_calibration``.
"""

import functools
import itertools
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report
from tad_envs import Nested, Observation, random_action, struct
from tad_envs.football import Football
from tad_envs.football_pitch import ACTIONS, HIGH_PASS, IDLE, LONG_PASS, SHORT_PASS
from tad_envs.football_scenarios import SCENARIOS
from tad_envs.football_scripts import scripted

OUT = pathlib.Path(os.environ.get("OUT", "runs/football_calibration"))
PART = os.environ.get("PART", "scripts")
EPISODES = int(os.environ.get("EPISODES", "256"))
STEPS = int(os.environ.get("STEPS", "1000000"))
SEEDS = int(os.environ.get("SEEDS", "2"))
METHODS = os.environ.get("METHODS", "mappo,tad_ppo").split(",")
GAME = os.environ.get("GAME", "football/3_vs_1_with_keeper")
CONSTANTS = os.environ.get("CONSTANTS", "")
"""Such as ``tackle=0.1,rush=14``; the defaults if none."""

GRID = {
    "tackle": (0.06, 0.15),
    "defender_speed": (5.5, 6.2),
    "rush": (10.0, 20.0),
    "save_reach": (1.2, 2.0),
    "pass_sigma": (0.03,),
}
SHOOT, NEAR, WIDE = (10.0, 14.0, 18.0, 22.0), (4.0, 7.0), (6.0, 10.0)
SOLO = np.array([(s, 5, 9) for s in SHOOT], np.float32)
TEAM = np.array(list(itertools.product(SHOOT, NEAR, WIDE)), np.float32)
"""Settings ``shoot, near, wide`` of the scripts, in metres."""


def goals(env: Football, key: jax.Array, act: object, count: int) -> jax.Array:
    """Whether each of ``count`` episodes of ``act(key, state, observation)`` ends with a goal."""

    def one(key: jax.Array) -> jax.Array:
        def advance(carry: tuple, key: jax.Array) -> tuple:
            state, seen, running, won = carry
            act_key, step_key = jax.random.split(key)
            state, step = env.step(step_key, state, act(act_key, state, seen))  # type: ignore[operator]
            won = won | (running & (step.info["won"] > 0))
            return (state, step.observation, running & ~step.terminated, won), None

        begun = (*env.reset(key), jnp.ones((), bool), jnp.zeros((), bool))
        return jax.lax.scan(advance, begun, jax.random.split(key, env.spec.horizon))[0][3]

    return jax.vmap(one)(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnums=(2, 3))
def scripts(envs: Football, settings: jax.Array, passes: bool, count: int) -> jax.Array:
    """Goals ``[points, settings, episodes]`` of scripted players."""

    def rate(env: Football, setting: jax.Array) -> jax.Array:
        shoot, near, wide = setting

        def act(key: jax.Array, state: object, seen: Observation) -> jax.Array:
            n = env.spec.n_agents
            return scripted(n, state, passes=passes, shoot=shoot, near=near, wide=wide)  # type: ignore[arg-type]

        return goals(env, jax.random.key(1), act, count)

    return jax.vmap(jax.vmap(rate, (None, 0)), (0, None))(envs, settings)


@functools.partial(jax.jit, static_argnums=1)
def chance(envs: Football, count: int) -> jax.Array:
    """Goals ``[points, episodes]`` of random play."""

    def rate(env: Football) -> jax.Array:
        act = lambda key, state, seen: random_action(env.spec, key, seen)  # noqa: E731
        return goals(env, jax.random.key(2), act, count)

    return jax.vmap(rate)(envs)


def told(won: np.ndarray, settings: np.ndarray) -> tuple[float, str]:
    """The score of the best setting, which is chosen on the first half of the episodes."""
    half = won.shape[1] // 2
    best = won[:, :half].mean(1).argmax()
    return float(won[best, half:].mean()), "/".join(f"{x:g}" for x in settings[best])


def scored(names: list[str], labels: list[dict]) -> list[dict]:
    """Random, solo and passing scores of games of equal sizes, one row each."""
    envs = jax.tree.map(lambda *x: np.stack(x), *(jt.make(name) for name in names))
    by_chance = np.asarray(chance(envs, 4 * EPISODES)).mean(1)
    alone = np.asarray(scripts(envs, jnp.asarray(SOLO), False, EPISODES))
    team = np.asarray(scripts(envs, jnp.asarray(TEAM), True, EPISODES))
    rows = []
    for i, label in enumerate(labels):
        (one, how_one), (all_, how_all) = told(alone[i], SOLO), told(team[i], TEAM)
        row = {"random": by_chance[i], "solo": one, "passing": all_, "gap": all_ - one}
        row = {name: round(float(value), 3) for name, value in row.items()}
        rows.append(label | row | {"solo at": how_one, "passing at": how_all})
    return rows


def grid() -> list[dict]:
    """Every point of the grid, the widest gap first."""
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    names = [GAME + "".join(f"/{k}={v}" for k, v in point.items()) for point in points]
    return sorted(scored(names, points), key=lambda row: -row["gap"])


def order() -> list[dict]:
    """The scripts on all scenarios with the constants as they are."""
    rows = []
    for key in SCENARIOS:
        rows += scored([f"football/{key}"], [{"scenario": key}])
        print(rows[-1], flush=True)
    return rows


# --- learners -------------------------------------------------------------------------------------


@struct
class Alone:
    """Football in which only the player who starts next to the ball acts; all mates stand still."""

    game: Nested[Football]
    passes: bool
    """Whether this player may pass."""
    name: str = ""

    @property
    def spec(self):
        """Sizes."""
        return self.game.spec

    def _shown(self, seen: Observation) -> Observation:
        start = self.game.start
        apart = np.linalg.norm(np.array(start.own) - np.array(start.ball), axis=1)
        acts = (np.arange(len(apart)) == apart.argmin())[:, None]
        barred = np.isin(np.arange(ACTIONS), [LONG_PASS, HIGH_PASS, SHORT_PASS]) & (not self.passes)
        idle = np.arange(ACTIONS) == IDLE
        return seen._replace(legal=jnp.where(acts, seen.legal & ~barred, idle))

    def reset(self, key):
        """As the game."""
        state, seen = self.game.reset(key)
        return state, self._shown(seen)

    def step(self, key, state, action):
        """As the game."""
        state, step = self.game.step(key, state, action)
        return state, step._replace(observation=self._shown(step.observation))


PPO = {
    "envs": 128, "steps": 64, "epochs": 4, "minibatches": 4, "lr": 5e-4, "lam": 0.95, "gamma": 0.99,
    "entropy_coef": 0.01,
}  # fmt: skip


def learners() -> list[dict]:
    """Goal rates of PPO: alone, alone without passes, and as a team."""
    constants = dict(pair.split("=") for pair in CONSTANTS.split(",") if pair)
    name = GAME + "".join(f"/{k}={v}" for k, v in constants.items())
    game = jt.make(name, reward="checkpoints")
    assert isinstance(game, Football)
    cases = [
        ("(b) alone", "mappo", Alone(game=game, passes=True, name="alone")),
        ("(c) alone, no passes", "mappo", Alone(game=game, passes=False, name="alone, no passes")),
        *(("(d) team", method, game) for method in METHODS),
    ]
    rows = []
    for case, method, env in cases:
        began = time.process_time()
        run = jt.run(
            method,
            env,
            seeds=SEEDS,
            total_steps=STEPS,
            evaluations=10,
            episodes=128,
            progress=False,
            **PPO,
        )
        curve = run.curves["won"]
        rows.append({
            "case": case, "method": method, "constants": CONSTANTS or "as they are", "steps": STEPS,
            "greedy": round(float(run.final["won"].mean()), 3),
            "by seed": " ".join(f"{x:.2f}" for x in np.asarray(run.final["won"])),
            "best on the way": round(float(np.asarray(curve).mean(0).max()), 3),
            "CPU-s": round(time.process_time() - began),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows = {"scripts": grid, "learners": learners, "order": order}[PART]()
    print(report.table(rows, path=OUT / f"{PART}.csv"))
    print(f"\nresults: {OUT / PART}.csv")


if __name__ == "__main__":
    main()
