"""What agents gain that are told of the global state, and what is left of it when they no longer are.

    python experiments/ptde.py                      # six tables on two families of tasks
    FAMILIES=relay ALGORITHMS=qmix,vdn,mappo SEEDS=16 python experiments/ptde.py

Questions of Chen et al. 2024 (PTDE), a table each, all with the same columns: the mean return of ``a``
and of ``b`` over seeds with their 95 % bootstrap intervals, the ratio of the two with its own, and the
ratio of the areas under their learning curves, which tells who learned faster. ``ceiling`` is the best
return of decentralised agents with memory, where it is known, and ``holds`` says whether the
expectation does:

1. unified information against none (GIU, local): not below;
2. personalised against unified (GIP, GIU): not below;
3. retention, students of the personalised against their teachers: at the ceiling, which is what can be
   inferred from what an agent sees, and no higher;
4. across environments, personalised against none: above wherever the ceiling is below the best joint
   return, and otherwise not below;
5. across algorithms, students against local agents, over all tasks of a family: not below;
6. two stages against one: the retention of students who learn when their teacher has (PTDE) against
   that of students who learn with it (CTDS, of the first algorithm's mixer): not below in any task.
   The columns are retentions, each the ratio of a student's return to its own teacher's.

The first family is the relay. In the second, learning to rank, documents that see all features rank
perfectly, and what those reach who see their own falls with ``sigma``: personalised agents are expected
above local ones, and students between these and the ceiling.

Everybody has the same memory, budget and settings of learning. Tables, CSV, learning curves and the
students' progress go to ``runs/ptde``.
"""

import itertools
import os
import pathlib
from typing import Any

import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report
from jaxmarl_tad.statistics import ratio_curve, stratified_bootstrap
from tad_envs import ltr

OUT = pathlib.Path(os.environ.get("OUT", "runs/ptde"))
SEEDS = int(os.environ.get("SEEDS", "8"))
ALGORITHMS = os.environ.get("ALGORITHMS", "qmix,mappo").split(",")
FAMILIES = os.environ.get("FAMILIES", "relay,ltr").split(",")
EPISODES = 256
TOLERANCE = 0.03
"""Share of the best return that an interval may fall short of a bound: evaluations are sampled."""

# Games of one line are of one program.
TASKS = {
    "relay": ["relay", "relay/clue=0.5", "relay/delay=2", "relay/clue=0"],
    "ltr": [f"ltr/synthetic/sigma={sigma}" for sigma in (0, 1, 2, 4)],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "total_steps": 9_600, "lr": 2e-3, "envs": 32},
    "ltr": {"total_steps": 25_600, "lr": 5e-3, "envs": 64},
}
VALUE: dict[str, dict[str, Any]] = {
    "relay": {"lam": 0.6, "updates": 2, "epsilon_end": 0.05},
    "ltr": {"updates": 2, "epsilon_end": 0.05, "batch": 64, "capacity": 2048},
}
STUDENT: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "total_steps": 12_800},
    "ltr": {"total_steps": 12_800, "envs": 64},
}
FORMS = {"local": "", "unified": "_giu", "personalised": "_gip"}


def settings(algorithm: str, family: str) -> dict[str, Any]:
    """The same for all forms of an algorithm."""
    return SETTINGS[family] | ({} if algorithm == "mappo" else VALUE[family])


def learn() -> dict[tuple[str, str, str], dict[str, Any]]:
    """``{(task, algorithm, form): {"return": [seeds, evaluations], "steps": …}}``, with students."""
    found = {}

    def keep(run: jt.Trained, algorithm: str, form: str) -> None:
        seconds = run.timing.get("run_s", 0)
        print(f"{family}: {run.name}: {seconds:.0f} s", flush=True)
        for i, game in enumerate(games):
            rows = slice(i * SEEDS, (i + 1) * SEEDS)
            parts = {name: values[rows] for name, values in run.curves.items()}
            about = {"steps": run.steps, "game": game, "family": family, "ceiling": bounds[i]}
            found[game.name, algorithm, form] = about | parts

    for family in FAMILIES:
        games = [jt.make(name) for name in TASKS[family]]
        bounds = [ceiling(game) for game in games]
        for algorithm in ALGORITHMS:
            methods = {form: algorithm + suffix for form, suffix in FORMS.items()}
            if algorithm == ALGORITHMS[0] in ("vdn", "qmix"):
                methods["simultaneous"] = "ctds"
            for form, method in methods.items():
                if method not in jt.algorithms():
                    continue
                ours = {"mixer": algorithm, "watched": 64} if method == "ctds" else {}
                run = jt.run(
                    method,
                    games,
                    seeds=SEEDS,
                    evaluations=20,
                    episodes=EPISODES,
                    out=OUT / f"{method}-{family}-{SEEDS}",
                    **settings(algorithm, family),
                    **ours,
                )
                keep(run, algorithm, form)
                if form == "personalised":
                    student = jt.distill(run, evaluations=10, episodes=EPISODES, **STUDENT[family])
                    keep(student, algorithm, "student")
    return found


def ceiling(game: Any) -> float | None:
    """The best return of decentralised agents with memory, where it is known."""
    if isinstance(game, ltr.Synthetic):
        return ltr.decentralised_value(game)
    return game.decentralised_value() if hasattr(game, "decentralised_value") else None


def best(game: Any) -> float:
    """The best joint return."""
    return 1.0 if isinstance(game, ltr.Synthetic) else jt.solve(game).value


def compare(
    question: str, task: str, algorithm: str, a: list[dict], b: list[dict], names: tuple[str, str]
) -> dict[str, Any]:
    """One row: the runs of one or several tasks, each a list of ``found``'s entries."""
    # Of several tasks each counts as a share of its best return.
    several = len(a) > 1
    scale = [best(x["game"]) if several else 1.0 for x in a]
    ends = [np.mean([x["return"][:, -1] / s for x, s in zip(y, scale, strict=True)], 0) for y in (a, b)]
    areas = [
        np.mean([x["return"].mean(1) / s for x, s in zip(y, scale, strict=True)], 0) for y in (a, b)
    ]
    row: dict[str, Any] = {"question": question, "task": task, "algorithm": algorithm}
    for letter, name, end in zip("ab", names, ends, strict=True):
        low, high = stratified_bootstrap(end, np.mean)
        row |= {
            letter: name,
            f"{letter}_return": end.mean(),
            f"{letter}_low": low,
            f"{letter}_high": high,
        }
    ratio, low, high = (float(x[0]) for x in ratio_curve(ends[0][:, None], ends[1][:, None]))
    row |= {"ratio": ratio, "low": low, "high": high, "area": areas[0].mean() / areas[1].mean()}
    bounds = [x["ceiling"] for x in a]
    known = all(bound is not None for bound in bounds)
    row["ceiling"] = np.mean(np.asarray(bounds) / scale) if known else None
    return row


def judge(row: dict[str, Any], slack: float, how: str) -> dict[str, Any]:
    """``row`` with what was expected of it, and whether it holds."""
    a_low, a_high, b_low, bound = row["a_low"], row["a_high"], row["b_low"], row["ceiling"]
    holds = {
        "not below": a_high >= b_low - slack,
        "above": a_low > row["b_high"],
        "ceiling": bound is None or a_low - slack <= bound <= a_high + slack,
        "at most the ceiling": bound is None or a_low - slack <= bound,
    }[how]
    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
    return shown | {"expected": how, "holds": "yes" if holds else "NO"}


def tables(found: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each question."""
    made: dict[str, list[dict[str, Any]]] = {}
    games = {task: entry["game"] for (task, _, _), entry in found.items()}
    family = {task: entry["family"] for (task, _, _), entry in found.items()}
    bounds = {task: entry["ceiling"] for (task, _, _), entry in found.items()}
    first = ALGORITHMS[0]

    def add(question: str, task: str, algorithm: str, a: str, b: str, how: str) -> None:
        whole = [t for t in games if task == f"all {family[t]}"] or [task]
        pairs = [(found.get((t, algorithm, a)), found.get((t, algorithm, b))) for t in whole]
        if any(x is None or y is None for x, y in pairs):
            return
        left, right = ([pair[i] for pair in pairs] for i in (0, 1))
        row = compare(question, task, algorithm, left, right, (a, b))  # type: ignore[arg-type]
        slack = TOLERANCE * (best(games[task]) if task in games else 1.0)
        made.setdefault(question, []).append(judge(row, slack, how))

    for task, game in games.items():
        bound, most = bounds[task], best(game)
        short = bound is not None and bound < most - 1e-3
        add("1 unified against local", task, first, "unified", "local", "not below")
        add("2 personalised against unified", task, first, "personalised", "unified", "not below")
        how = "at most the ceiling" if family[task] == "ltr" else "ceiling"
        add("3 retention", task, first, "student", "personalised", how)
        add(
            "4 across environments", task, first, "personalised", "local",
            "above" if short else "not below",
        )  # fmt: skip
    for algorithm, name in itertools.product(ALGORITHMS, FAMILIES):
        add("5 across algorithms", f"all {name}", algorithm, "student", "local", "not below")
    for task, game in games.items():
        if family[task] == "ltr":  # between local agents and the ceiling
            add("5 across algorithms", task, first, "student", "local", "not below")
        two, one = found.get((task, first, "student")), found.get((task, first, "simultaneous"))
        if two is not None and one is not None:
            made.setdefault("6 two stages against one", []).append(stages(task, game, two, one))
    return made


def stages(task: str, game: Any, two: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A row of the sixth table: what students keep of their own teachers' returns."""
    row: dict[str, Any] = {"question": "6 two stages against one", "task": task}
    row["algorithm"] = ALGORITHMS[0]
    for letter, name, entry in (("a", "two stages", two), ("b", "one stage", one)):
        ends = entry["return"][:, -1:], entry["teacher_return"][:, -1:]
        kept, low, high = (float(x[0]) for x in ratio_curve(*ends))
        row |= {letter: name, f"{letter}_kept": kept, f"{letter}_low": low, f"{letter}_high": high}
        row |= {f"{letter}_return": ends[0].mean(), f"{letter}_teacher": ends[1].mean()}
    row["ceiling"] = two["ceiling"] / best(game)
    return judge(row, TOLERANCE, "not below")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    found = learn()
    made = tables(found)
    for question, rows in made.items():
        print(f"\n{question}\n{report.table(rows, list(rows[0])[1:])}", flush=True)
    every = [row for rows in made.values() for row in rows]
    report.table(every, path=OUT / "table.csv")

    first, curves, students, optima = ALGORITHMS[0], {}, {}, {}
    for (task, algorithm, form), entry in found.items():
        if algorithm != first:
            continue
        label = {"student": "student", "simultaneous": "ctds"}.get(form) or first + FORMS[form]
        panel = students if form == "student" else curves
        panel.setdefault(task, {})[label] = (entry["steps"], entry["return"])
        optima[task] = best(entry["game"])
    ceilings = {t: e["ceiling"] for (t, _, _), e in found.items() if e["ceiling"] is not None}
    figure = OUT / "learning_curves.png"
    report.learning_curves(curves, figure, "Agents that are told of the state, or are not", optima)
    report.learning_curves(
        students, OUT / "students.png", "Students; dashed: the decentralised ceiling", ceilings
    )
    print(f"\nresults: {OUT}\nfigures: {figure}, {OUT / 'students.png'}")


if __name__ == "__main__":
    main()
