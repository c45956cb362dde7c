"""Ranking data in the SVMlight format of LETOR and MSLR-WEB30K: read once, then mapped from disk.

A line is one document of one query: ``label qid:ID 1:value 2:value …  # comment``. Labels are whole
numbers from 0, feature numbers rise and begin at 1, what is left out is 0, and the lines of a query
follow one another. A line that is otherwise is refused by file, number and reason.

:func:`load` writes what it reads to arrays next to the file (or in a given folder) and maps these: a
file larger than memory can be used, and is parsed once. :func:`sampled` draws from it the table that
:class:`tad_envs.ltr.Table` plays on. ``R`` lines, ``Q`` queries, ``N`` documents, ``F`` features.
"""

import json
import math
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from tad_envs.struct import require

Part = Literal["train", "test"]

_FORMAT = 1
"""Of the arrays on disk; they are made anew where it differs."""
_BLOCK = 4096
"""Lines that are held in memory while a file is read."""


class Ranking(NamedTuple):
    """A data set; the arrays are mapped from disk, not read."""

    feature: Float[np.ndarray, "R F"]
    label: Int[np.ndarray, "R"]
    start: Int[np.ndarray, "Q1"]
    """Where each query's lines begin, and ``R``: query q has the lines ``start[q]:start[q + 1]``."""
    query: Int[np.ndarray, "Q"]
    """The file's own numbers of the queries."""

    def batches(self, size: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Features, labels and starts of ``size`` queries after another, in memory."""
        require(size >= 1, f"size={size} must be at least 1.")
        for first in range(0, len(self.query), size):
            start = np.array(self.start[first : first + size + 1])
            lines = slice(start[0], start[-1])
            yield np.array(self.feature[lines]), np.array(self.label[lines]), start - start[0]


# --------------------------------------------------------------------------------------------------
# Reading


def load(path: str | os.PathLike, cache: str | os.PathLike | None = None) -> Ranking:
    """The data set in a file, from its arrays on disk where these are as new as the file.

    Args:
        path: a text file.
        cache: folder for the arrays; next to the file, as ``<file>.arrays``, by default.
    """
    source = pathlib.Path(path)
    require(source.is_file(), f"path={str(path)!r} is no file; give one of lines like '2 qid:1 1:0.5'.")
    beside = source.with_name(source.name + ".arrays")
    folder = beside if cache is None else pathlib.Path(cache) / beside.name
    seen = source.stat()
    stamp = {"format": _FORMAT, "bytes": seen.st_size, "changed": seen.st_mtime_ns}
    if not _written(folder, stamp):
        _write(source, folder, stamp)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in Ranking._fields}
    return Ranking(**arrays)


def _written(folder: pathlib.Path, stamp: dict[str, int]) -> bool:
    try:
        return json.loads((folder / "stamp.json").read_text()) == stamp
    except (OSError, ValueError):
        return False


def _write(source: pathlib.Path, folder: pathlib.Path, stamp: dict[str, int]) -> None:
    """Parse ``source`` into ``folder``, which appears only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as made:
        unfinished = pathlib.Path(made) / "arrays"
        unfinished.mkdir()
        rows, features = _size(source)
        require(rows > 0, f"{source}: holds no document.")
        feature = np.lib.format.open_memmap(
            unfinished / "feature.npy", "w+", np.dtype(np.float32), (rows, features)
        )
        label, number = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
        block, first = np.zeros((_BLOCK, features), np.float32), 0
        for row, (label[row], number[row], places, values) in enumerate(_documents(source)):
            if row - first == _BLOCK:
                feature[first:row] = block
                block[:], first = 0, row
            block[row - first, places] = values
        feature[first:] = block[: rows - first]
        feature.flush()
        begins = np.flatnonzero(np.diff(number, prepend=number[0] - 1))
        np.save(unfinished / "label.npy", label)
        np.save(unfinished / "start.npy", np.append(begins, rows))
        np.save(unfinished / "query.npy", number[begins])
        (unfinished / "stamp.json").write_text(json.dumps(stamp))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _lines(source: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is not empty, without its comment."""
    with source.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            words = line.partition("#")[0].split()
            if words:
                yield number, words


def _size(source: pathlib.Path) -> tuple[int, int]:
    """Documents and largest feature number; what is malformed is left to :func:`_documents`."""
    rows = largest = 0
    for _, words in _lines(source):
        rows += 1
        last = words[-1].partition(":")[0]
        if last.isdecimal() and len(words) > 2:
            largest = max(largest, int(last))
    return rows, largest


def _documents(source: pathlib.Path) -> Iterator[tuple[int, int, list[int], list[float]]]:
    """Label, query, and the features' places from 0 and values of each document."""
    done: set[int] = set()
    current = None
    for number, words in _lines(source):
        try:
            label, query, places, values = _document(words)
            if query != current:
                require(query not in done, f"the lines of query {query} do not follow one another.")
                done.add(query)
                current = query
        except ValueError as problem:
            raise ValueError(f"{source}, line {number}: {problem}") from None
        yield label, query, places, values


def _document(words: list[str]) -> tuple[int, int, list[int], list[float]]:
    label = words[0].removesuffix(".0")
    require(label.isdecimal(), f"the label {words[0]!r} is no whole number from 0.")
    name, _, query = words[1].partition(":") if len(words) > 1 else ("", "", "")
    found = " ".join(words[1:2]) or "nothing"
    require(name == "qid" and query.isdecimal(), f"expected qid:NUMBER after the label, not {found!r}.")
    pairs = [word.partition(":") for word in words[2:]]
    try:
        numbers, values = [int(p[0]) for p in pairs], [float(p[2]) for p in pairs]
    except ValueError:
        raise ValueError(_fault(words[2:])) from None
    rising = all(map(operator.lt, [0, *numbers], numbers))
    if not (numbers and rising and all(map(math.isfinite, values))):
        raise ValueError(_fault(words[2:]))
    return int(label), int(query), [n - 1 for n in numbers], values


def _fault(words: list[str]) -> str:
    """What is wrong with the features of a line of which something is."""
    before = 0
    for word in words:
        index, _, text = word.partition(":")
        try:
            number, value = int(index), float(text)
        except ValueError:
            return f"expected NUMBER:VALUE, not {word!r}."
        if number <= before:
            return f"feature {number} follows feature {before}; numbers rise from 1."
        if not math.isfinite(value):
            return f"feature {number} is {text}, which is not finite."
        before = number
    return "there are no features."


# --------------------------------------------------------------------------------------------------
# A table to play on


def sampled(
    path: str | os.PathLike,
    *,
    part: Part = "train",
    documents: int = 10,
    shortest: int | None = None,
    queries: int = 10_000,
    share: float = 0.7,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> tuple[Float32[np.ndarray, "Q N F"], Float32[np.ndarray, "Q N"]]:
    """Features and labels of up to ``queries`` queries with ``documents`` documents each.

    Queries without any relevant document are dropped, for their NDCG is 0 / 0, and so are those with
    fewer than ``shortest`` documents. The rest is shuffled and split. Of a query's documents a subset
    is drawn, all subsets that hold a relevant one alike. Features become ``sign(x) log(1 + |x|)``
    (some of MSLR's are negative) and are then scaled to mean 0 and deviation 1 over the documents
    drawn for training, in both parts.

    Args:
        path: see :func:`load`.
        part: which part of the split.
        documents: per query; labels of those that a short query lacks are -1, their features 0.
        shortest: fewest documents of a query; ``documents``, so that none is short, by default.
        queries: of both parts together, at most.
        share: of the queries that are for training, in (0, 1).
        seed: of split and draws.
        cache: see :func:`load`.
    """
    shortest = documents if shortest is None else shortest
    require(part in ("train", "test"), f"part={part!r} must be 'train' or 'test'.")
    require(documents >= 2, f"documents={documents} must be at least 2.")
    require(
        2 <= shortest <= documents,
        f"shortest={shortest} must lie between 2 and documents={documents}.",
    )
    require(queries >= 2, f"queries={queries} must be at least 2: one to train on, one to test on.")
    require(0 < share < 1, f"share={share:g} must lie between 0 and 1.")
    data = load(path, cache)
    fits = _usable(data, shortest)
    require(
        len(fits) >= 2,
        f"{path}: {len(fits)} of {len(data.query)} queries have {shortest} documents or more and a "
        "relevant one among them; 2 are needed.",
    )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(fits)[:queries]
    cut = int(np.clip(round(share * len(chosen)), 1, len(chosen) - 1))
    feature, label = _drawn(data, chosen, documents, rng)
    scaled = _scaled(feature, feature[:cut][label[:cut] >= 0])
    feature = np.where((label >= 0)[..., None], scaled, 0).astype(np.float32)
    kept = slice(cut) if part == "train" else slice(cut, None)
    return feature[kept], label[kept]


def _usable(data: Ranking, shortest: int) -> np.ndarray:
    start = np.asarray(data.start)
    relevant = np.add.reduceat(np.asarray(data.label) > 0, start[:-1], dtype=np.int64)
    return np.flatnonzero((np.diff(start) >= shortest) & (relevant > 0))


def _drawn(data: Ranking, chosen: np.ndarray, documents: int, rng: Any) -> tuple[np.ndarray, ...]:
    feature = np.zeros((len(chosen), documents, data.feature.shape[1]), np.float32)
    label = np.full((len(chosen), documents), -1, np.float32)
    for row, query in enumerate(chosen):
        first, last = data.start[query], data.start[query + 1]
        known = np.asarray(data.label[first:last])
        lines = np.sort(_subset(known > 0, documents, rng))
        feature[row, : len(lines)] = data.feature[first + lines]
        label[row, : len(lines)] = known[lines]
    return feature, label


def _subset(relevant: np.ndarray, documents: int, rng: Any) -> np.ndarray:
    """``documents`` of the places, or all: uniform among the subsets with a relevant place."""
    yes, no = np.flatnonzero(relevant), np.flatnonzero(~relevant)
    size, count = min(documents, len(relevant)), 0
    while count == 0:
        count = rng.hypergeometric(len(yes), len(no), size)
    return np.concatenate([rng.choice(yes, count, False), rng.choice(no, size - count, False)])


def _scaled(feature: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Logarithms, with mean 0 and deviation 1 over ``training [D, F]``; constants become 0."""
    bent, seen = (np.sign(x) * np.log1p(np.abs(x)) for x in (feature, training))
    mean, deviation = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
    return (bent - mean) / np.where(deviation > 1e-6, deviation, 1.0)
