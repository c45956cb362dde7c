"""Methods on tasks, beside what was published: one table, learning curves, and who beats whom.

    python experiments/benchmark.py                          # foraging, particles, a hunt: hours
    python experiments/benchmark.py --suite lbf --methods ippo,vdn --seeds 4
    python experiments/benchmark.py --suite mpe --tasks spread --methods all --steps 2000000
    python experiments/benchmark.py --suite football --tasks 3_vs_1   # for an accelerator

Suites, budgets, published figures and bars are in `tasks.py`, settings in `settings.py`. Each method
and task is one program for all seeds. A run that was cut off is continued where it stood, and
one that is complete is not run again.

``ours`` is the mean over seeds of the last policy, acting greedily in fresh episodes, between the
``worst`` and the ``best`` seed; ``peak`` is the best of ten evaluations of that mean, which is how
EPyMARL's values were taken. ``span`` is the share of the way from random play to the published value
that ``ours`` has gone (a method without one is measured by the best). ``expected`` is the bar, and
``holds`` says whether it is reached.

A second table aggregates over tasks: the interquartile mean of all seeds' spans with its 95 %
interval (redrawn within tasks), and the probability that a run of the method beats one of the first.

Tables, curves and figures go to ``--out`` (``runs/benchmark``).
"""

import argparse
import pathlib
from typing import Any

import numpy as np
from settings import SETTINGS
from tasks import SUITES, Task

import jaxmarl_tad as jt
from jaxmarl_tad import report, statistics
from tad_envs import random_action

FIRST_SEED = 100
"""Settings were chosen by runs of seeds 0 and 1; what is reported comes from others."""
EPISODES = 1024
"""Of the final evaluation."""


def random_policy(env: jt.Environment) -> jt.Policy:
    """Uniform play over legal actions."""

    def act(key, memory, observation):
        return random_action(env.spec, key, observation), memory, {}

    return jt.Policy(start=lambda: (), act=act, execution="decentralised")


def trained(task: Task, method: str, options: argparse.Namespace) -> jt.Trained:
    """``method`` on ``task``, continued if it was begun."""
    settings = task.common | SETTINGS[task.settings].get(method, {})
    steps = options.steps or task.more_steps.get(method, task.steps)
    name = task.env.replace("/", "-")
    return jt.run(
        method,
        task.env,
        seeds=list(range(FIRST_SEED, FIRST_SEED + options.seeds)),
        total_steps=steps,
        evaluations=10,
        episodes=100,
        out=options.out / "runs" / f"{method}-{name}-{steps}-{options.seeds}",
        **settings,
    )


def bar(task: Task, method: str) -> tuple[str, float]:
    """What is expected: ``(">=", value)``, ``("<=", value)`` or ``("span >=", share)``."""
    if method in task.at_least:
        return ">=", task.at_least[method]
    if method in task.at_most:
        return "<=", task.at_most[method]
    return "span >=", task.span.get(method, task.span.get("", float("nan")))


def judged(task: Task, method: str, ours: float, span: float) -> tuple[str, str]:
    """The bar as a text, and whether it is reached."""
    kind, value = bar(task, method)
    if np.isnan(value):
        return "–", "–"
    reached = {">=": ours >= value, "<=": ours <= value, "span >=": span >= value}[kind]
    return f"{kind} {value:g}", "yes" if reached else "no"


def row(task: Task, method: str, run: jt.Trained, chance: float) -> tuple[dict[str, Any], np.ndarray]:
    """A row of the table, and the span of every seed."""
    env = task.make()
    final = np.asarray(task.to_scale(env, jt.evaluate(run, env, episodes=EPISODES)[task.measure]))
    curves = np.asarray(task.to_scale(env, run.curves[task.measure]))
    published = task.published.get(method)
    goal = max(task.published.values(), default=task.optimum) if published is None else published
    spans = (final - chance) / (goal - chance)
    ours = float(final.mean())
    expected, holds = judged(task, method, ours, float(spans.mean()))
    told = {
        "task": task.env,
        "method": method,
        "seeds": len(final),
        "steps": int(run.steps[-1]),
        "random": round(chance, 3),
        "ours": round(ours, 3),
        "worst": round(float(final.min()), 3),
        "best": round(float(final.max()), 3),
        "peak": round(float(curves.mean(axis=0).max()), 3),
        "published": "–" if published is None else published,
        "span": round(float(spans.mean()), 3),
        "expected": expected,
        "holds": holds,
        "run_s": round(run.timing.get("run_s", 0.0)),
    }
    return told, spans


def aggregated(spans: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Over the tasks that every method has: ``spans[method][task]`` is ``[seeds]``."""
    tasks = [t for t in next(iter(spans.values())) if all(t in own for own in spans.values())]
    first, rows = next(iter(spans)), []
    for method, own in spans.items():
        scores = {task: own[task] for task in tasks}
        low, high = statistics.stratified_bootstrap(scores)
        better = statistics.probability_of_improvement(scores, {t: spans[first][t] for t in tasks})
        rows.append(
            {
                "method": method,
                "tasks": len(tasks),
                "iqm of spans": round(statistics.iqm(scores), 3),
                "low": round(low, 3),
                "high": round(high, 3),
                f"P(better than {first})": round(better, 3),
            }
        )
    return rows


def parsed() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="cpu", choices=sorted(SUITES))
    parser.add_argument("--tasks", help="those of the suite whose names contain one of these, a,b")
    parser.add_argument("--methods", help="names, a,b, or all; the tasks' own unless given")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, help="environment steps of each seed")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark"))
    options = parser.parse_args()
    wanted = (options.tasks or "").split(",")
    options.tasks = [t for t in SUITES[options.suite] if any(part in t.env for part in wanted)]
    if not options.tasks:
        parser.error(f"no task; the suite has: {', '.join(t.env for t in SUITES[options.suite])}")
    for task in options.tasks:
        try:
            task.make()
        except ValueError as error:  # of one that needs a package which is not installed
            parser.error(str(error))
    if options.methods:
        every = [name for name in jt.algorithms() if jt.algorithm(name).family != "offline"]
        options.methods = every if options.methods == "all" else options.methods.split(",")
        for name in set(options.methods) - set(every):
            parser.error(f"unknown method {name!r}; known: {', '.join(every)}")
    if options.seeds < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--seeds and --steps must be positive.")
    return options


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Any]] = {}
    spans: dict[str, dict[str, np.ndarray]] = {}
    for task in options.tasks:
        env = task.make()
        chance = jt.evaluate(random_policy(env), env, episodes=EPISODES)[task.measure][0]
        chance = float(task.to_scale(env, chance))
        for method in options.methods or task.methods:
            run = trained(task, method, options)
            told, own = row(task, method, run, chance)
            rows.append(told)
            spans.setdefault(method, {})[task.env] = own
            values = task.to_scale(env, run.curves[task.measure])
            curves.setdefault(task.env, {})[method] = (run.steps, values)
            print(report.table(rows, path=options.out / f"{options.suite}.csv"), flush=True)
    print(report.table(aggregated(spans), path=options.out / f"{options.suite}_aggregate.csv"))
    for source in sorted({task.source for task in options.tasks if task.source}):
        print(f"published: {source}")
    figure = report.learning_curves(curves, options.out / f"{options.suite}_curves.png")
    print(f"\nresults: {options.out}\nfigure:  {figure}")


if __name__ == "__main__":
    main()
