"""The files of a run, written while it goes on.

    config.json    what was asked for and what it was resolved to, versions, device
    members.csv    what each member is: environment, seed, swept fields
    metrics.npz    every curve [members, evaluations], and the environment steps of each evaluation
    curves.csv     the same, one number a line
    events.jsonl   what happened when: start, evaluations, checkpoints, stops, the end
    checkpoints/   see :mod:`jaxmarl_tad.checkpoint`
    figures/       what ``tad plot`` draws

Only ``events.jsonl`` holds times, so that two equal runs leave equal files otherwise.
"""

import contextlib
import csv
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from jaxmarl_tad.config import require

CHECKPOINTS, FIGURES, LOCK = "checkpoints", "figures", "lock"
CONFIG, _MEMBERS, METRICS = "config.json", "members.csv", "metrics.npz"
_CURVES, _EVENTS = "curves.csv", "events.jsonl"
_MOST_DIFFERENCES = 3


def claim(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder, made if it is missing.

    Raises ``ValueError`` if it cannot be written, or holds files that are not a run's.
    """
    folder = check(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out={str(path)!r} cannot be written: {error.strerror}.") from error
    return folder


def check(path: str | os.PathLike[str]) -> pathlib.Path:
    """The folder's full path. Raises ``ValueError`` if it is a file, or holds what is not a run's."""
    folder = pathlib.Path(path).expanduser().resolve()
    require(not folder.exists() or folder.is_dir(), f"out={str(path)!r} is a file, not a folder.")
    if not folder.is_dir() or (folder / CONFIG).exists():
        return folder
    # A process that was killed while it compiled leaves its lock and a folder for checkpoints.
    others = {entry.name.partition(".")[0] for entry in folder.iterdir()} - {LOCK, CHECKPOINTS}
    require(
        not others,
        f"out={str(path)!r} holds files but no run ({CONFIG} is missing); name another folder.",
    )
    return folder


def about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises ``ValueError`` if there is no folder, no run in it, or a file that cannot be read.
    """
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        near = _neighbours(folder)
        raise ValueError(f"there is no folder {str(path)!r}{f'; {near}' if near else '.'}")
    file = folder / CONFIG
    require(file.exists(), f"{str(path)!r} is not a run's folder: {CONFIG} is missing.")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What tells two runs' identities apart, one sentence each: ``hidden: [64] there, [32] here``."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        parts = (flat(value, f"{prefix}.{name}" if prefix else name) for name, value in tree.items())
        return {name: value for part in parts for name, value in part.items()}

    before, now = flat(there), flat(_plain(here))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    # The digest of all numbers says only that something differs: it counts where nothing else does.
    told = [name for name in names if name.rpartition(".")[2] != "numbers"]
    if names and not told:
        return ["other numbers in the environment, the teacher or the data"]
    texts = []
    for name in told:
        label = name
        for part in ("identity.", "recipe.", "config.", "spec."):
            label = label.removeprefix(part)
        one, other = before.get(name, "absent"), now.get(name, "absent")
        if isinstance(one, list) and isinstance(other, list) and label == "members":
            one, other = _first_difference(one, other)
        texts.append(f"{label}: {_short(one)} there, {_short(other)} here")
    if len(texts) > _MOST_DIFFERENCES:
        texts = [*texts[:_MOST_DIFFERENCES], f"and {len(texts) - _MOST_DIFFERENCES} more"]
    return texts


class Files:
    """Writes the files of one run; what cannot be written raises ``OSError``."""

    def __init__(self, folder: pathlib.Path, members: list[dict[str, Any]], steps: np.ndarray) -> None:
        self.folder, self.members, self.steps = folder, members, steps
        self.curves: list[dict[str, np.ndarray]] = []
        """``{name: [members]}`` of each evaluation so far."""

    def begin(self, config: dict[str, Any]) -> None:
        """Write config.json and members.csv, and cut the others back to what is in ``curves``."""
        text = json.dumps(_plain(config), indent=2) + "\n"
        _replace(self.folder / CONFIG, text.encode())
        names = list(dict.fromkeys(name for row in self.members for name in row))
        with open(self.folder / _MEMBERS, "w", newline="") as file:
            writer = csv.DictWriter(file, ["member", *names])
            writer.writeheader()
            writer.writerows({"member": i, **_plain(row)} for i, row in enumerate(self.members))
        with open(self.folder / _CURVES, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["member", "step", "metric", "value"])
            for number in range(len(self.curves)):
                writer.writerows(self._lines(number))
        self.metrics()

    def added(self) -> None:
        """Append the last evaluation in ``curves`` to curves.csv."""
        with open(self.folder / _CURVES, "a", newline="") as file:
            csv.writer(file).writerows(self._lines(len(self.curves) - 1))

    def metrics(self) -> None:
        """Write metrics.npz anew."""
        values = stacked(self.curves)
        with _replacing(self.folder / METRICS) as file:
            np.savez_compressed(file, steps=self.steps[: len(self.curves)], **values)  # type: ignore[arg-type]

    def event(self, event: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **_plain(values)})
        with open(self.folder / _EVENTS, "a") as file:
            file.write(line + "\n")

    def _lines(self, number: int) -> list[list[Any]]:
        return [
            [member, int(self.steps[number]), name, f"{value:.6g}"]
            for name, values in self.curves[number].items()
            for member, value in enumerate(values)
        ]


def stacked(curves: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """``{name: [members]}`` of each evaluation as ``{name: [members, evaluations]}``."""
    return {name: np.stack([c[name] for c in curves], axis=1) for name in curves[0]} if curves else {}


def events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of events.jsonl; the last is left out if it was cut off."""
    file = pathlib.Path(path) / _EVENTS
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _plain(value: Any) -> Any:
    """What JSON holds."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value


def _first_difference(one: list[Any], other: list[Any]) -> tuple[Any, Any]:
    if len(one) != len(other):
        return len(one), len(other)
    return next(((a, b) for a, b in zip(one, other, strict=True) if a != b), (one, other))


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else text[:77] + "..."


def _neighbours(folder: pathlib.Path) -> str:
    """The folders that a mistyped one may have meant."""
    import difflib

    parent = folder.parent
    if not parent.is_dir():
        return f"neither is there {str(parent)!r}."
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(folder.name, names, n=2)
    return f"did you mean {' or '.join(repr(str(parent / name)) for name in close)}?" if close else ""


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Any:
    """A file that takes the place of ``path`` only once it is whole."""
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _replace(path: pathlib.Path, content: bytes) -> None:
    with _replacing(path) as file:
        file.write(content)
