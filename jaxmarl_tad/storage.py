"""Datasets in folders: written once in whole shards, checked when they are read.

    manifest.json     what it is: environment, sizes, quality, recipe, returns, checksums of all files
    agents/ state/ …  one Zarr array (version 3, sharded) for each leaf of a :class:`Dataset`
    recording.json    only while it is written: how far, so that it can go on

The manifest is written last and put in its place by one rename. A folder without it is unfinished and
is never learned from, and a folder that has it is never written to again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from jaxmarl_tad.dataset import LEAVES, Dataset, as_scale, from_leaves, leaves
from tad_envs import Spec, require

MANIFEST, RECORDING = "manifest.json", "recording.json"
SCHEMA = 1
SHARD, CHUNK = 65_536, 1_024
"""Rows of a file, and of the parts of it that are read and compressed apart."""
_CONVENTION = (
    "An episode of L steps takes L + 1 rows; its last row holds the final observation, and is no step "
    "(valid is false, action and reward mean nothing). Row t + 1 is what the step in row t led to."
)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_CACHE = "cache"
_LOCK = "lock"
"""What a command leaves in a folder while it alone may write there."""
_PACKAGES = ("jaxmarl_tad", "jax", "numpy", "tensorstore")


# --- reading --------------------------------------------------------------------------------------


def load_data(
    path: str | os.PathLike[str], *, verify: bool = True, limit: int | None = None
) -> Dataset:
    """The dataset in the folder ``path``, in the host's memory.

    Args:
        path: What :func:`save_data` or :func:`jaxmarl_tad.record` wrote.
        verify: Compare every file's checksum. Without, only that all are there in their full size.
        limit: Bytes of memory it may take. A larger one stays on the disk, uncompressed in ``cache``
            within the folder, and a run learns from as much of it as fits, another part after each
            evaluation: then evaluate often.

    Raises:
        ValueError: There is none, it is unfinished, or a file of it is missing or damaged.
    """
    there = pathlib.Path(path).expanduser().resolve()
    about = manifest(path)
    for name, (size, digest) in about["files"].items():
        file = there / name
        told = None
        if not file.is_file():
            told = "is missing"
        elif file.stat().st_size != size:
            told = f"has {file.stat().st_size:,} bytes and not {size:,}"
        elif verify and _digest(file) != digest:
            told = "is damaged: its checksum is another"
        require(told is None, f"{str(path)!r} cannot be used: its file {name!r} {told}.")
    host: dict[str, Any] = {key: about[key] for key in ("env", "name", "label")}
    host |= {"path": str(there), "scale": as_scale(about.get("scale"))}
    held = sum(math.prod(x["shape"]) * np.dtype(x["dtype"]).itemsize for x in about["leaves"].values())
    if limit is not None and held > limit:
        return from_leaves(_mapped(there, about), spec_of(about), limit=limit, **host)
    found = {}
    pending = {}
    for name, kind in about["leaves"].items():
        if 0 in kind["shape"]:
            found[name] = np.zeros(kind["shape"], kind["dtype"])
        else:
            pending[name] = _open(there / name).read()
    found |= {name: np.asarray(future.result()) for name, future in pending.items()}
    for name, kind in about["leaves"].items():
        same = list(found[name].shape) == kind["shape"] and str(found[name].dtype) == kind["dtype"]
        require(same, f"{str(path)!r} cannot be used: {name!r} is not what its {MANIFEST} says.")
    return from_leaves(found, spec_of(about), **host)


def _mapped(there: pathlib.Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """Leaves as files that are read where they are looked at, made by the first who asks."""
    cache, checksum = there / _CACHE, _digest_of(about)
    mark = cache / "of.txt"
    if not mark.exists() or mark.read_text() != checksum:
        cache.mkdir(exist_ok=True)
        for name, kind in about["leaves"].items():
            new = cache / f".{name}.npy.{os.getpid()}"
            shape = tuple(kind["shape"])
            values = np.lib.format.open_memmap(new, "w+", kind["dtype"], shape)
            for begin in range(0, shape[0], SHARD) if 0 not in shape else ():
                rows = slice(begin, min(begin + SHARD, shape[0]))
                values[rows] = _open(there / name)[rows].read().result()
            values.flush()
            os.replace(new, cache / f"{name}.npy")
        mark.write_text(checksum)
    return {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in about["leaves"]}


def manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the manifest of the dataset in ``path`` says; starts nothing and reads no array.

    Raises ``ValueError`` if there is no dataset, an unfinished one, or a damaged manifest.
    """
    there = pathlib.Path(path).expanduser()
    file = there / MANIFEST
    require(there.is_dir(), f"there is no folder {str(path)!r}.")
    require(
        file.exists() or not (there / RECORDING).exists(),
        f"{str(path)!r} is an unfinished recording; record again as before, and it goes on from there.",
    )
    require(file.exists(), f"{str(path)!r} is not a dataset: {MANIFEST} is missing.")
    try:
        about = json.loads(file.read_text())
        checksum = about.pop("checksum")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} cannot be used: its {MANIFEST} is damaged.") from error
    require(checksum == _digest_of(about), f"{str(path)!r} cannot be used: its {MANIFEST} is damaged.")
    require(
        about["schema"] == SCHEMA,
        f"{str(path)!r} is of schema {about['schema']}, and this version reads {SCHEMA}.",
    )
    return about


def spec_of(about: dict[str, Any]) -> Spec:
    """The sizes of the environment that a manifest tells of."""
    spec = dict(about["spec"])
    spec["bounds"] = None if spec["bounds"] is None else tuple(spec["bounds"])
    return Spec(**spec)


# --- writing --------------------------------------------------------------------------------------


def save_data(
    data: Dataset, path: str | os.PathLike[str], *, recipe: dict[str, Any] | None = None
) -> pathlib.Path:
    """Write ``data`` into the new folder ``path``, as :func:`jaxmarl_tad.record` does.

    ``recipe`` is what it was made from, kept as it is. Returns the folder.

    Raises ``ValueError`` if the folder holds anything already.
    """
    found = leaves(data)
    there = pathlib.Path(path).expanduser().resolve()
    empty = not there.exists() or (there.is_dir() and not any(there.iterdir()))
    require(empty, f"path={str(path)!r} exists; a dataset is never written over.")
    about = {"env": data.env, "name": data.name, "label": data.label, "spec": data.spec._asdict()}
    about |= {"scale": data.scale, "recipe": {"from": "memory"} if recipe is None else recipe}
    writer = Writer(there, {name: x[:0] for name, x in found.items()}, len(data.reward), about)
    writer.add(0, found)
    writer.finish()
    return there


class Writer:
    """Writes blocks of rows in their order into whole shards, and knows after a stop where to go on.

    Args:
        path: The folder: new or empty, or what an earlier writer left of the same dataset.
        empty: Leaves without rows ``[0, ...]``, which tell shapes and dtypes.
        most: A bound on the number of rows.
        about: What the manifest says beside what is counted; equal where a recording goes on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        empty: dict[str, np.ndarray],
        most: int,
        about: dict[str, Any],
    ) -> None:
        self.folder, self.most = pathlib.Path(path).expanduser().resolve(), most
        self.about = json.loads(json.dumps(about))
        self.empty, self.waiting = empty, dict(empty)
        self.block, self.skip = 0, 0
        """The block to go on with, and how many of its rows are written already."""
        self.shards = 0
        file = self.folder / RECORDING
        if file.exists():
            known = _read(file)
            told = [k for k in self.about if known["about"].get(k) != self.about[k]]
            if "recipe" in told:
                both = known["about"].get("recipe", {}), self.about["recipe"]
                told = [k for k in {**both[0], **both[1]} if both[0].get(k) != both[1].get(k)]
            require(
                not told and known["rows"] == SHARD,
                f"{str(path)!r} holds an unfinished recording with other {', '.join(told) or 'shards'}"
                "; record as it was begun, or into another folder.",
            )
            self.shards = known["shards"]
            self.block, self.skip = known["next"]
        else:
            self._claim(path)
        self.stores = {
            name: _create(self.folder / name, (most, *x.shape[1:]), str(x.dtype))
            for name, x in empty.items()
            if 0 not in x.shape[1:]
        }
        self.start = self.shards * SHARD - self.skip
        """The first row of the next block."""

    def _claim(self, path: str | os.PathLike[str]) -> None:
        there = self.folder
        require(not there.exists() or there.is_dir(), f"path={str(path)!r} is a file, not a folder.")
        names = {entry.name for entry in there.iterdir()} if there.is_dir() else set()
        require(not names - {_LOCK}, f"path={str(path)!r} holds other files; name another folder.")
        try:
            there.mkdir(parents=True, exist_ok=True)
            self._progress()
        except OSError as error:
            raise ValueError(f"path={str(path)!r} cannot be written: {error.strerror}.") from error

    def add(self, block: int, rows: dict[str, np.ndarray]) -> None:
        """The rows of the next block; those that are written already are passed over."""
        count = len(rows["valid"])
        begin, self.start = self.start, self.start + count
        skip, self.skip = (self.skip, 0) if block == self.block else (0, 0)
        for name in self.waiting:
            fresh = rows[name][skip:]
            old = self.waiting[name]
            self.waiting[name] = np.concatenate([old, fresh]) if len(old) else fresh
        while len(self.waiting["valid"]) >= SHARD:
            self._flush(SHARD)
            written = self.shards * SHARD
            whole = written == begin + count
            self.block, where = (block + 1, 0) if whole else (block, max(0, written - begin))
            self._progress(where)

    def finish(self) -> dict[str, Any]:
        """Write what is left, and the manifest; returns what it says."""
        total = self.shards * SHARD + len(self.waiting["valid"])
        if len(self.waiting["valid"]):
            self._flush(len(self.waiting["valid"]))
        for store in self.stores.values():
            shape = [total, *[None] * (len(store.shape) - 1)]
            store.resize(exclusive_max=shape, resize_metadata_only=True).result()
        for stray in self.folder.rglob("*.__lock"):
            stray.unlink()
        there = [file for name in self.stores for file in (self.folder / name).rglob("*")]
        files = sorted(file for file in there if file.is_file())
        about = {
            "schema": SCHEMA,
            **self.about,
            **self._counted(),
            "rows": total,
            "row_convention": _CONVENTION,
            "leaves": {
                name: {"shape": [total, *x.shape[1:]], "dtype": str(x.dtype), "meaning": LEAVES[name]}
                for name, x in self.empty.items()
            },
            "versions": _versions(),
            "files": {
                file.relative_to(self.folder).as_posix(): [file.stat().st_size, _digest(file)]
                for file in files
            },
        }
        _replace(self.folder / MANIFEST, about | {"checksum": _digest_of(about)})
        (self.folder / RECORDING).unlink()
        return about

    def _flush(self, count: int) -> None:
        """Write the first ``count`` of the waiting rows as the next shard."""
        begin = self.shards * SHARD
        parts = {name: self.waiting[name][:count] for name in self.stores}
        writes = [self.stores[n][begin : begin + count].write(x) for n, x in parts.items()]
        for write in writes:
            try:
                write.result()
            except Exception as error:
                text = str(error).strip().splitlines()[0]
                raise OSError(f"{self.folder} could not be written any more: {text}") from error
        self.waiting = {name: x[count:] for name, x in self.waiting.items()}
        self.shards += 1

    def _progress(self, where: int = 0) -> None:
        known = {"about": self.about, "shards": self.shards, "rows": SHARD}
        known |= {"next": [self.block, where]}
        _replace(self.folder / RECORDING, known)

    def _counted(self) -> dict[str, Any]:
        """Steps, episodes and their returns, as they were written."""
        reward, first, valid = (
            np.asarray(_open(self.folder / name).read().result())
            for name in ("reward", "first", "valid")
        )
        begins = np.flatnonzero(first)
        sums = np.add.reduceat(np.where(valid, reward, 0.0).astype(np.float64), begins)
        lengths = np.diff(np.append(begins, len(first))) - 1
        return {
            "steps": int(valid.sum()),
            "episodes": len(begins),
            "returns": summary(sums),
            "lengths": summary(lengths),
        }


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, least, largest and quantiles."""
    quantiles = np.quantile(values, _QUANTILES)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {f"{q:g}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)},
    }


# --- arrays and files -----------------------------------------------------------------------------


def _create(path: pathlib.Path, shape: tuple[int, ...], kind: str) -> Any:
    """An array of this shape, which an earlier writer may have begun."""
    import tensorstore as ts  # only where data is read or written

    rest = list(shape[1:])
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}]
    inner.append({"name": "zstd", "configuration": {"level": 1}})
    if np.dtype(kind).itemsize == 1:
        inner[0].pop("configuration")
    chunks = {"chunk_shape": [min(CHUNK, SHARD), *rest], "codecs": inner}
    grid = {"name": "regular", "configuration": {"chunk_shape": [SHARD, *rest]}}
    spec = _spec(path) | {
        "metadata": {
            "shape": list(shape),
            "data_type": kind,
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": chunks}],
        }
    }
    if not (path / "zarr.json").exists():
        return ts.open(spec, create=True).result()
    return _open(path).resize(exclusive_max=shape, resize_metadata_only=True).result()


def _open(path: pathlib.Path) -> Any:
    import tensorstore as ts

    return ts.open(_spec(path)).result()


def _spec(path: pathlib.Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def _replace(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with open(new, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _digest(file: pathlib.Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest_of(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
