"""Traffic signals: how many agents, what they share, and how a jam is learned to be avoided.

    python experiments/traffic.py                       # all parts, about a quarter of an hour of CPU
    python experiments/traffic.py --parts jam --seeds 4

Every row is a method on a grid of signals (``tad_envs.traffic``), beside the best of five controllers
there: two plans in step, the longest queue, the largest pressure, and that with a reluctance to switch.
``gap`` is how much more the agents lose than the controller.

``scaling``   MAPPO, one policy for all agents, on a road of 6 signals and on grids of 9 and of 36, for
              equal numbers of steps. Expected: within 5 % of the best controller.
``sharing``   IPPO on the grid of 9 with all parameters shared, with identities, and with none shared.
              Signals are alike, so that sharing should help: expected of those that share, within 5 %;
              the others are without a claim.
``jam``       ``spill2x4``, where links are so short that jams hold up themselves. Expected: MAPPO loses
              less in an hour than every controller that looks at queues, if it learns in episodes of 20
              minutes; in episodes of an hour it learns nothing. Under random play streets are full
              after a few minutes and stay so, whatever the signals do: so is what is learned from.

Policies are scored on whole hours. Tables, CSV and figure go to ``--out`` (``runs/traffic``).
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from settings import SETTINGS

import jaxmarl_tad as jt
from jaxmarl_tad import report
from jaxmarl_tad.statistics import stratified_bootstrap
from tad_envs.traffic import Traffic

EPISODES = 64
GRID, ROAD, LARGE, SPILL = (
    "traffic/grid3x3",
    "traffic/rows=1/columns=6",
    "traffic/grid6x6",
    "traffic/spill2x4",
)
SHORT = 120
"""Steps of the episodes in which the jam is learned: 20 minutes."""


@dataclass(frozen=True)
class Case:
    """A row: who learns where, and what is expected."""

    part: str
    env: str
    method: str
    label: str
    steps: int
    fields: dict[str, Any] = field(default_factory=dict)
    horizon: int = 360
    most: float | None = None
    """The largest gap that is expected, against the best of the controllers that are asked for."""
    least: float | None = None
    greedy: bool = False
    """Whether only controllers that look at queues count."""


CASES = (
    *(Case("scaling", env, "mappo", "shared", 300_000, most=0.05) for env in (ROAD, GRID, LARGE)),
    Case("sharing", GRID, "ippo", "full", 300_000, {"sharing": "full"}, most=0.05),
    Case("sharing", GRID, "ippo", "full_id", 300_000, {"sharing": "full_id"}, most=0.05),
    Case("sharing", GRID, "ippo", "none", 300_000, {"sharing": "none"}),
    Case("jam", SPILL, "mappo", "20 minutes", 600_000, {"envs": 64}, SHORT, most=0.0, greedy=True),
    Case("jam", SPILL, "mappo", "an hour", 600_000, {"envs": 64}, least=0.0, greedy=True),
)
PARTS = tuple(dict.fromkeys(case.part for case in CASES))


def controllers(env: Traffic) -> dict[str, Callable[[Any], jax.Array]]:
    """Reference policies, functions of the state; the first two do not look at it."""
    return {
        "plan 3-1-3-1": env.fixed,
        "plan 2-1-2-1": functools.partial(env.fixed, plan=(2, 1, 2, 1)),
        "longest queue": env.longest_queue,
        "pressure": env.max_pressure,
        "pressure, reluctant": functools.partial(env.max_pressure, hysteresis=3.0),
    }


@functools.cache
def best_controller(name: str, greedy: bool) -> tuple[str, float]:
    """Name and mean return of the best controller."""
    env = jt.make(name)
    assert isinstance(env, Traffic)

    def episode(act: Callable[[Any], jax.Array], key: jax.Array) -> jax.Array:
        def advance(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            state, step = env.step(key, state, act(state))
            return state, step.reward

        keys = jax.random.split(key, env.spec.horizon)
        return jax.lax.scan(advance, env.reset(key)[0], keys)[1].sum()

    keys = jax.random.split(jax.random.key(0), EPISODES)
    known = list(controllers(env).items())[2 if greedy else 0 :]
    returns = {
        name: float(jax.jit(jax.vmap(functools.partial(episode, act)))(keys).mean())
        for name, act in known
    }
    best = max(returns, key=lambda name: returns[name])
    return best, returns[best]


def row(case: Case, seeds: int, scale: float) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """A row of the table, and the learning curve."""
    env = jt.make(case.env)
    learned_in = case.env if case.horizon == env.spec.horizon else f"{case.env}/horizon={case.horizon}"
    began = time.process_time()
    run = jt.run(
        case.method,
        learned_in,
        seeds=seeds,
        total_steps=round(case.steps * scale),
        evaluations=10,
        episodes=16,
        progress=False,
        gamma=0.97,
        **(SETTINGS["signals"][case.method] | case.fields),
    )
    spent = time.process_time() - began
    scored = jt.evaluate(run, env, episodes=EPISODES)
    returns = np.asarray(scored["return"])
    low, high = stratified_bootstrap([returns], np.mean)
    controller, best = best_controller(case.env, case.greedy)
    gap = float(returns.mean()) / best - 1  # both are losses
    expected, holds = "–", "–"
    if case.most is not None:
        expected, holds = f"<= {100 * case.most:g}", "yes" if gap <= case.most else "no"
    if case.least is not None:
        expected, holds = f">= {100 * case.least:g}", "yes" if gap >= case.least else "no"
    told = {
        "part": case.part,
        "env": case.env,
        "agents": env.spec.n_agents,
        "method": case.method,
        "case": case.label,
        "steps": int(run.steps[-1]),
        "return": round(float(returns.mean()), 1),
        "low": round(low, 1),
        "high": round(high, 1),
        "served": round(float(np.mean(scored["served"]))),
        "best controller": controller,
        "its return": round(best, 1),
        "gap %": round(100 * gap, 1),
        "expected": expected,
        "holds": holds,
        "CPU-s": round(spent),
    }
    return told, (run.steps, np.asarray(run.curves["return"]))


def parsed() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/traffic"))
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    for part in set(options.parts) - set(PARTS):
        parser.error(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if options.seeds < 1 or options.scale <= 0:
        parser.error("--seeds and --scale must be positive.")
    return options


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if case.part in options.parts:
            told, curve = row(case, options.seeds, options.scale)
            rows.append(told)
            panel = case.env if case.horizon == SHORT or case.part != "jam" else f"{case.env} (an hour)"
            curves.setdefault(panel, {})[f"{case.method}, {case.label}"] = curve
            print(report.table(rows, path=options.out / "traffic.csv"), flush=True)
    figure = report.learning_curves(curves, options.out / "traffic.png")
    print(f"\nresults: {options.out}\nfigure:  {figure}")


if __name__ == "__main__":
    main()
