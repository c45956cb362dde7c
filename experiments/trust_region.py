"""Simultaneous against sequential updates: exactly on r = a₁ a₂, by sampling, and as methods learn.

    python experiments/trust_region.py                       # everything, about 2 CPU-minutes
    METHODS=mappo,hatrpo SEEDS=16 python experiments/trust_region.py

On r = a₁ a₂ with Gaussian policies J = μ₁ μ₂, and the gradient of each mean is the other's. From
(-¼, ¼), where J < 0, both agents improve by moving towards the other's side. If both move at once they
pass each other, and μ₁ + μ₂ = 0 for ever: the start lies on the stable manifold of the saddle at 0.
If the second waits for what the first has become, every step raises J. Parts of the table:

* ``exact``: signed steps of one size η = σ √(2δ), which is what a trust region makes of any gradient.
  Expected: simultaneous steps never bring J above 0, sequential ones end at 4, for every η;
* ``exact slope``: simultaneous steps along the gradient. Expected: the saddle for a rate below 2, and
  -4 above, where they overshoot more each time;
* ``sampled``: the same from batches of 256 (the second of a sequence weighs its samples by M = π_new /
  π_old of the first). Noise pushes everybody off the manifold. Expected: all seeds end at 4;
* registered methods from the same means on ``matrix/product``, simultaneous (IPPO, MAPPO) and
  sequential (HAPPO, HAA2C, HATRPO). Expected, as they sample: all at 4;
* the same on ``two_quadratics``, whose optimum of 10 lies behind a broad hill of height 0. Expected:
  the hill. Sequential improvement is monotone, and a local optimum is where it ends.

Table, CSV and figure go to ``runs/trust_region``.
"""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report

OUT = pathlib.Path(os.environ.get("OUT", "runs/trust_region"))
SEEDS = int(os.environ.get("SEEDS", "64"))
METHODS = os.environ.get("METHODS", "ippo,mappo,happo,haa2c,hatrpo").split(",")
SEQUENTIAL = ("happo", "haa2c", "hatrpo")
START = (-0.25, 0.25)
LIMIT = 2.0
"""Means are kept in [-2, 2], as actions are."""
SIZES = (0.05, 0.1, 0.3, 0.5)
SIGMA, BATCH = 0.5, 256
STEPS = 200


def exact(size: float, *, sequential: bool, steps: int = STEPS, slope: bool = False) -> np.ndarray:
    """J after each iteration of exact steps of this size, or along the gradient at this rate."""
    mean, path = np.array(START), []
    for _ in range(steps):
        told = mean.copy()  # what each agent knows of the other
        for agent in (0, 1):
            gradient = (mean if sequential else told)[1 - agent]
            step = size * (gradient if slope else np.sign(gradient))
            mean[agent] = np.clip(mean[agent] + step, -LIMIT, LIMIT)
        path.append(mean.prod())
    return np.asarray(path)


def weighted_slope(action: Any, m: Any, mean: Any, sigma: float, agent: int) -> Any:
    """Mean of M r ∇ log π of one agent over samples ``action [B, 2]``."""
    score = (action[:, agent] - mean[agent]) / sigma**2
    return jnp.mean(m * action.prod(1) * score)


def density_ratio(action: Any, new: Any, old: Any, sigma: float) -> Any:
    """π_new(a) / π_old(a) of one agent."""
    return jnp.exp(((action - old) ** 2 - (action - new) ** 2) / (2 * sigma**2))


@functools.partial(jax.jit, static_argnames=("sequential", "signed"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def sampled(key: Any, size: Any, sequential: bool, signed: bool) -> Any:
    """J after each iteration of steps from samples."""

    def iterate(mean: Any, key: Any) -> tuple[Any, Any]:
        action = mean + SIGMA * jax.random.normal(key, (BATCH, 2))
        old, m = mean, jnp.ones(BATCH)
        for agent in (0, 1):
            slope = weighted_slope(action, m, old, SIGMA, agent)
            step = size * (jnp.sign(slope) if signed else slope)
            new = jnp.clip(old[agent] + step, -LIMIT, LIMIT)
            mean = mean.at[agent].set(new)
            if sequential:
                m = m * density_ratio(action[:, agent], new, old[agent], SIGMA)
        return mean, mean.prod()

    return jax.lax.scan(iterate, jnp.asarray(START), jax.random.split(key, STEPS))[1]


def row(game: str, how: str, updates: str, setting: str, ends: Any, expected: str, good: Any) -> dict:
    """One line of the table; ``good`` tells of each seed whether it is as expected."""
    ends = np.round(np.atleast_1d(ends), 2) + 0.0  # without a sign of 0
    return {
        "game": game,
        "gradients": how,
        "updates": updates,
        "setting": setting,
        "seeds": len(ends),
        "lowest": float(ends.min()),
        "highest": float(ends.max()),
        "expected": expected,
        "share": round(float(np.mean(good)), 2),
        "holds": "yes" if np.mean(good) >= 15 / 16 else "NO",
    }


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    curves: dict[str, dict] = {}
    modes = {"simultaneous": False, "sequential": True}
    steps, many = np.arange(1, STEPS + 1), jax.random.split(jax.random.key(0), 200)

    for updates, sequential in modes.items():
        for size in SIZES:
            path = exact(size, sequential=sequential)
            if sequential:
                told = ("4, and never lower than before", path[-1] == 4 and np.diff(path).min() >= 0)
            else:
                told = ("never above 0", path.max() <= 1e-12)
            rows.append(row("product", "exact", updates, f"η={size:g}", path[-1], *told))
            if size in (SIZES[0], SIZES[-2]):
                curves.setdefault(f"exact, η={size:g}", {})[updates] = (steps, path[None])
    for rate, end in ((0.5, 0.0), (1.5, 0.0), (2.5, -4.0)):
        path = exact(rate, sequential=False, slope=True)
        good = abs(path[-1] - end) < 1e-6
        rows.append(
            row("product", "exact slope", "simultaneous", f"rate={rate:g}", path[-1], f"{end:g}", good)
        )
    for updates, sequential in modes.items():
        for signed, size in ((False, 0.1), (True, SIZES[0])):
            path = np.asarray(sampled(many, size, sequential, signed))
            name = f"η={size:g}" if signed else f"rate={size:g}"
            good = path[:, -1] > 3.5
            rows.append(row("product", "sampled", updates, name, path[:, -1], "4", good))
            curves.setdefault(f"sampled, {name}", {})[updates] = (steps, path)
    print(report.table(rows, path=OUT / "table.csv"), flush=True)

    for game, end, within in (("matrix/product", 4.0, 0.05), ("two_quadratics", 0.0, 0.2)):
        for name in METHODS:
            # Means in units of the range: the same start, on the way to the other's side.
            means = np.asarray(START)[:, None] / LIMIT if game == "matrix/product" else 0.0
            run = jt.run(
                name, game, seeds=SEEDS, initial_logits=means, sharing="none",
                evaluations=20, episodes=1, progress=False,
            )  # fmt: skip
            ends, updates = run.final["return"], modes_of(name)
            good = np.abs(ends - end) <= within
            label = game.partition("/")[2] or game
            rows.append(row(label, name, updates, "defaults", ends, f"{end:g}", good))
            curves.setdefault(label, {})[name] = (run.steps, run.curves["return"])
        print(report.table(rows[-len(METHODS) :]), flush=True)
    report.table(rows, path=OUT / "table.csv")
    figure = OUT / "paths.png"
    learned = {label: curves.pop(label) for label in ("product", "two_quadratics")}
    report.learning_curves(
        learned, figure, "Learned from (-¼, ¼), and from 0", {"product": 4.0, "two_quadratics": 10.0}
    )
    both, best = OUT / "steps.png", dict.fromkeys(curves, 4.0)
    report.learning_curves(
        curves, both, "r = a₁ a₂ from (-¼, ¼): J by iteration", best, label="J", reps=50
    )
    print(f"\nresults: {OUT}\nfigures: {both}, {figure}")


def modes_of(name: str) -> str:
    """How the agents of a method take their steps."""
    return "sequential" if name in SEQUENTIAL else "simultaneous"


if __name__ == "__main__":
    main()
