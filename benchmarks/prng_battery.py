"""Statistical batteries on the raw bits of ``jaxmarl_tad.prng``.

    python benchmarks/prng_battery.py --tool practrand --program RNG_test --gigabytes 1
    python benchmarks/prng_battery.py --tool dieharder --streams one_key neighbours
    python benchmarks/prng_battery.py --speed

Each stream puts words of 32 bits one after the other that a learner would use in one place or another:
those of one key, and one or a few of each of very many keys that are related in every way in which
keys are made. They go through a pipe to PractRand (``RNG_test stdin32``) or to dieharder, which must
be installed. One line of JSON per stream is appended to ``benchmarks/results/prng.jsonl``: what was
tested, how much of it, and every line that the battery did not call normal. ``--speed`` compares what
compiling and drawing cost with JAX's own generators instead.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarl_tad import prng
from jaxmarl_tad.rollout import keys

HISTORY = pathlib.Path(__file__).resolve().parent / "results" / "prng.jsonl"
WORDS = 2**22
"""Words of each piece that is generated."""
EACH = 4
"""Words of each key where a stream takes some of many keys."""
KEYS = WORDS // EACH
TESTS = (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 15, 100, 101, 102, 204)
"""Those of dieharder's tests that it does not call suspect or a waste of time."""


# --- streams --------------------------------------------------------------------------------------


def root() -> jax.Array:
    """The key from which every stream begins."""
    return jax.random.key(2026, impl=prng.implementation("hash"))


def drawn(many: jax.Array, each: int = EACH) -> jax.Array:
    """``each`` words of every key, ``[keys, each]``."""
    return jax.vmap(lambda key: jax.random.bits(key, (each,)))(many)


def raw(words: list[jax.Array]) -> jax.Array:
    """Keys that hold these words."""
    data = jnp.stack(jnp.broadcast_arrays(*words), axis=-1)
    return jax.random.wrap_key_data(data, impl=prng.implementation("hash"))


def one_key(piece: jax.Array) -> jax.Array:
    """All words of one key, in order."""
    return prng.words(jax.random.key_data(root()), piece * WORDS + jnp.arange(WORDS, dtype=jnp.uint32))


def split_keys(piece: jax.Array) -> jax.Array:
    """Of the keys of one split, then of the next."""
    return drawn(jax.random.split(jax.random.fold_in(root(), piece), KEYS))


def folded_keys(piece: jax.Array) -> jax.Array:
    """Of ``fold_in(key, 0)``, ``fold_in(key, 1)``, …"""
    numbers = piece * KEYS + jnp.arange(KEYS, dtype=jnp.uint32)
    return drawn(jax.vmap(lambda t: jax.random.fold_in(root(), t))(numbers))


def neighbours(piece: jax.Array) -> jax.Array:
    """Of keys that differ in the last bits of the last word, neighbour after neighbour."""
    many = jax.vmap(lambda t: keys(jax.random.fold_in(root(), t), 256))(piece * 4096 + jnp.arange(4096))
    return jnp.swapaxes(drawn(many.reshape(-1)).reshape(4096, 256, EACH), 1, 2)


def neighbours_by_key(piece: jax.Array) -> jax.Array:
    """The same, all words of a key together."""
    many = jax.vmap(lambda t: keys(jax.random.fold_in(root(), t), 256))(piece * 4096 + jnp.arange(4096))
    return drawn(many.reshape(-1))


def folded_neighbours(piece: jax.Array) -> jax.Array:
    """As a rollout uses keys: neighbours, a step folded into each, and neighbours of those."""

    def member(key: jax.Array) -> jax.Array:
        steps = jax.vmap(lambda t: keys(jax.random.fold_in(key, t), 2, 32))(jnp.arange(64))
        return drawn(steps.reshape(-1))

    begun = jax.vmap(lambda t: keys(jax.random.fold_in(root(), t), 2))(piece * 128 + jnp.arange(128))
    return jax.vmap(member)(begun.reshape(-1))


def seeds(piece: jax.Array) -> jax.Array:
    """Of seeds 0, 1, 2, …"""
    numbers = piece * KEYS + jnp.arange(KEYS, dtype=jnp.uint32)
    return drawn(jax.vmap(lambda s: jax.random.key(s, impl=prng.implementation("hash")))(numbers))


def counted_last_words(piece: jax.Array) -> jax.Array:
    """One word of each of the keys (0, 0), (0, 1), (0, 2), …"""
    return drawn(raw([jnp.uint32(0), piece * WORDS + jnp.arange(WORDS, dtype=jnp.uint32)]), 1)


def counted_first_words(piece: jax.Array) -> jax.Array:
    """One word of each of the keys (0, 0), (1, 0), (2, 0), …"""
    return drawn(raw([piece * WORDS + jnp.arange(WORDS, dtype=jnp.uint32), jnp.uint32(0)]), 1)


def new_keys(piece: jax.Array) -> jax.Array:
    """The words of the keys of one split, then of the next."""
    many = jax.random.split(jax.random.fold_in(root(), piece), WORDS // 2)
    return jax.random.key_data(many)


def chains(piece: jax.Array) -> jax.Array:
    """``key, own = split(key)`` again and again: one word of each ``own``, in many chains."""

    def step(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        both = jax.vmap(jax.random.split)(key)
        return both[:, 0], drawn(both[:, 1], 1)

    _, words = jax.lax.scan(step, jax.random.split(jax.random.fold_in(root(), piece), 4096), None, 1024)
    return words


STREAMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    stream.__name__: stream
    for stream in (
        one_key,
        split_keys,
        folded_keys,
        neighbours,
        neighbours_by_key,
        folded_neighbours,
        seeds,
        counted_last_words,
        counted_first_words,
        new_keys,
        chains,
    )
}


# --- batteries ------------------------------------------------------------------------------------


def practrand(program: str, gigabytes: float) -> list[str]:
    """PractRand over all lengths up to the amount."""
    megabytes = round(gigabytes * 1024)
    return [program, "stdin32", "-tlmin", "64MB", "-tlmax", f"{megabytes}MB", "-singlethreaded"]


def dieharder(program: str, gigabytes: float, test: int) -> list[str]:
    """One of dieharder's tests, which takes as many words as it needs."""
    return [program, "-g", "200", "-d", str(test)]


def pipe(
    stream: Callable[[jax.Array], jax.Array], command: list[str], start: int
) -> tuple[str, int, int]:
    """What ``command`` says of the stream, the bytes that it took, and the next piece's number."""
    piece_of = jax.jit(stream)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        taken, number = 0, start
        try:
            while True:
                piece = np.asarray(piece_of(jnp.uint32(number)), np.uint32)
                taken += process.stdin.write(piece.tobytes())
                number += 1
        except BrokenPipeError:
            pass
        text = process.stdout.read().decode()
    return text, taken, number


def unusual(tool: str, text: str) -> list[str]:
    """The lines of a battery's answer that are not called normal."""
    if tool == "practrand":
        words = r"unusual|suspicious|mildly|VERY|FAIL"
        return [" ".join(line.split()) for line in text.splitlines() if re.search(words, line)]
    lines = [line for line in text.splitlines() if re.search(r"WEAK|FAILED", line)]
    return ["".join(line.split()) for line in lines]


def verdict(lines: list[str]) -> str:
    """``passed``, ``unusual`` (which happens by chance) or ``failed``."""
    if any(re.search(r"FAIL|VERY", line) for line in lines):
        return "failed"
    return "unusual" if lines else "passed"


def version(tool: str, program: str) -> str:
    """What the battery calls itself."""
    asked = [program, "-version"] if tool == "practrand" else [program, "-l"]
    text = subprocess.run(asked, capture_output=True, text=True).stdout
    found = re.search(r"version\s+(\S+)", text)
    return found[1] if found else "unknown"


# --- speed ----------------------------------------------------------------------------------------


def speed() -> dict[str, dict[str, float]]:
    """CPU-seconds of compiling and CPU-milliseconds of drawing, the least of several rounds.

    ``uniform``: 25,000 numbers for each of 16 keys. ``layers``: six normal draws of different shapes
    for each of 16 keys, as the parameters of a network drawn layer by layer.
    """
    shapes = [(64, 64), (64,), (64, 32), (32,), (32, 8), (8,)]

    def layers(key: jax.Array) -> list[jax.Array]:
        return [jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 6), shapes, strict=True)]

    programs = {"uniform": lambda key: jax.random.uniform(key, (25_000,)), "layers": layers}
    kinds = {"threefry": "threefry2x32", "philox4x32": "philox4x32"}
    kinds |= {"hash": prng.implementation("hash")}
    costs: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    jax.config.update("jax_enable_compilation_cache", False)
    for name, program in programs.items():
        compiled = {}
        for _ in range(3):
            for kind, implementation in kinds.items():
                many = jax.random.split(jax.random.key(0, impl=implementation), 16)
                began = time.process_time()
                call = jax.jit(jax.vmap(program)).lower(many).compile()
                taken = time.process_time() - began
                costs[kind][f"{name}_compile_s"] = min(taken, costs[kind].get(f"{name}_compile_s", 1e9))
                compiled[kind] = (call, many)
                jax.clear_caches()
        for _ in range(20):
            for kind, (call, many) in compiled.items():
                began = time.process_time()
                for _ in range(10):
                    jax.block_until_ready(call(many))
                taken = (time.process_time() - began) * 100
                costs[kind][f"{name}_ms"] = min(taken, costs[kind].get(f"{name}_ms", 1e9))
    return {kind: {k: round(v, 3) for k, v in cost.items()} for kind, cost in costs.items()}


def append(row: dict[str, object]) -> None:
    """One line of the history."""
    common = {
        "date": datetime.date.today().isoformat(),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    with open(HISTORY, "a") as file:
        file.write(json.dumps(common | row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tool", choices=("practrand", "dieharder"), default="practrand")
    parser.add_argument("--program", help="the battery's program, where it is not on the path")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each stream, for practrand")
    parser.add_argument("--streams", nargs="*", choices=sorted(STREAMS), default=list(STREAMS))
    parser.add_argument("--speed", action="store_true", help="compare speeds and test nothing")
    arguments = parser.parse_args()
    if arguments.speed:
        device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
        for kind, cost in speed().items():
            append({"generator": kind, "device": device, "speed": cost})
            print(f"{kind:12}{cost}")
        return
    tool = arguments.tool
    program = arguments.program or {"practrand": "RNG_test", "dieharder": "dieharder"}[tool]
    for name in arguments.streams:
        began, before = time.perf_counter(), os.times()
        if tool == "practrand":
            command = practrand(program, arguments.gigabytes)
            text, taken, _ = pipe(STREAMS[name], command, 0)
            tests = [int(n) for n in re.findall(r"no anomalies in (\d+)|and (\d+) test", text)[-1] if n]
        else:
            text, taken, piece = "", 0, 0
            for test in TESTS:
                answer, more, piece = pipe(STREAMS[name], dieharder(program, 0, test), piece)
                text, taken = text + answer, taken + more
            tests = [len(re.findall(r"PASSED|WEAK|FAILED", text))]
        after, lines = os.times(), unusual(tool, text)
        row = {
            "generator": "hash",
            "stream": name,
            "tool": tool,
            "version": version(tool, program),
            "gigabytes": round(taken / 2**30, 2),
            "tests": sum(tests),
            "verdict": verdict(lines),
            "not_normal": lines,
            "cpu_s": round(sum(after[:4]) - sum(before[:4]), 1),
        }
        append(row)
        seconds = time.perf_counter() - began
        print(f"{name:22}{row['gigabytes']:6} GB  {row['verdict']}  {seconds:.0f} s", flush=True)
        for line in lines:
            print("    ", line)


if __name__ == "__main__":
    main()
