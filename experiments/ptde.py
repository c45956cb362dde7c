"""What agents gain that are told of the global state, and what is left of it when they no longer are.

    python experiments/ptde.py                                # six tables on relay and ltr
    python experiments/ptde.py --suite relay --algorithms qmix,vdn,mappo
    python experiments/ptde.py --suite smax                   # on an accelerator; or football
    python experiments/ptde.py --suite football --tasks 3_vs_1 --steps 20000 --seeds 1

Questions of Chen et al. 2024 (PTDE), a table each, all with the same columns: the mean of ``a`` and of
``b`` over seeds with their 95 % bootstrap intervals, the ratio of the two with its own, and the ratio
of the areas under their learning curves, which tells who learned faster. ``ceiling`` is the best
return of decentralised agents with memory, where it is known, and ``holds`` says whether the
expectation does:

1. unified information against none (GIU, local): not below;
2. personalised against unified (GIP, GIU): not below; with ``--others`` also against COPA, CSRL;
3. retention, students of the personalised against their teachers: at the ceiling, which is what can be
   inferred from what an agent sees, and no higher;
4. across environments, personalised against none: above;
5. across algorithms, students against local agents, over all tasks of a family: not below; with
   ``--others`` also against QPLEX;
6. two stages against one: the retention of students who learn when their teacher has (PTDE) against
   that of students who learn with it (CTDS, of the first algorithm's mixer): not below in any task.
   The columns are retentions, each the ratio of a student's result to its own teacher's.

``relay``. Where the clue says everything (``relay``) the best local policy has the best joint return,
so that question 4 is one about speed: the budget is one in which agents who are told learn the task,
and those who are not have to learn every one of the 48 names of the targets from what the team is
paid. Where it does not, being told is worth more at any budget.

``ltr``. Documents that see all features rank perfectly, and what those reach who see their own falls
with ``sigma``: personalised agents are expected above local ones, and the means of students between
both (``at least``) and at most at the ceiling, which ``ltr.png`` draws.
The default budget is a small part of what learning to rank takes.

``smax`` and ``football`` have the tasks and budgets of the paper (``football`` is a model of our own)
and are measured by the share of episodes won; nothing is known of their ceilings, so that table 3 has
no expectation there.

Everybody has the same memory, budget and settings of learning. With ``--algorithms qmix`` the runs of
``relay`` take about 200 CPU-seconds and those of ``ltr`` 130, compilation included.
Tables, CSV, learning curves and the students' progress go to ``--out`` (``runs/ptde``). A run that was
cut off is continued.
"""

import argparse
import itertools
import pathlib
from typing import Any

import numpy as np
from settings import BATTLE

import jaxmarl_tad as jt
from jaxmarl_tad import drawing, report
from jaxmarl_tad.statistics import ratio_curve, stratified_bootstrap
from tad_envs import ltr

TOLERANCE = 0.03
"""Share of the best return that an interval may fall short of a bound: evaluations are sampled."""

M = 1_000_000
TASKS: dict[str, dict[tuple[str, ...], int]] = {
    # Games of one line are of one program, with the budget behind it.
    "relay": {("relay", "relay/clue=0.5", "relay/delay=2"): 3_200},
    "ltr": {tuple(f"ltr/synthetic/sigma={sigma}" for sigma in (0, 1, 2, 4)): 12_800},
    "smax": {
        ("smax/3s_vs_5z",): 2 * M,
        ("smax/5m_vs_6m",): 2 * M,
        ("smax/3s5z_vs_3s6z",): 5 * M,
        ("smax/6h_vs_8z",): 5 * M,
        ("smax/3s_vs_8z-300",): 10 * M,
        ("smax/3s5z_vs_3s7z",): 10 * M,
    },
    "football": {
        (f"football/{name}",): 10 * M
        for name in (
            "3_vs_1_with_keeper", "3_vs_2_with_keeper", "counterattack_easy", "counterattack_hard",
            "run_pass_and_shoot",
        )
    },
}  # fmt: skip
SUITES = {"cpu": ("relay", "ltr")} | {name: (name,) for name in TASKS}
MEASURE = {"smax": "won", "football": "won"}
SEEDS = {"relay": 16, "ltr": 3, "smax": 3, "football": 3}
"""Of the first algorithm; of others half as many, at least two."""
RANKER = {"sharing": "full", "layer_norm": False, "hidden": (32, 32)}
"""Documents are alike, and see one feature, of which a layer norm leaves nothing."""
SETTINGS: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "lr": 4e-3, "envs": 32},
    "ltr": {"lr": 5e-3, "envs": 64, **RANKER},
    "smax": BATTLE["mappo"],
    "football": BATTLE["mappo"],
}
FIGHTER = BATTLE["qmix"] | {"hidden": (128, 128)}
VALUE: dict[str, dict[str, Any]] = {
    "relay": {"lam": 0.6, "updates": 2, "epsilon_end": 0.05},
    "ltr": {
        "updates": 4, "epsilon_end": 0.05, "batch": 32, "capacity": 2048, "embed": 16, "hyper": 32,
    },
    "smax": FIGHTER,
    "football": FIGHTER,
}  # fmt: skip
"""Of methods that learn values; on the last two suites in the place of what stands above."""
POLICY: dict[str, dict[str, Any]] = {
    "relay": {"envs": 64, "total_steps": 12_800},  # without a replay
    "ltr": {},
    "smax": {},
    "football": {},
}
"""Of MAPPO."""
TOLD: dict[str, dict[str, Any]] = {
    "relay": {"z_noise": 0.3},
    "ltr": {"z_size": 32},
    # States of hundreds of numbers: personalised in 32 combinations of them.
    "smax": {"z_rank": 32},
    "football": {"z_rank": 32},
}
STUDENT: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "total_steps": 25_600},
    "ltr": {"total_steps": 12_800, "envs": 64, **RANKER},
    "smax": {"memory": "gru", "hidden": (128, 128)},
    "football": {"memory": "gru", "hidden": (128, 128)},
}
"""Of the last two the budget is 6,400 episodes; the authors go through 800 again and again."""
FORMS = {"local": "", "unified": "_giu", "personalised": "_gip"}
OTHERS = {"guided": "csrl", "coached": "copa", "qplex": "qplex"}

Found = dict[tuple[str, str, str], dict[str, Any]]
"""``{(task, algorithm, form): {"result": [seeds, evaluations], "steps": …}}``."""


def settings(method: str, family: str) -> dict[str, Any]:
    """The same for all forms of an algorithm, but for what those need who are told."""
    policy = method.startswith("mappo")
    own = (POLICY if policy else VALUE)[family]
    told = TOLD[family] if method.endswith(("_giu", "_gip")) or method == "csrl" else {}
    if method.endswith("_giu"):
        told = {name: value for name, value in told.items() if name != "z_rank"}
    if method == "csrl":
        told = {name: value for name, value in told.items() if name != "z_noise"}
    common = SETTINGS[family]
    if family in MEASURE and not policy:
        common = {}
    return common | own | told


def learn(options: argparse.Namespace) -> Found:
    """All runs of the suite, and their students."""
    found: Found = {}
    for family in SUITES[options.suite]:
        for names, budget in TASKS[family].items():
            games = [name for name in names if any(part in name for part in options.tasks)]
            if games:
                found |= learned(family, [jt.make(name) for name in games], budget, options)
    return found


def learned(family: str, games: list[Any], budget: int, options: argparse.Namespace) -> Found:
    """The runs on ``games``, which are of one program."""
    found: Found = {}
    bounds, tops = [ceiling(game) for game in games], [best(game, family) for game in games]
    measure = MEASURE.get(family, "return")
    place = games[0].name.replace("/", "-") if len(games) == 1 else family

    def keep(run: jt.Trained, algorithm: str, form: str) -> None:
        seeds = len(run.members) // len(games)
        spent = run.timing.get("run_s", 0) + run.timing.get("compile_s", 0)
        print(f"{place}: {run.name}: {spent:.0f} CPU-s", flush=True)
        for i, game in enumerate(games):
            rows = slice(i * seeds, (i + 1) * seeds)
            parts = {name: values[rows] for name, values in run.curves.items()}
            about = {"steps": run.steps, "game": game, "family": family}
            about |= {"ceiling": bounds[i], "best": tops[i]}
            taught = {"teacher": parts[f"teacher_{measure}"]} if form == "simultaneous" else {}
            found[game.name, algorithm, form] = parts | about | taught | {"result": parts[measure]}

    for algorithm in options.algorithms:
        methods = {form: algorithm + suffix for form, suffix in FORMS.items()}
        first = algorithm == options.algorithms[0]
        seeds = options.seeds or (SEEDS[family] if first else max(2, SEEDS[family] // 2))
        if first and algorithm in ("vdn", "qmix"):
            methods["simultaneous"] = "ctds"
        if first and options.others:
            methods |= OTHERS
        for form, method in methods.items():
            if method not in jt.algorithms():
                continue
            ours = {"mixer": algorithm, "watched": 64} if method == "ctds" else {}
            common = {"episodes": options.episodes, "progress": False}
            fields = {"total_steps": budget} | settings(method, family) | ours
            if options.steps:
                fields["total_steps"] = options.steps
            name = f"{method}-{place}-{fields['total_steps']}-{seeds}"
            run = jt.run(
                method,
                games,
                seeds=seeds,
                evaluations=10,
                out=options.out / "runs" / name,
                **common,
                **fields,
            )
            keep(run, algorithm, form)
            if form == "personalised":
                lesson = STUDENT[family]
                if options.steps:
                    lesson = lesson | {"total_steps": options.steps}
                there = options.out / "runs" / f"{name}-students"
                student = jt.distill(run, evaluations=8, out=there, **common, **lesson)
                keep(student, algorithm, "student")
                for game in games:
                    last = found[game.name, algorithm, form]["result"][:, -1:]
                    found[game.name, algorithm, "student"]["teacher"] = last
    return found


def ceiling(game: Any) -> float | None:
    """The best return of decentralised agents with memory, where it is known."""
    if isinstance(game, ltr.Synthetic):
        return ltr.decentralised_value(game, queries=2000)  # to about 0.003
    return game.decentralised_value() if hasattr(game, "decentralised_value") else None


def best(game: Any, family: str) -> float:
    """The best joint return, or share of episodes won."""
    return jt.solve(game).value if family == "relay" else 1.0


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
    title = "Agents that are told of the state, or are not; dashed: the best joint return"
    drawn = [report.learning_curves(curves, out / "learning_curves.png", title, optima)]
    title = "Students; dashed: the ceiling of decentralised agents"
    drawn.append(report.learning_curves(students, out / "students.png", title, ceilings))
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


def parsed() -> argparse.Namespace:
    """The command line, checked before anything runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="cpu", choices=sorted(SUITES))
    parser.add_argument("--tasks", help="those whose names contain one of these, a,b")
    parser.add_argument("--algorithms", default="qmix,mappo", help="of vdn, qmix, qplex, mappo")
    parser.add_argument("--others", action="store_true", help="also CSRL, COPA and QPLEX")
    parser.add_argument("--seeds", type=int, help="instead of the suite's")
    parser.add_argument("--steps", type=int, help="of each member, instead of the task's")
    parser.add_argument("--episodes", type=int, default=128, help="of each evaluation")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ptde"))
    options = parser.parse_args()
    options.algorithms = options.algorithms.split(",")
    unknown = [name for name in options.algorithms if name + "_gip" not in jt.algorithms()]
    if unknown:
        parser.error(f"nobody tells agents of {', '.join(unknown)}; there are vdn, qmix, qplex, mappo")
    options.tasks = options.tasks.split(",") if options.tasks else [""]
    every = [name for f in SUITES[options.suite] for names in TASKS[f] for name in names]
    if not any(part in name for part in options.tasks for name in every):
        parser.error(f"no task; the suite has: {', '.join(every)}")
    return options


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    found = learn(options)
    made = tables(found, options.algorithms)
    for question, rows in made.items():
        columns = [name for name in rows[0] if name != "question"]
        print(f"\n{question}\n{report.table(rows, columns)}", flush=True)
    every = [{"question": question} | row for question, rows in made.items() for row in rows]
    report.table(every, path=options.out / "table.csv")
    drawn = figures(found, options.algorithms[0], options.out)
    print(f"\nresults: {options.out}\nfigures: {', '.join(map(str, drawn))}")


if __name__ == "__main__":
    main()
