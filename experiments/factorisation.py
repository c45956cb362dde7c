"""Factoring a joint policy too early, and annealing it instead: the note's game, and two bigger ones.

    python experiments/factorisation.py              # about two CPU-minutes
    SAMPLED=0 python experiments/factorisation.py    # exact gradients alone

The note's game pays 0, −5 and 10 where none, one and both leave the safe action; p and q are the
probabilities of staying. The policy gradient of the product is −15 + 20 q for p, so that p = q = 3/4
divides the basins of 10 and of 0.

1. Basins: exact gradients of both agents' logits from a grid of (p, q). Expected: 10 from p = q ≤ .74,
   0 from p = q ≥ .76, and no other end.
2. Schedules: the annealed joint policy from p = q = .9, exact gradients of J(π_c) − λ KL(π_jt ‖ Π π_i).
   Expected: hold, linear and kl_only end at 10 for λ = 1, 5, 20; the product alone, the mixture without
   λ, and a large λ from the beginning end at 0, as does λ = 1 from the beginning with half the product.
3. The same with the registered method, from samples; and from uniform policies in climbing and in TAD's
   game, where the product alone ends at 7 and 5 and the schedules at 11 and 10.
4. Divergence and mutual information over the run, and the payoff of the product (figure).
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import factorisation, report
from jaxmarl_tad.algorithms.joint import annealed

OUT = pathlib.Path(os.environ.get("OUT", "runs/factorisation"))
SEEDS = int(os.environ.get("SEEDS", "16"))
SAMPLED = os.environ.get("SAMPLED", "1") == "1"
STEPS, RATE = 2_000, 0.5
NOTE, SAFE = "matrix/note001", math.log(9)
"""Logit of the safe action at p = q = .9."""


class Setting(NamedTuple):
    """A schedule, its λ, the c it starts with, and whether the note's trap is left."""

    schedule: annealed.Schedule
    weight: float
    mixture: float
    works: bool


SETTINGS = (
    Setting("none", 0.0, 0.0, works=False),
    Setting("mixture_only", 0.0, 1.0, works=False),
    *(Setting("kl_only", weight, 1.0, works=True) for weight in (1.0, 5.0, 20.0)),
    *(Setting("linear", weight, 1.0, works=True) for weight in (1.0, 5.0, 20.0)),
    *(Setting("hold", weight, 1.0, works=True) for weight in (1.0, 5.0, 20.0)),
    Setting("constant", 1.0, 1.0, works=True),
    Setting("constant", 1.0, 0.5, works=False),
    *(Setting("constant", weight, c, works=False) for weight in (5.0, 20.0) for c in (1.0, 0.5)),
)


class Course(NamedTuple):
    """What an exact run came to, at every step ``[..., steps]``."""

    product: Any
    """Payoff of Π π_i."""
    joint: Any
    """Payoff of π_jt."""
    kl: Any
    information: Any
    """Mutual information of the agents' actions under π_jt."""


def weights(setting: Setting, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """c and λ of every step, by the method's own schedules."""
    config = annealed.Config(
        schedule=setting.schedule, kl_end=setting.weight, mixture_start=setting.mixture
    )
    both = annealed.weights(config, jnp.arange(steps) / steps)
    return tuple(np.broadcast_to(x, steps) for x in both)  # type: ignore[return-value]


@jax.jit
def ascend(payoff: Any, logits: Any, joint: Any, mixture: Any, weight: Any, rate: Any) -> Course:
    """Exact gradients of J(π_c) − λ KL from logits ``[2, A]``, ``[A * A]``; c and λ are ``[steps]``."""
    worth = jnp.asarray(payoff, jnp.float32).reshape(-1)

    def told(params: tuple[Any, Any]) -> tuple[Any, Any]:
        return jax.nn.log_softmax(params[0]), jax.nn.log_softmax(params[1])

    def objective(params: tuple[Any, Any], c: Any, strength: Any) -> Any:
        own, together = told(params)
        mixed = c * jnp.exp(together) + (1 - c) * jnp.exp(factorisation.product_log_probs(own))
        return mixed @ worth - strength * factorisation.kl_joint_product(together, own)

    def step(params: tuple[Any, Any], now: tuple[Any, Any]) -> tuple[Any, Course]:
        slope = jax.grad(objective)(params, *now)
        params = jax.tree.map(lambda p, s: p + rate * s, params, slope)
        own, together = told(params)
        return params, Course(
            product=jnp.exp(factorisation.product_log_probs(own)) @ worth,
            joint=jnp.exp(together) @ worth,
            kl=factorisation.kl_joint_product(together, own),
            information=factorisation.total_correlation(together, 2),
        )

    return jax.lax.scan(step, (logits, joint), (mixture, weight))[1]


def courses(
    payoff: np.ndarray, logits: np.ndarray, settings: tuple[Setting, ...] = SETTINGS, steps: int = STEPS
) -> Course:
    """Every setting from the product of agents' ``logits [2, A]``; leaves ``[settings, steps]``."""
    own = jnp.asarray(logits, jnp.float32)
    joint = factorisation.product_log_probs(own)
    c, weight = (np.stack(x) for x in zip(*(weights(s, steps) for s in settings), strict=True))
    over = jax.vmap(ascend, (None, None, None, 0, 0, None))
    return jax.device_get(over(payoff, own, joint, c, weight, RATE))


def basins(count: int = 21) -> tuple[list[dict], pathlib.Path]:
    """Where the product's exact gradient ends, from p = q and from a grid."""
    payoff = np.asarray(jt.make(NOTE).payoff)  # type: ignore[attr-defined]
    line = np.asarray([0.1, 0.3, 0.5, 0.7, 0.74, 0.76, 0.8, 0.9])
    grid = (np.arange(count) + 0.5) / count
    starts = np.concatenate(
        [np.stack([line, line], 1), np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)]
    )
    logits = np.stack([np.log(starts), np.log1p(-starts)], axis=-1)  # [K, 2, 2]
    own = jnp.asarray(logits, jnp.float32)
    nothing = jnp.zeros(20_000)
    over = jax.jit(
        lambda own: jax.vmap(
            lambda x: ascend(payoff, x, jnp.zeros(4), nothing, nothing, RATE).product[-1]
        )(own)
    )
    ends = np.asarray(over(own))
    rows = [
        {
            "start": f"p = q = {p:g}",
            "payoff": round(float(end), 2),
            "expected": 10 if p < 0.75 else 0,
            "as expected": bool(abs(end - (10 if p < 0.75 else 0)) < 0.1),
        }
        for p, end in zip(line, ends, strict=False)
    ]
    ends = ends[len(line) :]
    good, bad = np.mean(np.abs(ends - 10) < 0.1), np.mean(np.abs(ends) < 0.1)
    rows.append(
        {
            "start": f"grid of {count} x {count}",
            "payoff": f"10: {good:.3f}, 0: {bad:.3f}",
            "expected": "10 or 0",
            "as expected": bool(good + bad > 0.99),
        }
    )
    picture = report.gradient_field(
        payoff, OUT / "basins.png", starts=[[0.9, 0.9]], actions=("stay", "leave")
    )
    return rows, picture


def schedules() -> tuple[list[dict], Course]:
    """The table of schedules in the note's game."""
    payoff = np.asarray(jt.make(NOTE).payoff)  # type: ignore[attr-defined]
    course = courses(payoff, np.asarray([[SAFE, 0.0]] * 2))
    rows = [
        {
            "schedule": setting.schedule,
            "λ": setting.weight,
            "c": setting.mixture,
            "product": round(float(course.product[i, -1]), 2),
            "joint": round(float(course.joint[i, -1]), 2),
            "kl": round(float(course.kl[i, -1]), 2),
            "expected": 10 if setting.works else 0,
            "as expected": bool(abs(course.product[i, -1] - 10 * setting.works) < 0.1),
        }
        for i, setting in enumerate(SETTINGS)
    ]
    return rows, course


def bigger() -> list[dict]:
    """Exact gradients from uniform policies in climbing and TAD's game."""
    rows = []
    chosen = tuple(
        s for s in SETTINGS if (s.schedule, s.weight) in (("none", 0), ("linear", 5), ("hold", 5))
    )
    for game, (trap, best) in {"matrix/climbing": (7, 11), "matrix/tad": (5, 10)}.items():
        payoff = np.asarray(jt.make(game).payoff)  # type: ignore[attr-defined]
        course = courses(payoff, np.zeros((2, 3)), chosen, steps=10 * STEPS)
        for setting, end in zip(chosen, course.product[:, -1], strict=True):
            known = best if setting.works else trap
            rows.append(
                {"game": game, "schedule": setting.schedule, "λ": setting.weight}
                | {"product": round(float(end), 2), "expected": known}
                | {"as expected": bool(abs(end - known) < 0.1)}
            )
    return rows


def sampled() -> tuple[list[dict], dict[str, Any]]:
    """The registered method, ``SEEDS`` seeds of each schedule."""
    settings = [
        ("none", {}, (0, 7, 5)),
        ("mixture_only", {}, (0, None, None)),
        ("constant", {"kl_end": 5.0}, (0, None, None)),
        ("kl_only", {}, (10, 11, 10)),
        ("linear", {}, (10, 11, 10)),
        ("hold", {}, (10, 11, 10)),
    ]
    logits = (SAFE, 0.0, 0.0)
    games: list[Any] = [(jt.make(NOTE, pad_to=3), {"initial_logits": logits})]
    games += [jt.make("matrix/climbing"), jt.make("matrix/tad")]
    rows, runs = [], {}
    for schedule, given, wanted in settings:
        run = jt.run(
            "annealed_joint", games, seeds=SEEDS, episodes=1, evaluations=20, schedule=schedule, **given
        )
        runs[schedule] = run
        ends = run.final["return"].reshape(len(games), SEEDS)
        for game, values, end in zip(("note", "climbing", "tad"), ends, wanted, strict=True):
            share = None if end is None else float(np.mean(np.abs(values - end) < 1e-3))
            numbers, counts = np.unique(np.round(values, 2), return_counts=True)
            found = ", ".join(f"{v:g}: {c}" for v, c in zip(numbers, counts, strict=True))
            rows.append(
                {"game": game, "schedule": schedule, **{"λ": given.get("kl_end", 1.0)}}
                | {"seeds by payoff": found, "expected": end}
                | {"as expected": None if share is None else share >= 0.9}
            )
    return rows, runs


def figure(course: Course, runs: dict[str, Any]) -> pathlib.Path:
    """Payoff of the product, divergence and mutual information over the run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = len(runs) > 0
    drawn = Figure(figsize=(report.WIDTH, 5.2 if lines else 2.9), dpi=report.DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1 + lines, 3, squeeze=False)
    shown = {(s.schedule, s.weight, s.mixture): i for i, s in enumerate(SETTINGS)}
    keys = [("none", 0.0, 0.0), ("mixture_only", 0.0, 1.0), ("constant", 5.0, 1.0)]
    keys += [("kl_only", 5.0, 1.0), ("linear", 5.0, 1.0), ("hold", 5.0, 1.0)]
    titles = ("payoff of the product", "KL(joint ‖ product), nats", "mutual information, nats")
    for colour, key in zip(report.METHODS, keys, strict=False):
        f = np.arange(STEPS) / STEPS
        for panel, field in zip(axes[0], ("product", "kl", "information"), strict=True):
            panel.plot(f, getattr(course, field)[shown[key]], color=colour, linewidth=1.5, label=key[0])
        if lines:
            run = runs[key[0]]
            f = run.steps / run.steps[-1]
            for panel, field in zip(axes[1], ("return", "kl", "total_correlation"), strict=True):
                values = run.curves[field][:SEEDS]
                panel.plot(f, values.mean(0), color=colour, linewidth=1.5)
                panel.fill_between(f, values.min(0), values.max(0), color=colour, alpha=0.15)
    kinds = ("exact gradients", f"from samples, mean and range of {SEEDS} seeds")
    for row, kind in zip(axes, kinds, strict=False):
        for panel, title in zip(row, titles, strict=True):
            panel.set_title(f"{title}\n{kind}", size=7.5, loc="left")
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel("share of the run", size=7.5)
    drawn.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8
    )
    path = OUT / "schedules.png"
    drawn.savefig(path, metadata={"Software": None})
    return path


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    first, picture = basins()
    print(f"Basins\n\n{report.table(first, path=OUT / 'basins.csv')}\n", flush=True)
    second, course = schedules()
    print(f"Schedules, exact\n\n{report.table(second, path=OUT / 'schedules.csv')}\n", flush=True)
    third = bigger()
    print(f"From uniform, exact\n\n{report.table(third, path=OUT / 'bigger.csv')}\n", flush=True)
    runs: dict[str, Any] = {}
    if SAMPLED:
        fourth, runs = sampled()
        print(f"From samples\n\n{report.table(fourth, path=OUT / 'sampled.csv')}\n", flush=True)
    print("\n".join(map(str, (picture, figure(course, runs)))))


if __name__ == "__main__":
    main()
