"""Recording and loading a dataset: speed and size.

    python benchmarks/offline.py [--steps 1000000]

Records uniform random play on ``mpe/spread`` into a folder, once to compile and once for the figures,
loads it with and without checksums, and appends a line to ``benchmarks/results/offline.jsonl``: one
JSON object with the commit, the device, the versions and every figure. ``play_s`` is the same recording
kept in memory. Seconds are of the wall clock, each the least of three.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time

import jax
import numpy as np
import tensorstore
from didactic import commit

import jaxmarl_tad as jt
from jaxmarl_tad import report
from jaxmarl_tad.dataset import leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent
HISTORY = ROOT / "benchmarks" / "results" / "offline.jsonl"
GAME = "mpe/spread"


def least(action, times=3):
    """The least wall-clock seconds of several calls, and what the last returned."""
    seconds, found = [], None
    for _ in range(times):
        began = time.perf_counter()
        found = action()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def measured(steps: int, folder: pathlib.Path) -> dict:
    """Record and load ``steps`` transitions."""
    there = folder / "data"
    episodes = steps // jt.make(GAME).spec.horizon

    def recorded():
        shutil.rmtree(there, ignore_errors=True)
        return jt.record("random", GAME, episodes=episodes, path=there)

    began = time.perf_counter()
    jt.record("random", GAME, episodes=episodes)
    first_s = time.perf_counter() - began
    play_s, _ = least(lambda: jt.record("random", GAME, episodes=episodes))
    record_s, data = least(recorded)
    verified_s, _ = least(lambda: jt.load_data(there))
    load_s, _ = least(lambda: jt.load_data(there, verify=False))
    held = sum(leaf.nbytes for leaf in leaves(data).values())
    stored = sum(file.stat().st_size for file in there.rglob("*") if file.is_file())
    return {
        "steps": data.steps,
        "first_s": first_s,
        "play_s": play_s,
        "record_s": record_s,
        "steps_per_s": data.steps / record_s,
        "load_s": load_s,
        "load_verified_s": verified_s,
        "memory_MB": held / 1e6,
        "folder_MB": stored / 1e6,
        "ratio": stored / held,
        "load_MB_per_s": held / 1e6 / verified_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        found = measured(steps, pathlib.Path(name))
    rounded = {key: float(f"{value:.4g}") for key, value in found.items()}
    print(report.table([{"figure": key, "value": value} for key, value in rounded.items()]))
    record = {
        "benchmark": "offline",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "tensorstore": getattr(tensorstore, "__version__", "unknown"),
        },
        "game": GAME,
        **found,
    }
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with open(HISTORY, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
