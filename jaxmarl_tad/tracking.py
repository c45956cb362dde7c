"""wandb as an exporter: one run per setting of the hyper-parameters, its seeds aggregated.

The run folder is the truth and this is a copy of it for those who look at wandb. Everything happens on
the host between chunks. Offline, files go to ``<folder>/wandb``, nothing asks for the network, and
``wandb sync`` sends them later. Nothing ever asks a question, and a failure of wandb is a warning:
training goes on untracked.
"""

import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxmarl_tad.statistics import iqm, stratified_bootstrap

Mode = Literal["offline", "online"]


class _Tracked(NamedTuple):
    """One wandb run and the members that it tells of."""

    run: Any
    members: list[int]


class Tracker:
    """The wandb runs of one sweep: one for each setting, which is all members equal but for ``seed``.

    Args:
        mode: ``"offline"`` writes files only; ``"online"`` needs a machine that is logged in.
        folder: Of the run; wandb's files go into ``<folder>/wandb``.
        name: What the names of the wandb runs begin with.
        algorithm: The method; wandb's job type.
        members: One dict per member: ``env``, ``seed`` and each swept field.
        config: What all members have in common, as plain data.
        sweep: wandb's group. Online, runs of equal sweep and setting are one run, so that a sweep that
            is resumed continues them.
        per_member: One run for each member, instead of one for each setting.
        project: wandb's project.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        folder: str | pathlib.Path,
        name: str,
        algorithm: str,
        members: Sequence[Mapping[str, Any]],
        config: Mapping[str, Any],
        sweep: str,
        per_member: bool = False,
        project: str = "jaxmarl_tad",
    ) -> None:
        self._tracked: list[_Tracked] = []
        self._failed = False
        self._per_member = per_member
        kind = "member" if per_member else "setting"
        groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for i, member in enumerate(members):
            about = {k: v for k, v in member.items() if per_member or k != "seed"}
            groups.setdefault(_text([about, i if per_member else None]), (about, []))[1].append(i)

        def begin() -> None:
            # wandb reports its own errors to its makers unless it is told not to.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            import wandb

            # Silent for the whole process: otherwise whoever sits at a terminal is asked to log in.
            wandb.setup(wandb.Settings(silent=True))
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            for identity, (about, own) in groups.items():
                seeds = {} if per_member else {"seeds": [members[i].get("seed") for i in own]}
                digest = hashlib.sha256(_text([sweep, algorithm, identity]).encode()).hexdigest()
                run = wandb.init(
                    project=project,
                    dir=str(pathlib.Path(folder).absolute()),
                    mode=mode,
                    id=digest[:16],
                    resume="allow" if mode == "online" else None,
                    name=" ".join([name, *(f"{key}={value}" for key, value in about.items())]),
                    group=sweep,
                    job_type=algorithm,
                    tags=[kind],
                    config={**config, **about, **seeds, "algorithm": algorithm},
                    reinit="create_new",
                    settings=_settings(wandb),
                )
                self._tracked.append(_Tracked(run, own))

        self._attempt(begin)

    def log(self, number: int, step: int, metrics: Mapping[str, ArrayLike]) -> None:
        """Tell of evaluation ``number``, after ``step`` environment steps of each member.

        Args:
            number: Of the evaluation, from 0.
            step: wandb's step; later calls have larger ones.
            metrics: ``{name: [members]}``. A setting's run gets ``name/mean``, ``name/iqm``,
                ``name/iqm_low`` and ``name/iqm_high`` (its 95 % interval), ``name/min`` and
                ``name/max`` over seeds, a member's run gets ``name``.
        """
        arrays = {name: np.asarray(values) for name, values in metrics.items()}

        def tell() -> None:
            for tracked in self._tracked:
                row: dict[str, Any] = {"evaluation": number}
                for name, values in arrays.items():
                    own = values[tracked.members]
                    if self._per_member:
                        row[name] = float(own[0])
                    else:
                        row |= {f"{name}/{key}": value for key, value in summary(own).items()}
                tracked.run.log(row, step=int(step))

        self._attempt(tell)

    def finish(self) -> None:
        """Close all runs; online, wait until what they hold has been sent."""

        def close() -> None:
            while self._tracked:
                self._tracked.pop().run.finish()

        self._attempt(close)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it, or warn once and do nothing from then on."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # whatever goes wrong there must not cost a training run
            self._failed = True
            text = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"wandb failed and is not used any more: {text}", stacklevel=4)


def summary(values: ArrayLike) -> dict[str, float]:
    """Mean, IQM with its 95 % interval, least and largest of the finite values ``[seeds]``.

    Where not all are finite, ``not_finite`` says how many are left out; alone where none is.
    """
    runs = np.asarray(values, float)
    finite = runs[np.isfinite(runs)]
    left_out = {"not_finite": float(runs.size - finite.size)} if finite.size < runs.size else {}
    if finite.size == 0:
        return left_out
    low, high = stratified_bootstrap(finite, iqm)
    return left_out | {
        "mean": float(finite.mean()),
        "iqm": iqm(finite),
        "iqm_low": low,
        "iqm_high": high,
        "min": float(finite.min()),
        "max": float(finite.max()),
    }


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _settings(wandb: Any) -> Any:
    """Nothing is recorded but what is logged: no console, code, machine or package list."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
