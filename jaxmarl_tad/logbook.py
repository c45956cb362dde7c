"""A run on the host while it runs: its folder, its progress line, and the signals that stop it."""

import math
import os
import pathlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from jaxmarl_tad import devices, folder
from jaxmarl_tad.checkpoint import Checkpoints
from jaxmarl_tad.config import as_dict
from jaxmarl_tad.devices import Shard
from jaxmarl_tad.job import Job
from jaxmarl_tad.types import State
from tad_envs import require

Wandb = Literal["off", "offline", "online"]


def about(job: Job, mesh: Any) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "algorithm": job.name,
        "config": as_dict(job.config),
        "identity": job.identity,
        "recipe": job.recipe,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
        "devices": 1 if mesh is None else mesh.size,
    }


class Logbook:
    """A run's folder while it runs: its files, its checkpoints, and what they say of the past.

    In a job of several processes all take part in checkpoints and the first one writes the files.
    """

    def __init__(self, job: Job, out: str | os.PathLike[str], save_seconds: float, keep: int) -> None:
        self.job, self.save_seconds, self.timing = job, save_seconds, {}
        self.shown = str(out)
        self.folder = pathlib.Path(out).expanduser().resolve()
        self.writes = jax.process_index() == 0
        self.files = folder.Files(self.folder, job.rows, job.steps)
        self.before: dict[str, Any] | None = None
        refusal = None
        try:
            if self.writes:
                self._claim()
        except ValueError as error:
            refusal = error
        if not devices.agreed(refusal is None):
            raise refusal or ValueError(f"the first process refused {self.shown!r}; it says why.")
        self.checkpoints = Checkpoints(self.folder / folder.CHECKPOINTS, keep)
        self.tracker: Any = None
        self.last_save = -math.inf

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *exception: object) -> None:
        self.checkpoints.close()
        if self.tracker is not None:
            self.tracker.finish()

    def _claim(self) -> None:
        """Make the folder, or see that what it holds is the same run."""
        folder.claim(self.shown)
        if not (self.folder / "config.json").exists():
            return
        self.before = folder.about(self.folder)
        told = folder.differences(self.before.get("identity", {}), self.job.identity)
        require(not told, f"{self.shown!r} holds another run: {'; '.join(told)}. Name another folder.")
        finished = [e for e in folder.events(self.folder) if e["event"] == "finish"]
        self.timing = finished[-1].get("timing", {}) if finished else {}

    @property
    def curves(self) -> list[dict[str, np.ndarray]]:
        """Each evaluation so far."""
        return self.files.curves

    def restore(self, shapes: State, mesh: Any, checkpoint: int | None = None) -> State | None:
        """The state of a checkpoint, the newest readable one, on the devices; also sets ``curves``."""
        if checkpoint is None:
            found = self.checkpoints.restore(shapes)
        else:
            found = self.checkpoints.restore_one(checkpoint, shapes)
        for aside, reason in self.checkpoints.damaged:
            text = f"checkpoint {aside.name.removeprefix('damaged-')} is damaged ({reason})"
            went = "at the start" if found is None else f"with checkpoint {found.iteration}"
            warnings.warn(f"{text}; it was moved to {aside.name}; going on {went}.", stacklevel=4)
            self.event("damaged", checkpoint=aside.name, reason=reason)
        if found is None:
            return None
        columns = found.curves.items()
        count = found.iteration * self.job.plan.evaluations // self.job.plan.iterations
        self.files.curves = [{n: v[:, i] for n, v in columns} for i in range(count)]
        return found.state

    def begin(self, wandb: Wandb, wandb_members: bool, mesh: Any, shard: Shard) -> None:
        """Write what is known before the first chunk; warn where bits cannot be promised."""
        known = about(self.job, mesh) | {"shard": shard}
        names = ("versions", "device", "devices")
        told = [
            f"{name} {self.before[name]!r} then, {known[name]!r} now"
            for name in names
            if self.before is not None and self.before.get(name) != known[name]
        ]
        if told and self.curves:
            warnings.warn(
                f"resumed elsewhere ({'; '.join(told)}): equal within tolerance, not to the bit.",
                stacklevel=4,
            )
        if self.writes:
            self._write(lambda: self.files.begin(known))
        self.event("resume" if self.curves else "start", evaluations_done=len(self.curves))
        if self.writes and wandb != "off":
            from jaxmarl_tad.tracking import Tracker

            self.tracker = Tracker(
                mode=wandb,
                folder=self.folder,
                name=self.folder.name,
                algorithm=self.job.name,
                members=self.job.rows,
                config=as_dict(self.job.config),
                sweep=self.folder.name,
                per_member=wandb_members,
            )

    def added(self) -> None:
        """Write down the evaluation that was added to ``curves``."""
        values, steps = self.curves[-1], int(self.job.steps[len(self.curves) - 1])
        if self.tracker is not None:
            self.tracker.log(len(self.curves) - 1, steps, values)
        if not self.writes:
            return
        self._write(self.files.added)
        returns = values["return"]
        self.event(
            "evaluation",
            number=len(self.curves),
            steps=steps,
            return_mean=float(returns.mean()),
            return_min=float(returns.min()),
            return_max=float(returns.max()),
        )

    def due(self) -> bool:
        """Whether it is time for a checkpoint; processes agree because they all ask the first."""
        now = time.monotonic() - self.last_save >= self.save_seconds
        return devices.agreed(now)

    def save(self, state: State) -> None:
        """Write a checkpoint of everything so far."""
        iteration = self.job.plan.iterations // self.job.plan.evaluations * len(self.curves)
        values = folder.stacked(self.curves)
        self._write(lambda: self.checkpoints.save(iteration, state, values))
        if self.writes:
            self._write(self.files.metrics)
        self.last_save = time.monotonic()
        self.event("checkpoint", iteration=iteration)

    def finish(self, timing: dict[str, float]) -> None:
        """Say that this was all."""
        self.event("finish", timing=timing)

    def interrupted(self, number: int) -> None:
        """The chunk is saved: say how to go on, and end as the signal asks."""
        self.event("stop", signal=signal.Signals(number).name)
        print(f"\nstopped and saved; to go on: tad resume {self.shown}", file=sys.stderr)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def event(self, event: str, **values: Any) -> None:
        """One line of events.jsonl."""
        if self.writes:
            self._write(lambda: self.files.event(event, **values))

    def _write(self, action: Callable[[], None]) -> None:
        """Do it; if it fails, say which checkpoint is left."""
        try:
            action()
        except OSError as error:
            newest = self.checkpoints.newest()
            left = "there is no checkpoint" if newest is None else f"checkpoint {newest} is intact"
            raise OSError(
                f"{self.shown} could not be written any more, so the run stopped: {error}\n{left}; "
                f"with room on the disk, go on with: tad resume {self.shown}"
            ) from error


class Stop:
    """Remembers SIGINT or SIGTERM until the chunk is done; a second one takes effect at once."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted and threading.current_thread() is threading.main_thread()
        self.signal = 0
        self.former: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if self.wanted:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        if self.signal:
            signal.signal(number, self.former[number])
            os.kill(os.getpid(), number)
        self.signal = number
        print("\nfinishing this chunk; once more to stop at once", file=sys.stderr, flush=True)


class Progress:
    """Progress, speed, compile time apart, time left, returns: a line on a terminal, else ten."""

    def __init__(self, job: Job, done: int, compiled_s: float, wanted: bool | None) -> None:
        self.terminal = sys.stderr.isatty()
        self.wanted = (self.terminal if wanted is None else wanted) and jax.process_index() == 0
        self.name, self.members, self.evaluations = job.name, len(job.rows), job.plan.evaluations
        self.chunk_steps, self.compiled_s = job.chunk_steps * self.members, compiled_s
        self.done, self.began = done, time.perf_counter()

    def show(self, curves: list[dict[str, np.ndarray]]) -> None:
        """One more evaluation is known."""
        number, seconds = len(curves), time.perf_counter() - self.began
        tenth = 10 * number // self.evaluations > 10 * (number - 1) // self.evaluations
        if not self.wanted or not (self.terminal or tenth):
            return
        returns = curves[-1]["return"]
        speed = (number - self.done) * self.chunk_steps / max(seconds, 1e-9)
        left = seconds / (number - self.done) * (self.evaluations - number)
        text = (
            f"{self.name}  {self.members} members  {100 * number // self.evaluations:3d} %  "
            f"{speed:.3g} steps/s  compiled in {self.compiled_s:.1f} s  {left:.0f} s left  "
            f"return {returns.mean():.3f} ({returns.min():.3f} to {returns.max():.3f})"
        )
        if self.terminal:
            end = "\n" if number == self.evaluations else ""
            print(f"\r{text:<110}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
