"""End-to-end vectorised training for cooperative multi-agent reinforcement learning in JAX.

Names are looked up when they are first used, so that ``tad --help`` imports nothing and ``tad list``
only what it lists.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmarl_tad.algorithms import algorithm, algorithms, config
    from jaxmarl_tad.dataset import Dataset
    from jaxmarl_tad.distill import distill
    from jaxmarl_tad.evaluate import score
    from jaxmarl_tad.export import export
    from jaxmarl_tad.job import Job, prepare
    from jaxmarl_tad.quality import by_return, mix
    from jaxmarl_tad.record import record
    from jaxmarl_tad.resume import checkpoints, load, resume
    from jaxmarl_tad.run import Trained, evaluate, run
    from jaxmarl_tad.selective import selective
    from jaxmarl_tad.storage import load_data, save_data
    from jaxmarl_tad.sweep import Member, sweep
    from jaxmarl_tad.train import train
    from jaxmarl_tad.types import Algorithm, Policy, Transition
    from tad_envs import Environment, environments, make, solve

__all__ = [
    "Algorithm",
    "Dataset",
    "Environment",
    "Job",
    "Member",
    "Policy",
    "Trained",
    "Transition",
    "algorithm",
    "algorithms",
    "by_return",
    "checkpoints",
    "config",
    "distill",
    "environments",
    "evaluate",
    "export",
    "load",
    "load_data",
    "make",
    "mix",
    "prepare",
    "record",
    "resume",
    "run",
    "save_data",
    "score",
    "selective",
    "solve",
    "sweep",
    "train",
]

_HOMES = {
    "jaxmarl_tad.algorithms": ("algorithm", "algorithms", "config"),
    "jaxmarl_tad.dataset": ("Dataset",),
    "jaxmarl_tad.distill": ("distill",),
    "jaxmarl_tad.evaluate": ("score",),
    "jaxmarl_tad.export": ("export",),
    "jaxmarl_tad.job": ("Job", "prepare"),
    "jaxmarl_tad.quality": ("by_return", "mix"),
    "jaxmarl_tad.record": ("record",),
    "jaxmarl_tad.resume": ("checkpoints", "load", "resume"),
    "jaxmarl_tad.run": ("Trained", "evaluate", "run"),
    "jaxmarl_tad.selective": ("selective",),
    "jaxmarl_tad.storage": ("load_data", "save_data"),
    "jaxmarl_tad.sweep": ("Member", "sweep"),
    "jaxmarl_tad.train": ("train",),
    "jaxmarl_tad.types": ("Algorithm", "Policy", "Transition"),
    "tad_envs": ("Environment", "environments", "make", "solve"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """A module whose public names are not replaced by modules of the same name.

    ``jaxmarl_tad.run`` is the function. Importing the module ``jaxmarl_tad.run`` would put itself in
    its place; it stays reachable by ``from jaxmarl_tad.run import ...``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # so that type checkers know the names, and refuse others

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
