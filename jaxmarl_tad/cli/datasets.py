"""What ``tad record`` and ``tad data`` do."""

import contextlib
import math
import pathlib
import sys
from typing import Any, Literal

import numpy as np

from jaxmarl_tad import quality, report, storage
from jaxmarl_tad.cli import locks
from jaxmarl_tad.cli import words as grammar
from jaxmarl_tad.cli.words import Words, file_name
from jaxmarl_tad.dataset import Dataset, returns
from tad_envs import require

_RECORD: dict[str, Any] = {
    "episodes": int,
    "explore": Literal["greedy", "sample"] | float,
    "member": Literal["best", "all"] | int,
    "checkpoint": Literal["newest", "all"] | int,
    "seed": int,
    "label": str,
}
_THIRDS = ("poor", "medium", "good")


def record(words: Words) -> int:
    """Record what the words ask for; print what came of it."""
    import jaxmarl_tad as jt

    grammar.check_keys(words.pairs, [*_RECORD, "env", "out"], "tad record")
    given = {
        k: grammar.read(k, words.pairs[k], hint) for k, hint in _RECORD.items() if k in words.pairs
    }
    who, *places = words.names
    both = bool(places) and "env" in words.pairs
    require(not both, f"env={words.pairs.get('env')} and {places[-1:]} name two environments.")
    env = places[0] if places else words.pairs.get("env")
    checkpoint = given.pop("checkpoint", "newest")
    policy: Any = who
    if who == "random":
        require(checkpoint == "newest", "checkpoint=... is for a run's folder, not for random actions.")
        require(env is not None, "name an environment: tad record random hallway.")
    elif checkpoint == "all":
        policy = [jt.load(who, checkpoint=number) for number in jt.checkpoints(who)]
    else:
        policy = jt.load(who, checkpoint=None if checkpoint == "newest" else checkpoint)
    if env is not None:
        env = jt.make(env).name  # refused before anything is written
    stem = file_name(f"{pathlib.Path(who).resolve().name if who != 'random' else who}")
    out = pathlib.Path(words.pairs.get("out") or _numbered(f"{stem}-{file_name(env or '')}".strip("-")))
    try:
        with contextlib.nullcontext() if (out / storage.MANIFEST).exists() else locks.held(out):
            data = jt.record(policy, env, path=out, **given)
    except locks.Busy as error:
        print(f"tad: {error}; left to it", file=sys.stderr)
        return 1
    print(_line(data, out))
    return 0


def info(words: Words) -> int:
    """Print measures of datasets, and draw their returns."""
    grammar.check_keys(words.pairs, ["out"], "tad data info")
    paths = words.names[1:]
    found = {name: storage.load_data(path) for name, path in zip(_labels(paths), paths, strict=True)}
    about = {
        name: {"environment": data.env or "–", "label": data.label or "–", **quality.describe(data)}
        for name, data in found.items()
    }
    measures = list(dict.fromkeys(key for each in about.values() for key in each))
    rows = [
        {"measure": key, **{name: _text(each.get(key)) for name, each in about.items()}}
        for key in measures
    ]
    print(report.table(rows))
    default = pathlib.Path(paths[0]) if len(paths) == 1 else pathlib.Path()
    figures = pathlib.Path(words.pairs.get("out") or default / "figures")
    drawn = report.histograms({n: returns(data) for n, data in found.items()}, figures / "returns.png")
    print(f"\nfigure: {drawn}")
    return 0


def mix(words: Words) -> int:
    """Write a mixture of datasets."""
    hints = {"episodes": int, "seed": int, "label": str}
    grammar.check_keys(words.pairs, [*hints, "shares", "out"], "tad data mix")
    given = {
        key: grammar.read(key, words.pairs[key], hint)
        for key, hint in hints.items()
        if key in words.pairs
    }
    if "shares" in words.pairs:
        given["shares"] = [float(s) for s in grammar.read_each("shares", words.pairs["shares"], float)]
    out = _out(words, "mix")
    parts = [storage.load_data(path) for path in words.names[1:]]
    recipe = {"mix": [_origin(path) for path in words.names[1:]], **given}
    there = storage.save_data(quality.mix(parts, name=out.name, **given), out, recipe=recipe)
    print(_line(storage.load_data(there, verify=False), out))
    return 0


def split(words: Words) -> int:
    """Write the parts of a dataset by return."""
    grammar.check_keys(words.pairs, ["parts", "at", "out"], "tad data split")
    require(not {"parts", "at"} <= set(words.pairs), "parts=... and at=... are two ways; choose one.")
    out, path = _out(words, "split"), words.names[1]
    data = storage.load_data(path)
    if "at" in words.pairs:
        at = sorted(float(x) for x in grammar.read_each("at", words.pairs["at"], float))
        lows = [-math.inf, *(float(np.nextafter(x, math.inf)) for x in at)]
        found = [
            quality.by_return(data, low, high) for low, high in zip(lows, [*at, math.inf], strict=True)
        ]
    else:
        found = quality.split(data, grammar.read("parts", words.pairs.get("parts", "3"), int))
    names = _THIRDS if len(found) == 3 else [f"part-{i + 1}" for i in range(len(found))]
    for name in names:
        require(
            not (out / name).exists(), f"{str(out / name)!r} exists; a dataset is never written over."
        )
    for name, part in zip(names, found, strict=True):
        whole = quality.mix([part], name=name, label=name)
        recipe = {"split": _origin(path), "part": name, **words.pairs}
        storage.save_data(whole, out / name, recipe=recipe)
        print(_line(whole, out / name))
    return 0


def _origin(path: str) -> dict[str, Any]:
    """Where a dataset comes from, to be kept with what is made of it."""
    about = storage.manifest(path)
    return {"path": str(pathlib.Path(path).resolve()), "rows": about["rows"], "recipe": about["recipe"]}


def _out(words: Words, action: str) -> pathlib.Path:
    require("out" in words.pairs, f"tad data {action} needs out=DIR, a new folder.")
    out = pathlib.Path(words.pairs["out"])
    if action == "mix":
        require(not out.exists(), f"out={str(out)!r} exists; a dataset is never written over.")
    return out


def _labels(paths: list[str]) -> list[str]:
    """The folders' own names, or all of their paths where two are the same."""
    names = [pathlib.Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _line(data: Dataset, out: pathlib.Path) -> str:
    sums = returns(data)
    return (
        f"{out}: {data.episodes:,} episodes, {data.steps:,} steps, return {sums.mean():.4g} "
        f"± {sums.std():.3g} ({sums.min():.4g} to {sums.max():.4g})"
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


def _numbered(name: str) -> pathlib.Path:
    """``data/NAME-NUMBER``, the first that is free or that was begun."""
    number = 1
    while (pathlib.Path("data") / f"{name}-{number}" / storage.MANIFEST).exists():
        number += 1
    return pathlib.Path("data") / f"{name}-{number}"
