"""Checkpoints: everything a run carries on, kept so that it can go on bit for bit.

A checkpoint is the state of every member (parameters, optimiser, replay, environments), the curves so
far, and a JSON record with the name, type and shape of each array. It holds no keys: they
derive from the seed and the number of the iteration. Writing is atomic and done before the next chunk
begins, so that an error is told where it happened; the newest two or more are kept, so that one that
cannot be read leaves one that can. Beside each lies a list of its files with their checksums, because
not every damage to them would be noticed by reading.
"""

import json
import logging
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarl_tad.config import require
from jaxmarl_tad.types import State

KEPT = 2


class Restored(NamedTuple):
    """What a checkpoint held."""

    iteration: int
    state: State
    curves: dict[str, np.ndarray]
    """``{name: [members, evaluations so far]}``."""


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose content is not what was written."""


class Checkpoints:
    """The newest checkpoints of one run, in ``folder``, by the number of iterations done."""

    def __init__(self, folder: pathlib.Path, kept: int = KEPT) -> None:
        import orbax.checkpoint as ocp  # 0.6 s to import, so only where something is saved

        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder, self.ocp = folder.resolve(), ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.damaged: list[tuple[pathlib.Path, str]] = []
        """Where checkpoints that could not be read were put, and why."""

    def save(self, iteration: int, state: State, curves: dict[str, np.ndarray]) -> None:
        """Write a checkpoint. Raises ``OSError`` if that is not possible."""
        arrays = {name: _host(leaf) for name, leaf in _named(state).items()}
        about = {
            "iteration": iteration,
            "state": {name: _describe(array) for name, array in arrays.items()},
            "curves": {name: _describe(array) for name, array in curves.items()},
        }
        save = self.ocp.args.StandardSave
        try:
            self.manager.save(
                iteration,
                args=self.ocp.args.Composite(
                    state=save(arrays), curves=save(curves), about=self.ocp.args.JsonSave(about)
                ),
            )
        except Exception as error:
            raise OSError(
                f"checkpoint {iteration} could not be written: {_first_line(error)}"
            ) from error
        if jax.process_index() == 0:
            self._list_files(iteration)

    def close(self) -> None:
        """Release what writing needed."""
        self.manager.close()

    def newest(self) -> int | None:
        """The number of iterations of the newest checkpoint, whether or not it can be read."""
        return self.manager.latest_step()

    def numbers(self) -> list[int]:
        """The numbers of iterations of all checkpoints."""
        return sorted(self.manager.all_steps())

    def restore_one(self, iteration: int, shapes: State) -> Restored:
        """The checkpoint of this number. Raises ``ValueError`` if it is missing or damaged."""
        known = self.numbers()
        require(iteration in known, f"checkpoint={iteration} does not exist; there are {known}.")
        try:
            return self._restore(iteration, shapes)
        except Damaged as error:
            raise ValueError(f"checkpoint {iteration} is damaged: {error}.") from error

    def restore(self, shapes: State) -> Restored | None:
        """The newest checkpoint that can be read, on the devices; None where there is none.

        One that cannot be read is renamed to ``damaged-<iteration>`` and listed in ``damaged``.

        Args:
            shapes: The structure, shapes and dtypes of the state, and its shardings if it lies on
                more than one device.

        Raises:
            ValueError: The checkpoint is of a state with other arrays.
        """
        for iteration in sorted(self.manager.all_steps(), reverse=True):
            try:
                return self._restore(iteration, shapes)
            except Damaged as error:
                self._put_aside(iteration, str(error))
        return None

    def _restore(self, iteration: int, shapes: State) -> Restored:
        self._compare_files(iteration)
        about = self._read(iteration, about=self.ocp.args.JsonRestore())["about"]
        if about is None:
            raise Damaged("its description is missing")
        wanted = _named(shapes)
        now = {name: _text(_describe(leaf)) for name, leaf in wanted.items()}
        there = {name: _text(entry) for name, entry in about["state"].items()}
        differing = [
            f"{name} is {now.get(name, 'absent')} here and {there.get(name, 'absent')} there"
            for name in sorted({*now, *there})
            if now.get(name) != there.get(name)
        ]
        require(
            not differing,
            f"checkpoint {iteration} in {self.folder} is of another state: {'; '.join(differing[:2])}"
            f"{f' and {len(differing) - 2} more' if len(differing) > 2 else ''}.",
        )
        target = {
            name: {key: _abstract(entry) for key, entry in about[name].items()}
            for name in ("state", "curves")
        }
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        for name, leaf in wanted.items():
            where = getattr(leaf, "sharding", None) or here
            target["state"][name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        read = self._read(
            iteration,
            **{name: self.ocp.args.StandardRestore(tree) for name, tree in target.items()},
        )
        return Restored(iteration, _filled(shapes, read["state"]), dict(read["curves"]))

    def _read(self, iteration: int, **items: Any) -> Any:
        try:
            return self.manager.restore(iteration, args=self.ocp.args.Composite(**items))
        except Exception as error:
            raise Damaged(_first_line(error)) from error

    def _list_files(self, iteration: int) -> None:
        """Write the checksums of a checkpoint's files, and drop those of checkpoints that are gone."""
        for file in self.folder.glob("*.json"):
            if not (self.folder / file.stem).is_dir():
                file.unlink()
        (self.folder / f"{iteration}.json").write_text(json.dumps(self._checksums(iteration)))

    def _compare_files(self, iteration: int) -> None:
        """Refuse a checkpoint whose files are not as they were written.

        A process that was killed before it could list them leaves no list: then reading must do.
        """
        try:
            written = json.loads((self.folder / f"{iteration}.json").read_text())
        except (OSError, ValueError):
            return
        found = self._checksums(iteration)
        differing = [
            name for name in sorted({*written, *found}) if written.get(name) != found.get(name)
        ]
        if differing:
            raise Damaged(f"{differing[0]} is not as it was written")

    def _checksums(self, iteration: int) -> dict[str, int]:
        there = self.folder / str(iteration)
        files = sorted(file for file in there.rglob("*") if file.is_file())
        return {str(file.relative_to(there)): zlib.crc32(file.read_bytes()) for file in files}

    def _put_aside(self, iteration: int, reason: str) -> None:
        there = self.folder / str(iteration)
        aside = self.folder / f"damaged-{iteration}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{iteration}-{number}"
        if jax.process_index() == 0:
            there.rename(aside)
        self.manager.reload()
        self.damaged.append((aside, reason))


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by name, without those of size 0, which hold nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if 0 not in leaf.shape}


def _filled(shapes: Any, named: dict[str, Any]) -> Any:
    def fill(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return named[name] if name in named else np.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _host(leaf: Any) -> Any:
    """A copy in the host's memory, which the next chunk cannot overwrite; shared arrays as they are."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    return np.array(leaf)


def _describe(array: Any) -> list[Any]:
    return [str(array.dtype), list(array.shape)]


def _text(entry: list[Any]) -> str:
    return f"{entry[0]} {entry[1]}"


def _abstract(entry: list[Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(entry[1]), np.dtype(entry[0]))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
