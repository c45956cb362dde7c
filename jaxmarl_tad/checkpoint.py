"""Checkpoints: everything a run carries on, kept so that it can go on bit for bit.

A checkpoint is the state of every member (parameters, optimiser, replay, environments), the curves so
far, and a JSON record with the name, shape, type and checksum of each array. It holds no keys: they
derive from the seed and the number of the iteration. Writing is asynchronous and atomic; the newest
two are kept, so that one that cannot be read leaves one that can.
"""

import logging
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarl_tad.config import require
from jaxmarl_tad.types import State

_KEPT = 2


class Restored(NamedTuple):
    """What a checkpoint held."""

    iteration: int
    state: State
    curves: dict[str, np.ndarray]
    """``{name: [members, evaluations so far]}``."""


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose content is not what was written."""


class Checkpoints:
    """The checkpoints of one run, in ``folder``, by the number of iterations done."""

    def __init__(self, folder: pathlib.Path) -> None:
        import orbax.checkpoint as ocp  # 0.6 s to import, so only where something is saved

        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder, self.ocp = folder.resolve(), ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.damaged: list[tuple[pathlib.Path, str]] = []
        """Where checkpoints that could not be read were put, and why."""

    def save(self, iteration: int, state: State, curves: dict[str, np.ndarray]) -> None:
        """Begin to write; :meth:`wait` tells whether it worked.

        Raises ``OSError`` if this or an earlier checkpoint could not be written.
        """
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

    def wait(self) -> None:
        """Wait for the checkpoint being written. Raises ``OSError`` if it could not be."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise OSError(f"a checkpoint could not be written: {_first_line(error)}") from error

    def close(self) -> None:
        """Wait and release what writing needed."""
        try:
            self.wait()
        finally:
            self.manager.close()

    def newest(self) -> int | None:
        """The number of iterations of the newest checkpoint, whether or not it can be read."""
        return self.manager.latest_step()

    def restore(self, shapes: State) -> Restored | None:
        """The newest checkpoint that can be read, as numpy arrays; None where there is none.

        One that cannot be read is renamed to ``damaged-<iteration>`` and listed in ``damaged``.

        Args:
            shapes: The structure, shapes and dtypes of the state. If leaves have shardings, they are
                restored to the devices, each process its own part.

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
        about = self._read(iteration, about=self.ocp.args.JsonRestore())["about"]
        if about is None:
            raise Damaged("its description is missing")
        wanted = _named(shapes)
        kept = {name: tuple(entry[:2]) for name, entry in about["state"].items()}
        differing = [
            f"{name} is {_shape_text(wanted.get(name))} here and {kept.get(name, 'absent')} there"
            for name in sorted({*wanted, *kept})
            if _shape_text(wanted.get(name)) != " ".join(map(str, kept.get(name, ("absent",))))
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
        spread = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in wanted.items()
            if getattr(leaf, "sharding", None) is not None
        }
        target["state"] |= spread
        read = self._read(
            iteration,
            **{name: self.ocp.args.StandardRestore(tree) for name, tree in target.items()},
        )
        for part in ("state", "curves"):
            for name, entry in about[part].items():
                array = read[part][name]
                if entry[2] is not None and _checksum(array) not in (None, entry[2]):
                    raise Damaged(f"the checksum of {name} differs")
        return Restored(iteration, _filled(shapes, read["state"]), dict(read["curves"]))

    def _read(self, iteration: int, **items: Any) -> Any:
        try:
            return self.manager.restore(iteration, args=self.ocp.args.Composite(**items))
        except Exception as error:
            raise Damaged(_first_line(error)) from error

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
    return [str(array.dtype), list(array.shape), _checksum(array)]


def _shape_text(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"


def _abstract(entry: list[Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(entry[1]), np.dtype(entry[0]))


def _checksum(array: Any) -> int | None:
    """CRC-32 of an array's bytes; None where this process holds only a part of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.asarray(array).tobytes())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
