"""What ``tad run`` and its like do: runs in folders, one after the other, each by one process.

A *chain* is what one program asks for: a run, or a teacher's and its students'. Each *task* of it has
a folder, which is looked at before anything is written: what it holds is finished, goes on, or is
another run's, which is refused.
"""

import contextlib
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxmarl_tad import devices, folder
from jaxmarl_tad.cli import locks, outcomes
from jaxmarl_tad.cli.words import Lesson, Program, Words, file_name, read
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.job import Job, prepare, written
from jaxmarl_tad.run import Trained, evaluate, execute, same_sizes
from jaxmarl_tad.storage import load_data
from tad_envs import Environment, make, nearest, require

_COMMAND = "command.json"
"""In a folder of several runs: the words of the command that makes them."""
_TEACHER, _STUDENTS = "teacher", "students"
_LEARNT = ("shard", "save_seconds")
"""What of the driver's options distillation takes."""


class Task(NamedTuple):
    """One run and its folder below ``out``."""

    place: str
    do: Callable[[pathlib.Path | None, Trained | None], Trained]
    """``do(folder, the run before it in the chain)``."""
    expected: Callable[[pathlib.Path], tuple[str, dict[str, Any]]] | None
    """Which entry of config.json tells the run, and what it must be, given ``out``; None: anything."""


def prepared(program: Program) -> Job:
    """The program, resolved and checked; starts no backend."""
    arguments = dict(program.arguments)
    method, games = arguments.pop("algorithm"), arguments.pop("env")
    if "data" not in arguments:
        return prepare(method, games, **arguments)
    (game,) = games
    data = _loaded(arguments.pop("data"), arguments.pop("limit"))
    return prepare(method, data, eval_env=game, **arguments)


@functools.lru_cache(maxsize=1)
def _loaded(path: str, limit: int | None) -> Dataset:
    """The dataset, read once for all programs that learn from it."""
    return load_data(path, limit=limit)


def chain(job: Job, place: str, lesson: Lesson | None, driving: dict[str, Any]) -> list[Task]:
    """The tasks of one program: its run, and its students' if there is a lesson for them."""
    if lesson is None:
        return [_training(job, place, driving)]
    teacher, students = (os.path.join(place, name) for name in (_TEACHER, _STUDENTS))
    return [_training(job, teacher, driving), _teaching(teacher, lesson, students, driving)]


def taught(teacher: pathlib.Path, lesson: Lesson, place: str, driving: dict[str, Any]) -> list[Task]:
    """The one task of distilling the run in ``teacher``."""
    return [_teaching(str(teacher.expanduser().resolve()), lesson, place, driving)]


def _training(job: Job, place: str, driving: dict[str, Any]) -> Task:
    return Task(
        place,
        lambda out, before: execute(job, out=out, **driving),
        lambda out: ("identity", job.identity),
    )


def _teaching(teacher: str, lesson: Lesson, place: str, driving: dict[str, Any]) -> Task:
    """Students of the run in the folder ``teacher``, which is absolute or below ``out``."""
    import jaxmarl_tad as jt

    settings = {key: driving[key] for key in _LEARNT if key in driving}
    fields = {key: value for key, value in lesson.arguments.items() if key != "env"}
    game = make(lesson.arguments["env"]) if "env" in lesson.arguments else None

    def do(out: pathlib.Path | None, before: Trained | None) -> Trained:
        there = teacher if out is None else os.path.join(_root(out, place), teacher)
        known = jt.load(there) if before is None or out is not None else before
        return jt.distill(known, game, out=out, **settings, **fields)

    def expected(out: pathlib.Path) -> tuple[str, dict[str, Any]]:
        own = {key: value for key, value in fields.items() if key not in LESSON}
        recipe = {"stage": "distill", "env": game}
        common = {key: fields.get(key, default) for key, default in LESSON.items()}
        return "recipe", written(recipe | {"fields": own} | common)

    return Task(place, do, expected)


LESSON = {"seed": 0, "evaluations": 5, "episodes": 32, "prng": "threefry"}
"""Settings of distillation that are not in its config, and their defaults."""


def _root(out: pathlib.Path, place: str) -> pathlib.Path:
    """``out`` of the command, given the folder of a task."""
    return out.parents[len(pathlib.PurePath(place).parts) - 1] if place else out


# --- doing it -------------------------------------------------------------------------------------


def in_memory(chains: Sequence[Sequence[Task]]) -> int:
    """Do it all and write nothing."""
    found = []
    for tasks in chains:
        before = None
        for task in tasks:
            before = task.do(None, before)
            found.append(outcomes.of(before))
    print(outcomes.table(found))
    return 0


def in_folder(
    chains: Sequence[Sequence[Task]], out: pathlib.Path, words: Words | None, many: bool = False
) -> int:
    """Do what is not finished in ``out``; print the results of all that is there, and draw them."""
    out = out.expanduser().resolve()
    tasks = [task for tasks in chains for task in tasks]
    if words is not None or many:
        _check_parent(out)
    finished = {task.place: _finished(out / task.place, task, out) for task in tasks}
    if words is not None:
        _record(out, words)
    busy = sum(not _follow(tasks, out, finished) for tasks in chains)
    there = outcomes.runs(out) if busy < len(chains) else []
    return _conclude(there, out, new=not all(finished.values()), busy=busy)


def resume(there: pathlib.Path, driving: dict[str, Any], shard: str | None) -> int:
    """Go on with every run in a folder."""
    import jaxmarl_tad as jt

    found = outcomes.runs(there)
    chains = [
        [Task(os.path.relpath(path, there), lambda out, before: jt.resume(out, **driving), None)]
        for path in locks.shard(found, shard)
    ]
    return in_folder(chains, there, None)


def _follow(tasks: Sequence[Task], out: pathlib.Path, finished: dict[str, bool]) -> bool:
    """Do the tasks of a chain in their order; whether that could be done."""
    for task in tasks:
        path = out / task.place
        if finished[task.place]:
            print(f"{_shown(path)} is finished", file=sys.stderr)
            continue
        try:
            with locks.held(path) if _first() else contextlib.nullcontext():
                if not _finished(path, task, out):  # nor by another process since it was looked at
                    task.do(pathlib.Path(_shown(path)), None)
        except locks.Busy as error:
            print(f"tad: {error}; left to it", file=sys.stderr)
            return False
    return True


def _first() -> bool:
    """Whether this is the process that writes files, of those of a job over several hosts."""
    import jax

    return jax.process_index() == 0


def _finished(path: pathlib.Path, task: Task, out: pathlib.Path) -> bool:
    """Whether the task is done; refuses a folder that holds something else."""
    folder.check(path)
    if not (path / folder.CONFIG).exists():
        return False
    if task.expected is not None:
        entry, wanted = task.expected(out)
        known = {**(folder.about(path).get(entry) or {})}
        if entry == "recipe":  # the folder may have moved together with its teacher's
            known.pop("teacher", None)
        told = folder.differences(known, wanted)
        require(
            not told,
            f"{_shown(path)!r} holds another run: {'; '.join(told)}. Name another folder.",
        )
    return outcomes.finished(path)


def _conclude(there: Sequence[pathlib.Path], out: pathlib.Path, *, new: bool, busy: int) -> int:
    found = [outcomes.read(path) for path in there if outcomes.evaluated(path)]
    if found and _first():
        print(outcomes.table(found))
        figure = out / folder.FIGURES / "learning_curves.png"
        if new or not figure.exists():
            outcomes.learning_curves(found, figure.parent)
        print(f"\nresults: {_shown(out)}\nfigure:  {_shown(figure)}")
    return 1 if busy and not found else 0


def evaluated(
    path: pathlib.Path, *, episodes: int = 1024, seed: int = 0, env: str | None = None
) -> outcomes.Outcome:
    """The run in a folder with one more evaluation in the place of its curves."""
    import jax
    import numpy as np

    import jaxmarl_tad as jt

    trained = jt.load(path)
    known = outcomes.of(trained)
    if env is not None:
        game = make(env)
        rows = [{**row, "env": game.name} for row in known.rows]
        returns = evaluate(trained, game, episodes=episodes, seed=seed)["return"]
        values, games = {"return": returns[:, None]}, {game.name: game}
        return known._replace(rows=rows, curves=values, games=games)
    returns = np.zeros(len(known.rows), np.float32)
    for name in dict.fromkeys(row["env"] for row in known.rows):
        own = [i for i, row in enumerate(known.rows) if row["env"] == name]
        game = jax.tree.map(np.asarray, devices.pick(trained.stacked.env, own[0]))
        returns[own] = evaluate(trained, game, episodes=episodes, seed=seed)["return"][own]
    return known._replace(curves={"return": returns[:, None]})


def played(
    env: str,
    policy: str,
    *,
    out: str | None = None,
    seed: int = 0,
    member: str = "best",
    fps: int = 6,
) -> str:
    """Write one episode as an animated picture; says where, and what the episode brought.

    What can be refused is refused before any backend is started.
    """
    from jaxmarl_tad import render

    game = make(env)
    render.check_drawable(game)
    there = pathlib.Path(out or f"{file_name(game.name)}.gif").expanduser()
    require(there.suffix == ".gif", f"out={there} must end in .gif.")
    require(fps >= 1, f"fps={fps} must be at least 1.")
    trained = policy not in render.REFERENCES
    if trained:
        known = [*render.REFERENCES, *_folders_with_runs()]
        found = (pathlib.Path(policy).expanduser() / folder.CONFIG).exists()
        require(
            found, f"unknown policy {policy!r}, and no run in such a folder; {nearest(policy, known)}"
        )
    who = _trained(game, policy, member) if trained else render.actor(game, policy)
    import jax

    shown = render.episode(game, who, jax.random.key(seed))
    render.animate(game, shown, there, fps)
    told = [f"{name} {value:.4g}" for name, value in shown.info.items()]
    result = [f"{len(shown.rewards)} steps", f"return {sum(shown.rewards):.4g}", *told]
    return f"{_shown(there.resolve())}: {game.name}, {policy}, {', '.join(result)}"


def _trained(game: Environment, there: str, member: str) -> Any:
    """The greedy policy of a run on disk, as who acts in ``game``."""
    import jaxmarl_tad as jt
    from jaxmarl_tad import render

    number = None if member == "best" else read("member", member, int)
    trained = jt.load(there)
    same_sizes(trained, game)
    chosen = trained.best() if number is None else trained.policy(number)
    return render.actor(game, chosen)


def _folders_with_runs() -> list[str]:
    """Runs below ``runs``, where they are by default."""
    return [str(file.parent) for file in pathlib.Path("runs").glob(f"*/{folder.CONFIG}")]


# --- folders --------------------------------------------------------------------------------------


def default_folder(program: Program) -> pathlib.Path:
    """``runs/METHOD-ENV-NUMBER``, the first that is free."""
    game, _ = program.arguments["env"][0]
    return numbered(file_name(f"{program.arguments['algorithm']}-{game.name}"))


def numbered(name: str) -> pathlib.Path:
    """``runs/NAME-NUMBER``, the first that is free."""
    number = 1
    while (pathlib.Path("runs") / f"{name}-{number}").exists():
        number += 1
    return pathlib.Path("runs") / f"{name}-{number}"


def recorded(out: pathlib.Path) -> list[str] | None:
    """The words of the command that made a folder of several runs."""
    file = out.expanduser() / _COMMAND
    try:
        return json.loads(file.read_text())["words"] if file.exists() else None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def _record(out: pathlib.Path, words: Words) -> None:
    """Write down what was asked for; several shards write the same."""
    source = [] if words.source is None else [f"@{pathlib.Path(words.source).resolve()}"]
    known = dict(words.pairs)
    if "data" in known:
        paths = known["data"].split(",")
        known["data"] = ",".join(str(pathlib.Path(path).expanduser().resolve()) for path in paths)
    pairs = [f"{key}={text}" for key, text in known.items() if key != "out"]
    text = json.dumps({"words": [*words.names, *pairs, *source]}, indent=2) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        new = out / f".{_COMMAND}.{os.getpid()}"
        new.write_text(text)
        os.replace(new, out / _COMMAND)
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be written: {error.strerror}.") from error


def _check_parent(out: pathlib.Path) -> None:
    """Refuse to put several runs where something else is."""
    require(not out.exists() or out.is_dir(), f"out={_shown(out)!r} is a file, not a folder.")
    if not out.is_dir() or (out / _COMMAND).exists():
        return
    one = (out / folder.CONFIG).exists()
    others = [entry for entry in out.iterdir() if not entry.name.startswith(".")]
    foreign = [e for e in others if not (e / folder.CONFIG).exists() and e.name != folder.FIGURES]
    holds = "one run, and this asks for several" if one else "files but no runs"
    require(not (one or foreign), f"out={_shown(out)!r} holds {holds}; name another folder.")


def _shown(path: pathlib.Path) -> str:
    """The path as short as it can be."""
    return os.path.relpath(path) if path.is_relative_to(pathlib.Path.cwd()) else str(path)
