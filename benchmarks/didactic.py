"""What the didactic study costs: each program's tracing, compiling, running and memory.

    make bench

Runs the study twice in processes of their own, first with an empty compilation cache and then with
the one that the first filled, prints both and their ratio, and appends a line to
``benchmarks/results/didactic.jsonl``: one JSON object with the commit, the device, the versions and
every figure. Seconds are CPU-seconds, user and system, of all threads.
"""

import csv
import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile

import jax
import jaxlib
import numpy as np

from jaxmarl_tad import report

ROOT = pathlib.Path(__file__).resolve().parent.parent
HISTORY = ROOT / "benchmarks" / "results" / "didactic.jsonl"
SECONDS = ("trace_s", "compile_s", "run_s")


def study(folder: pathlib.Path, cache: pathlib.Path) -> dict:
    """Run the study in ``folder`` with the compilation cache ``cache``; what it cost."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, ROOT / "experiments" / "didactic.py"],
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "runs" / "didactic" / "programs.csv", newline="") as file:
        programs = [
            {name: value if name == "program" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return {
        "total_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "resident_MiB": after.ru_maxrss / 1024,
        "programs": programs,
    }


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cold = study(folder, folder / "cache")
        warm = study(folder, folder / "cache")
    rows = []
    for first, second in zip(cold["programs"], warm["programs"], strict=True):
        row = {"program": first["program"], "peak_MiB": round(first["peak_MiB"], 1)}
        for label, side in (("cold", first), ("warm", second)):
            row |= {f"{label} {seconds}": round(side[seconds], 2) for seconds in SECONDS}
        rows.append(row)
    print(report.table(rows))
    ratio = cold["total_s"] / warm["total_s"]
    print(
        f"\nwhole study: cold {cold['total_s']:.1f} CPU-s, warm {warm['total_s']:.1f} CPU-s, ", end=""
    )
    print(f"ratio {ratio:.2f}; {warm['resident_MiB']:.0f} MiB resident")
    record = {
        "benchmark": "didactic",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
        },
        "cold": cold,
        "warm": warm,
        "ratio": ratio,
    }
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with open(HISTORY, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
