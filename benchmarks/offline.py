"""Recording and loading a dataset: speed and size; learning from it, against plain PyTorch.

    python benchmarks/offline.py [--steps 1000000]
    python benchmarks/offline.py --learn

Records uniform random play on ``mpe/spread`` into a folder, once to compile and once for the figures,
loads it with and without checksums, and appends a line to ``benchmarks/results/offline.jsonl``: one
JSON object with the commit, the device, the versions and every figure. ``play_s`` is the same recording
kept in memory. Seconds are of the wall clock, each the least of three.

With ``--learn`` OMIGA learns instead from random play: in the hallway by tables, and on the spread by
multilayer perceptrons of 64 and 64, in batches of 128, alone and as a sweep of 16 members in one
program. Beside it the same learns in PyTorch (``torch_omiga.py``; only our side without it), 16 members
one after the other in one process: eager, and compiled (one member), each with the number of threads
that serves it best. Figures are gradient steps of all members together per CPU-second (user and system,
all threads), compilation apart, the best of three; ``ratio_16`` is ours over the faster of theirs,
expected to be at least 1.5 in the hallway. Both are given the same parameters and the same rows first,
and ``difference`` is the largest relative one between what they report in 20 steps.
``more_data_copies`` is by how many times the data 15 more members raise XLA's estimate of the program's
memory: it would be 15 if each held them for itself.
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
import torch_omiga
from didactic import commit

import jaxmarl_tad as jt
from jaxmarl_tad import report
from jaxmarl_tad.algorithms import algorithm
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


def rate(action, updates):
    """Most updates per CPU-second of several calls."""
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        action()
        best = max(best, updates / (time.process_time() - began))
    return best


def learned(game: str, network: str, steps: int, updates: int, theirs: int) -> dict:
    """OMIGA from about ``steps`` transitions of random play: ours, and PyTorch's."""
    horizon = jt.make(game).spec.horizon
    data = jt.record("random", game, episodes=steps // horizon)
    method = algorithm("omiga")
    config = method.resolved(method.settings(network=network, total_steps=updates), data.spec)
    found: dict = {"game": game, "network": network, "steps": data.steps, "updates": updates}
    found["batch"] = config.batch
    peak = {}
    for members in (1, 16):
        common = {"seeds": members, "evaluations": 1, "episodes": 1, "network": network}
        runs = [jt.run("omiga", data, total_steps=updates, **common) for _ in range(3)]
        found[f"ours_{members}"] = max(members * updates / run.timing["run_s"] for run in runs)
        found[f"ours_{members}_compile_s"] = runs[0].timing["compile_s"]
        peak[members] = runs[0].timing["peak_bytes"]
    size = sum(leaf.nbytes for leaf in leaves(data).values())
    found |= {"data_MB": size / 1e6, "peak_1_MB": peak[1] / 1e6, "peak_16_MB": peak[16] / 1e6}
    found["more_data_copies"] = (peak[16] - peak[1]) / size
    ours = f"{found['ours_1']:.0f} alone, {found['ours_16']:.0f} as a sweep"
    print(f"{game}: steps per CPU-second: {ours}", flush=True)
    try:
        torch = torch_omiga.load()
    except torch_omiga.Missing as error:
        print(error)
        return found
    method_of = lambda data: method.make(config, data)  # noqa: E731
    states = [method_of(data).init(jax.random.key(seed)) for seed in range(16)]
    few = jt.record("random", game, episodes=config.batch // horizon)  # each batch is all
    found["difference"] = difference(
        method_of(few), states[0], torch_omiga.Member(few, config, states[0].params)
    )

    def timed(members, threads, count):
        torch.set_num_threads(threads)

        def learn(count):
            for member in members:
                for i in range(count):
                    member.step(i / count)

        learn(3)  # compiles
        return rate(lambda: learn(count), count * len(members))

    for kind in ("eager", "compiled"):
        alone = torch_omiga.Member(data, config, states[0].params, compiled=kind == "compiled")
        try:
            trial = {n: timed([alone], n, 40) for n in sorted({1, os.cpu_count() or 1})}
        except Exception as error:
            print(f"torch, {kind}, does not run here: {str(error).strip().splitlines()[0]}")
            continue
        threads = max(trial, key=trial.__getitem__)
        trial[threads] = max(trial[threads], timed([alone], threads, theirs))
        found |= {f"torch_{kind}_1": trial[threads], f"torch_{kind}_threads": threads}
        print(f"torch, {kind}: {trial[threads]:.0f} with {threads} threads", flush=True)
        if kind == "eager":
            members = [torch_omiga.Member(data, config, state.params) for state in states]
            found["torch_eager_16"] = timed(members, threads, theirs // 16)
    alone = max(found["torch_eager_1"], found.get("torch_compiled_1", 0.0))
    found["ratio_1"] = found["ours_1"] / alone
    # One after the other, compiled members would learn as fast as one alone.
    found["ratio_16"] = found["ours_16"] / max(alone, found["torch_eager_16"])
    return found


def difference(made, state, member, count=20) -> float:
    """The largest relative difference between what both sides report of the same steps."""
    step, worst = jax.jit(made.step), 0.0
    for i in range(count):
        theirs = member.told(member.rows)
        state, ours = step(jax.random.key(i), state, i / count)
        member.step(i / count, member.rows)
        worst = max(worst, *(abs(theirs[k] / float(ours[k]) - 1) for k in theirs))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--updates", type=int, default=1_000)
    asked = parser.parse_args()
    if asked.learn:
        found = {
            network: learned(game, network, asked.steps, asked.updates * more, asked.updates)
            for game, network, more in (("hallway", "table", 10), (GAME, "mlp", 1))
        }
    else:
        with tempfile.TemporaryDirectory() as name:
            found = measured(asked.steps, pathlib.Path(name))
    sides = found if asked.learn else {"": found}
    for side, figures in sides.items():
        rows = [
            {"of": side, "figure": key, "value": float(f"{value:.4g}")}
            for key, value in figures.items()
            if not isinstance(value, str)
        ]
        print(report.table(rows, ["of", "figure", "value"] if side else ["figure", "value"]))
    record = {
        "benchmark": "offline learning" if asked.learn else "offline",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "tensorstore": getattr(tensorstore, "__version__", "unknown"),
        },
        **({} if asked.learn else {"game": GAME}),
        **found,
    }
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with open(HISTORY, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
