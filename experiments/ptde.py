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
both (``at least``) and at most at the ceiling, which ``ltr.png`` draws. The first does not hold at
``sigma=0``, where local agents may reach 0.97 and 1,600 updates bring nobody there. That students be
above local agents holds nowhere, and longer distillation or larger students could not change it: the
values of a teacher's agent are linear in z, so that who is told the mean of z takes what is best on
average over all that it does not see, with others who do see it. That is one middling score for most
documents, which tie.

``smax`` and ``football`` have the tasks and budgets of the paper (``football`` is a model of our own)
and are measured by the share of episodes won; nothing is known of their ceilings, so that table 3 has
no expectation there.

Everybody has the same memory, budget and settings of learning. With ``--algorithms qmix`` the runs of
``relay`` take about 200 CPU-seconds and those of ``ltr`` 210, compilation included.
Tables, CSV, learning curves and the students' progress go to ``--out`` (``runs/ptde``). A run that was
cut off is continued.
"""

import argparse
import pathlib
from typing import Any

from ptde_settings import FORMS, MEASURE, OTHERS, SEEDS, STUDENT, SUITES, TASKS, settings
from ptde_tables import Found, figures, tables

import jaxmarl_tad as jt
from jaxmarl_tad import report
from tad_envs import ltr


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
