"""Runs found again in their folders: to look at, to use, or to go on with."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxmarl_tad import folder
from jaxmarl_tad.checkpoint import Checkpoints
from jaxmarl_tad.config import require
from jaxmarl_tad.distill import judged, students
from jaxmarl_tad.job import Job, again, read
from jaxmarl_tad.run import Trained, execute, restored


def load(path: str | os.PathLike[str], *, checkpoint: int | None = None) -> Trained:
    """The run in the folder ``path``, finished or not, as far as its newest checkpoint.

    ``checkpoint`` is another that was kept; see :func:`checkpoints`.

    Raises ``ValueError`` if there is no run or no checkpoint, or if it was made from an environment or
    a teacher that only the script that made it can make again.
    """
    return _with_job(path, lambda job: restored(job, path, checkpoint))


def checkpoints(path: str | os.PathLike[str]) -> list[int]:
    """The checkpoints that the run in ``path`` kept, by the number of iterations done.

    The newest two are kept, unless the run was told to ``keep`` more.
    """
    folder.about(path)
    found = Checkpoints(pathlib.Path(path).expanduser() / folder.CHECKPOINTS)
    try:
        return found.numbers()
    finally:
        found.close()


def resume(path: str | os.PathLike[str], **options: Any) -> Trained:
    """Go on with the run in ``path`` from its newest checkpoint; nothing is done if it is finished.

    ``options`` are those of :func:`run` that do not change the result: ``progress``, ``save_seconds``,
    ``keep``, ``shard``, ``wandb``, ``after_chunk``. Raises as :func:`load` and :func:`run` do.
    """
    return _with_job(path, lambda job: execute(job, out=path, **options))


def _with_job(path: str | os.PathLike[str], act: Callable[[Job], Trained]) -> Trained:
    """``act`` on the job that the run in ``path`` was made from."""
    recipe: dict[str, Any] | None = folder.about(path).get("recipe")
    if recipe is None:
        raise ValueError(
            f"{str(path)!r} was made from objects that its config.json cannot hold; run the script "
            f"that made it again with out={str(path)!r}: it goes on where it stopped."
        )
    if recipe["stage"] == "run":
        return act(again(recipe))
    known = read(recipe)
    there = pathlib.Path(known["teacher"])
    beside = pathlib.Path(path).resolve().parent / there.name  # both may have moved
    there = there if there.is_dir() or not beside.is_dir() else beside
    require(there.is_dir(), f"the teacher of {str(path)!r} is missing: there is no {str(there)!r}.")
    teacher = load(there)
    names = ("seed", "evaluations", "episodes", "prng")
    settings = {name: known[name] for name in names} | known["fields"]
    student = act(students(teacher, known["env"], **settings))
    return judged(student, teacher, known["env"])
