"""Tables and figures of `ptde.py`, from the runs it found."""

import itertools
import pathlib
from typing import Any

import numpy as np
from ptde_settings import FORMS, OTHERS, TASKS

from jaxmarl_tad import drawing, report
from jaxmarl_tad.statistics import ratio_curve, stratified_bootstrap

TOLERANCE = 0.03
"""Share of the best return that an interval may fall short of a bound: evaluations are sampled."""
Found = dict[tuple[str, str, str], dict[str, Any]]
"""``{(task, algorithm, form): {"result": [seeds, evaluations], "steps": …}}``."""


def compare(
    task: str, algorithm: str, a: list[dict], b: list[dict], names: tuple[str, str]
) -> dict[str, Any]:
    """One row: the runs of one or several tasks, each a list of :data:`Found`'s entries."""
    # Of several tasks each counts as a share of its best return.
    scale = [x["best"] if len(a) > 1 else 1.0 for x in a]
    ends, areas = (
        [np.mean([part(x["result"]) / s for x, s in zip(y, scale, strict=True)], 0) for y in (a, b)]
        for part in (lambda r: r[:, -1], lambda r: r.mean(1))
    )
    row: dict[str, Any] = {"task": task, "algorithm": algorithm}
    for letter, name, end in zip("ab", names, ends, strict=True):
        low, high = stratified_bootstrap(end, np.mean)
        row |= {letter: name, f"{letter}_mean": end.mean()}
        row |= {f"{letter}_low": low, f"{letter}_high": high}
    ratio, low, high = (float(x[0]) for x in ratio_curve(ends[0][:, None], ends[1][:, None]))
    row |= {"ratio": ratio, "low": low, "high": high}
    row["area"] = areas[0].mean() / areas[1].mean() if areas[1].any() else None
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
        "at least": row["a_mean"] >= row["b_mean"],
        "ceiling": bound is not None and a_low - slack <= bound <= a_high + slack,
        "at most the ceiling": bound is not None and a_low - slack <= bound,
        "–": None,
    }[how]
    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
    return shown | {"expected": how, "holds": {None: "–", True: "yes", False: "NO"}[holds]}


def tables(found: Found, algorithms: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each question."""
    made: dict[str, list[dict[str, Any]]] = {}
    entries = {task: entry for (task, _, form), entry in found.items() if form == "local"}
    first = algorithms[0]

    def add(question: str, tasks: list[str], algorithm: str, a: str, b: str, how: str) -> None:
        name = tasks[0] if len(tasks) == 1 else f"all {entries[tasks[0]]['family']}"
        pairs = [(found.get((t, algorithm, a)), found.get((t, algorithm, b))) for t in tasks]
        if any(x is None or y is None for x, y in pairs):
            return
        left, right = ([pair[i] for pair in pairs] for i in (0, 1))
        row = compare(name, algorithm, left, right, (a, b))  # type: ignore[arg-type]
        slack = TOLERANCE * (entries[name]["best"] if name in entries else 1.0)
        made.setdefault(question, []).append(judge(row, slack, how))

    for task, entry in entries.items():
        add("1 unified against local", [task], first, "unified", "local", "not below")
        for other in ("unified", "guided", "coached"):
            add("2 personalised against unified", [task], first, "personalised", other, "not below")
        how = {"relay": "ceiling", "ltr": "at most the ceiling"}.get(entry["family"], "–")
        add("3 retention", [task], first, "student", "personalised", how)
        add("4 across environments", [task], first, "personalised", "local", "above")
    for algorithm, family in itertools.product(algorithms, TASKS):
        tasks = [task for task, entry in entries.items() if entry["family"] == family]
        if tasks:
            add("5 across algorithms", tasks, algorithm, "personalised", "local", "above")
            for other in ("local", "qplex"):
                add("5 across algorithms", tasks, algorithm, "student", other, "not below")
    for task, entry in entries.items():
        if entry["family"] == "ltr":  # between local agents and their teachers
            add("5 across algorithms", [task], first, "student", "local", "at least")
            add("5 across algorithms", [task], first, "personalised", "student", "at least")
        two, one = (found.get((task, first, form)) for form in ("student", "simultaneous"))
        if two is not None and one is not None:
            made.setdefault("6 two stages against one", []).append(stages(task, first, two, one))
    return made


def stages(task: str, algorithm: str, two: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A row of the sixth table: what students keep of their own teachers' results."""
    row: dict[str, Any] = {"task": task, "algorithm": algorithm}
    for letter, name, entry in (("a", "two stages", two), ("b", "one stage", one)):
        ends = entry["result"][:, -1:], entry["teacher"][:, -1:]
        kept, low, high = (float(x[0]) for x in ratio_curve(*ends))
        row |= {letter: name, f"{letter}_mean": kept, f"{letter}_low": low, f"{letter}_high": high}
    row |= {"ratio": row["a_mean"] / row["b_mean"], "low": None, "high": None, "area": None}
    row["ceiling"] = None if two["ceiling"] is None else two["ceiling"] / two["best"]
    return judge(row, TOLERANCE, "–" if np.isnan(row["ratio"]) else "not below")


def figures(found: Found, first: str, out: pathlib.Path) -> list[pathlib.Path]:
    """Learning curves, and the students' returns and losses while they learn; and the ceiling."""
    curves, students, losses, optima, ceilings = {}, {}, {}, {}, {}
    names = {"student": "student", "simultaneous": "ctds"} | OTHERS
    for (task, algorithm, form), entry in found.items():
        if algorithm != first:
            continue
        label = names.get(form) or first + FORMS[form]
        panel = students if form == "student" else curves
        panel.setdefault(task, {})[label] = (entry["steps"], entry["result"])
        if form == "student":
            losses.setdefault(task, {})[label] = (entry["steps"], entry["loss"])
        optima[task] = entry["best"]
        if entry["ceiling"] is not None:
            ceilings[task] = entry["ceiling"]
    title, dashed = "Agents that are told of the state, or are not", "the best joint return"
    path = out / "learning_curves.png"
    drawn = [report.learning_curves(curves, path, title, optima, dashed=dashed)]
    title, dashed = "Students while they learn", "the ceiling of decentralised agents"
    path = out / "students.png"
    drawn.append(report.learning_curves(students, path, title, ceilings, dashed=dashed))
    title = "Students: squared error of what they say"
    drawn.append(report.learning_curves(losses, out / "students_loss.png", title, label="loss"))
    if any(entry["family"] == "ltr" for entry in found.values()):
        drawn.append(ceiling_figure(found, first, out / "ltr.png"))
    return drawn


def ceiling_figure(found: Found, first: str, path: pathlib.Path) -> pathlib.Path:
    """Where each form ends on the ranking tasks, by sigma, and the ceiling of who sees itself."""
    rows: list[list[Any]] = []
    with drawing.new_figure(5.6, 3.9, path) as figure:
        axes = drawing.new_axes(figure, 0.6, 0.75, 4.8, 2.4)
        forms = ("local", "unified", "personalised", "student", "simultaneous")
        for i, (form, colour) in enumerate(zip(forms, drawing.METHODS, strict=False)):
            own = [e for (_, a, f), e in found.items() if (a, f) == (first, form)]
            own = [entry for entry in own if entry["family"] == "ltr"]
            if not own:
                continue
            sigma = np.array([float(entry["game"].sigma) for entry in own])
            ends = [entry["result"][:, -1] for entry in own]
            means = np.array([end.mean() for end in ends])
            low, high = np.array([stratified_bootstrap(end, np.mean) for end in ends]).T
            bars = np.maximum(np.stack([means - low, high - means]), 0)
            style: Any = {"color": colour, "markersize": 4, "capsize": 2, "linewidth": 1.4}
            shifted = sigma + 0.03 * (i - 2)
            axes.errorbar(shifted, means, yerr=bars, fmt="o-", label=form, **style)
            rows += [[form, *each] for each in zip(sigma, means, low, high, strict=True)]
            if form == "local":
                bound = [entry["ceiling"] for entry in own]
                dashed: Any = {"color": drawing.INK, "linestyle": (0, (4, 3)), "linewidth": 1.2}
                axes.plot(sigma, bound, label="ceiling", **dashed)
                rows += [["ceiling", s, b, "", ""] for s, b in zip(sigma, bound, strict=True)]
        axes.set_xlabel("sigma", size=8)
        axes.set_ylabel("NDCG@10", size=8)
        axes.tick_params(labelsize=7.5)
        axes.grid(axis="y", color=drawing.FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(
            loc="upper left", ncols=6, frameon=False, fontsize=7.5, bbox_to_anchor=(0.01, 0.91),
            handlelength=1.4, columnspacing=1.0,
        )  # fmt: skip
        note = "Means over seeds with 95 % bootstrap intervals; the best joint NDCG is 1."
        drawing.caption(figure, f"Learning to rank: {first} and what its agents are told", note)
    return drawing.twin(path, ["form", "sigma", "mean", "low", "high"], rows)
