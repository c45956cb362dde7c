"""Throughput on MPE spread against JaxMARL's published scripts, both sides in one run.

    python benchmarks/throughput.py --jaxmarl DIR --jaxmarl-python PYTHON
    python benchmarks/throughput.py --jaxmarl DIR --jaxmarl-python PYTHON --curves

``DIR`` is a checkout of FLAIROx/JaxMARL and ``PYTHON`` an interpreter that has ``jaxmarl``; without
them only our side runs. Every measurement is a process of its own with cold caches; the sides take
turns, and medians over ``--repeats`` are compared. Seconds are CPU-seconds of the process, user and
system, all threads; on an accelerator they are wall-clock. The table, and which bounds were met, are
printed, and a line is appended to ``benchmarks/results/throughput.jsonl``.

Both sides use the settings that JaxMARL publishes for MPE: equal numbers of environments, steps,
epochs, minibatches and gradient steps, networks of equal widths, 25 steps an episode on our side and
26 on theirs. What differs all the same:

* all: our programs also hold an evaluation of one episode, which ``x alone``, of compiling, leaves out;
* PPO: their minibatches are drawn over single steps (MAPPO: agents), ours over environments, as many
  samples in each; we normalise values and clip the gradients of policy and critic apart;
* MAPPO: their second hidden layer comes behind the GRU, ours before it; their critic judges the 54
  numbers of all observations once for each agent, ours the 18 of the state once;
* VDN, QMIX: Adam for RAdam; a target that follows in every gradient step for one copied every 200;
  18 numbers of state for 54. Their buffer admits samples as soon as it holds one batch, as ours does
  (published: after 256 episodes and 10,000 steps), so that both sides learn equally often.

With ``--curves`` both learn, and the returns of their policies are drawn in one scale. Policies draw
actions, as they do while learning: the most likely ones of a policy that has hardly begun to learn
carry agents far away.
"""

import argparse
import ast
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import peer_jaxmarl

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GAME = "mpe/spread"
PPO = {
    "envs": 16,
    "steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "gamma": 0.99,
    "lam": 0.95,
    "clip": 0.2,
    "entropy_coef": 0.01,
    "max_grad_norm": 0.5,
    "sharing": "full",
    "layer_norm": False,
}
VALUE = {
    "envs": 8,
    "batch": 32,
    "capacity": 5000,
    "lr": 5e-3,
    "gamma": 0.9,
    "epsilon_end": 0.05,
    "epsilon_fraction": 0.1,
    "target_update": 0.005,  # theirs copies all of it every 200 updates
    "max_grad_norm": 25.0,
    "hidden": (64,),
    "memory": "gru",
    "layer_norm": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ippo": {**PPO, "lr": 2.5e-4, "hidden": (64, 64), "activation": "tanh"},
    "mappo": {**PPO, "lr": 2e-3, "hidden": (128, 128), "memory": "gru"},
    "vdn": VALUE,
    "qmix": {**VALUE, "embed": 32, "hyper": 128},
}
SMALL = 0.05
"""What rewards are multiplied by for JaxMARL's second curve."""
STEPS = {"ippo": 2048, "mappo": 2048, "vdn": 200, "qmix": 200}
"""Environment steps of an iteration: 16 x 128, or 8 episodes of 25."""
UPDATES = {
    "ippo": {1: 20, 4: 20, 16: 20, 64: 5},
    "mappo": {1: 4, 4: 2, 16: 1, 64: 1},
    "vdn": {1: 256, 4: 256, 16: 64, 64: 16},
    "qmix": {1: 256, 4: 256, 16: 64, 64: 16},
}
"""Iterations by number of seeds; the value methods take one gradient step in each."""
PLAYED = 1000
"""Steps of random play in each of 16 environments per seed."""
PRNGS = ("threefry", "hash")


# --- our side, in a process of its own --------------------------------------------------------------


def train(method: str, seeds: int, updates: int, prng: str, fields: dict[str, Any]) -> dict[str, Any]:
    from jaxmarl_tad import run

    seconds = peer_jaxmarl.clock()
    import_s = seconds() if seconds is time.process_time else seconds() - peer_jaxmarl.BEGAN
    time.process_time = seconds  # the library times itself with it
    done: list[Any] = []

    def again(number: int) -> None:
        made = run(
            method,
            GAME,
            seeds=list(range(number * seeds, (number + 1) * seeds)),
            total_steps=updates * STEPS[method],
            evaluations=1,
            episodes=1,
            prng=prng,
            progress=False,
            **SETTINGS[method] | fields,
        )
        done.append(made)

    peer_jaxmarl.timed(seconds, again)
    first = done[0].timing
    return {
        "alone_s": alone(method, seeds, updates, prng, fields),
        "import_s": import_s,
        "trace_s": first["trace_s"],
        "compile_s": first["compile_s"],
        "run_s": [made.timing["run_s"] for made in done],
        "steps": seeds * int(done[0].steps[-1]),
        "peak_MiB": peer_jaxmarl.peak_mib(),
        **peer_jaxmarl.about("flax", "optax"),
    }


def alone(method: str, seeds: int, updates: int, prng: str, fields: dict[str, Any]) -> float:
    """Seconds that compiling takes of what the other side compiles: a run that is not evaluated."""
    import jax

    import jaxmarl_tad as jt
    from jaxmarl_tad import programs
    from jaxmarl_tad.prng import implementation

    settings = SETTINGS[method] | fields | {"total_steps": updates * STEPS[method]}
    job = jt.prepare(method, GAME, seeds=seeds, prng=prng, **settings)

    def whole_run(member: Any) -> Any:
        learner = jt.algorithm(method).make(member.config, member.source)
        key = jax.random.key(member.seed, impl=implementation(prng))
        return jt.train(learner, lambda *_: {}, key, iterations=updates, evaluations=1)

    options = programs.compiler_options()
    _, cost = peer_jaxmarl.compiled(jax.vmap(whole_run), job.stacked, compiler_options=options)
    return cost["compile_s"]


def play(batch: int, length: int, prng: str) -> dict[str, Any]:
    """Random play in ``batch`` environments, with resets."""
    import jax
    import jax.numpy as jnp

    from jaxmarl_tad import make, programs
    from jaxmarl_tad.prng import implementation
    from jaxmarl_tad.rollout import begin, rollout
    from jaxmarl_tad.types import Policy

    env = make(GAME)
    spec = env.spec

    def act(key: Any, memory: Any, observation: Any) -> Any:
        uniform = jax.random.uniform(key, (spec.n_agents,))
        return (uniform * spec.n_actions).astype(jnp.int32), memory, {}

    policy = Policy(start=lambda: (), act=act, execution="decentralised")

    def function(key: Any) -> Any:
        actors = begin(env, policy, jax.random.fold_in(key, 0), batch)
        _, seen = rollout(env, policy, jax.random.fold_in(key, 1), actors, length)
        return seen.reward.sum(0)

    key = lambda number: jax.random.key(number, impl=implementation(prng))  # noqa: E731
    options = programs.compiler_options()
    call, cost = peer_jaxmarl.compiled(function, key(0), compiler_options=options)
    runs = peer_jaxmarl.timed(peer_jaxmarl.clock(), lambda i: jax.block_until_ready(call(key(i))))
    about = peer_jaxmarl.about()
    return {
        **cost,
        "run_s": runs,
        "steps": batch * length,
        "peak_MiB": peer_jaxmarl.peak_mib(),
        **about,
    }


def scale(shard: str, fields: dict[str, Any]) -> dict[str, Any]:
    """IPPO with 16 seeds on forced host devices, or with one whose environments are spread."""
    import jax

    from jaxmarl_tad import run

    seeds, updates = (16, 4) if shard == "members" else (1, 16)
    settings = SETTINGS["ippo"] | fields | {"total_steps": updates * STEPS["ippo"]}
    asked: dict[str, Any] = {"seeds": seeds, "evaluations": 1, "episodes": 1, "shard": shard}
    cold, warm = (run("ippo", GAME, progress=False, **asked, **settings).timing for _ in range(2))
    return {
        "devices": len(jax.devices()),
        "shard": shard,
        "compile_s": cold["compile_s"],
        "run_s": warm["run_s"],
        "wall_s": warm["wall_s"],
        "steps": seeds * updates * STEPS["ippo"],
    }


def checkpoint(seeds: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Saving and loading IPPO's state; the second time, so that orbax has been imported."""
    from jaxmarl_tad import load, run

    settings = SETTINGS["ippo"] | fields | {"total_steps": STEPS["ippo"]}
    trained = run("ippo", GAME, seeds=seeds, evaluations=1, episodes=1, progress=False, **settings)
    result: dict[str, Any] = {"members": seeds}
    with tempfile.TemporaryDirectory() as name:
        for label in ("first_", ""):
            folder = pathlib.Path(name, f"run{label}")
            for verb, act in (("save", trained.save), ("load", load)):
                cpu, wall = time.process_time(), time.perf_counter()
                act(folder)
                result[f"{label}{verb}_s"] = time.process_time() - cpu
                result[f"{label}{verb}_wall_s"] = time.perf_counter() - wall
            files = [file for file in folder.rglob("*") if file.is_file()]
        result["MiB"] = sum(file.stat().st_size for file in files) / 2**20
    return result


class _Final(NamedTuple):
    """An environment whose time limit is the end of all, as it is on the other side."""

    env: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        state, seen = self.env.step(key, state, action)
        over = seen.terminated | seen.truncated
        return state, seen._replace(terminated=over, truncated=over & False)


def curves(
    seeds: int, updates: int, evaluations: int, episodes: int, prng: str, fields: dict[str, Any]
) -> dict[str, Any]:
    """Returns of IPPO as it learns, of sampled actions in episodes of 25 steps, summed over agents."""
    import jax

    import jaxmarl_tad as jt
    from jaxmarl_tad.prng import implementation

    settings = SETTINGS["ippo"] | fields | {"total_steps": updates * STEPS["ippo"]}
    job = jt.prepare("ippo", GAME, seeds=seeds, prng=prng, **settings)

    def whole_run(member: Any) -> Any:
        learner = jt.algorithm("ippo").make(member.config, _Final(member.source))
        sampling = learner._replace(policy=lambda state, greedy: learner.policy(state, greedy=False))
        evaluate = lambda policy, key: jt.score(member.env, policy, key, episodes)  # noqa: E731
        key = jax.random.key(member.seed, impl=implementation(prng))
        return jt.train(sampling, evaluate, key, iterations=updates, evaluations=evaluations)[1]

    returns = jt.sweep(whole_run, job.stacked)["return"]
    each = updates * STEPS["ippo"] // evaluations
    steps = [each * (i + 1) for i in range(evaluations)]
    return {"steps": steps, "returns": returns.tolist()}


# --- both sides -------------------------------------------------------------------------------------


class Sides:
    """Starts measurements of either side in processes of their own."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.python, self.checkout = given.jaxmarl_python, given.jaxmarl
        self.fields = dict(_field(text) for text in given.set)
        self.limit, self.jobs = given.limit, 0

    def ours(self, devices: int = 1, **asked: Any) -> dict[str, Any] | None:
        if asked["task"] != "play":
            asked["fields"] = self.fields
        flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
        return self._start(sys.executable, __file__, asked, {"JAXMARL_TAD_CACHE": "0"}, flags)

    def theirs(self, **asked: Any) -> dict[str, Any] | None:
        if self.python is None:
            return None
        if asked["task"] != "play":
            asked["checkout"] = str(self.checkout.resolve())
        # Without it jax's CPU runtime can hang in the batched QR decompositions of their initialisers.
        flags = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
        return self._start(str(self.python), peer_jaxmarl.__file__, asked, {}, flags)

    def _start(
        self, python: str, file: str, asked: dict[str, Any], env: dict[str, str], flags: str
    ) -> dict[str, Any] | None:
        given = os.environ.get("XLA_FLAGS", "")
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [python, file, json.dumps(asked)],
                env=os.environ | env | {"XLA_FLAGS": f"{given} {flags}".strip()},
                capture_output=True,
                text=True,
                timeout=self.limit,
            )
        except subprocess.TimeoutExpired:
            print(f"gave up after {self.limit:.0f} s: {asked}", file=sys.stderr)
            return None
        side = "ours" if file == __file__ else "theirs"
        took = f"{time.perf_counter() - began:.0f} s"
        if done.returncode:
            print(f"{side} failed: {asked}\n{done.stderr[-2000:]}", file=sys.stderr)
            return None
        print(f"{side} {took}: {asked}", file=sys.stderr, flush=True)
        return json.loads(done.stdout.splitlines()[-1])


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def measured(sides: Sides, repeats: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Theirs and ours by turns: ``{"theirs": [...], "threefry": [...], "hash": [...]}``."""
    results: dict[str, Any] = {"theirs": [], **{prng: [] for prng in PRNGS}}
    for _ in range(repeats):
        results["theirs"].append(sides.theirs(**asked))
        for prng in PRNGS:
            results[prng].append(sides.ours(**asked, prng=prng))
    return {side: [one for one in many if one is not None] for side, many in results.items()}


def median(many: list[dict[str, Any]], name: str) -> float:
    """Median over processes; NaN if none came through. ``speed``: steps per second, warm runs."""
    if not many:
        return float("nan")
    if name == "speed":
        # The first run of a process also fetches its memory from the system.
        values = [one["steps"] / statistics.median(one["run_s"][1:] or one["run_s"]) for one in many]
    else:
        values = [one[name] for one in many]
    return statistics.median(values)


def rows(case: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per side, with ratios to theirs."""
    made = []
    for side, many in results.items():
        if not many:
            continue
        row: dict[str, Any] = {"case": case, "side": side}
        for name in ("import_s", "trace_s", "compile_s"):
            if name in many[0]:
                row[name] = round(median(many, name), 2)
        row["steps/s"] = round(median(many, "speed"))
        row["peak_MiB"] = round(median(many, "peak_MiB"))
        if results["theirs"] and side != "theirs":
            row["x import"] = _ratio(results, side, "import_s")
            row["x compile"] = _ratio(results, side, "compile_s")
            if "alone_s" in many[0]:
                row["x alone"] = round(
                    median(many, "alone_s") / median(results["theirs"], "compile_s"), 3
                )
            row["x speed"] = _ratio(results, side, "speed")
        made.append(row)
    return made


def _ratio(results: dict[str, Any], side: str, name: str) -> float | None:
    theirs = results["theirs"]
    if name not in theirs[0] and name != "speed":
        return None
    return round(median(results[side], name) / median(theirs, name), 3)


def bounds(method: str, seeds: int) -> list[tuple[str, str, str, float]]:
    """What a case must reach, as (side, quantity, at most or at least, bound)."""
    if method == "play":
        return [("threefry", "x speed", ">=", 3.0)]
    compiling = [("hash", "x compile", "<=", 1 / 3)]
    speeding = []
    if method == "ippo":
        compiling = [("threefry", "x compile", "<=", 2 / 5), ("hash", "x compile", "<=", 1 / 4)]
        speeding = [("threefry", "x speed", ">=", 1.25)] if seeds in (4, 16) else []
    if method == "qmix" and seeds <= 4:
        speeding = [("threefry", "x speed", ">=", 1.05)]
    return [("threefry", "x import", "<=", 1 / 5), *compiling, *speeding]


def judged(case: str, method: str, seeds: int, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bound of a case with what was reached."""
    found = {row["side"]: row for row in made}
    verdicts = []
    for side, name, way, bound in bounds(method, seeds):
        value = found.get(side, {}).get(name)
        if value is not None:
            met = value <= bound if way == "<=" else value >= bound
            words = f"{name} {way} {bound:.3g}"
            verdicts.append({"case": case, "side": side, "bound": words, "reached": value, "met": met})
    return verdicts


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"


def record(kind: str, sides: Sides, **content: Any) -> None:
    """Append a line to the history."""
    line = {
        "benchmark": kind,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{_processor()} ({platform.machine()}, {os.cpu_count()} cores)",
        "load": list(os.getloadavg()),
        "fields": sides.fields,
        **content,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / "throughput.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown")


def compare(sides: Sides, given: argparse.Namespace) -> None:
    """All tables of a run."""
    from jaxmarl_tad import report

    results, made, verdicts = {}, [], []
    for method in given.methods:
        for seeds in given.seeds:
            if method == "play":
                asked = {"task": "play", "batch": 16 * seeds, "length": PLAYED}
            else:
                updates = given.updates or UPDATES[method].get(seeds, 1)
                asked = {"task": "train", "method": method, "seeds": seeds, "updates": updates}
            case = f"{method} {seeds}"
            results[case] = measured(sides, given.repeats, asked)
            own = rows(case, results[case])
            print(report.table(own), file=sys.stderr, flush=True)
            made += own
            verdicts += judged(case, method, seeds, own)
    if made:
        print(report.table(made))
    if verdicts:
        print()
        print(report.table(verdicts))
    scaling, kept = [], None
    if "scale" in given.parts:
        spread = [(shard, devices) for shard in ("members", "envs") for devices in (1, 2, 4)]
        every = [sides.ours(task="scale", devices=devices, shard=shard) for shard, devices in spread]
        scaling = [one for one in every if one is not None]
        print()
        print(report.table(scaling))
    if "checkpoint" in given.parts:
        kept = sides.ours(task="checkpoint", seeds=64)
        if kept is not None:
            print()
            print(report.table([kept]))
    content = {"results": results, "rows": made, "bounds": verdicts}
    record("throughput", sides, **content, scaling=scaling, checkpoint=kept)


def compare_curves(sides: Sides, given: argparse.Namespace) -> None:
    """Both sides' learning curves, and whether their 95 % intervals overlap at the end.

    JaxMARL's script learns twice, from rewards as they are and from small ones. Its values may move by
    0.2 in an iteration, in units of return: returns of tens are then out of their reach for hundreds of
    iterations, and small ones are not. That is not what sets the sides apart: from small ones theirs
    end below ours too. Ours are normalised.
    """
    import numpy as np

    from jaxmarl_tad import report
    from jaxmarl_tad import statistics as estimates

    updates = -(-given.steps // (STEPS["ippo"] * given.points)) * given.points
    asked = {"task": "curves", "seeds": 8, "updates": updates}
    asked |= {"evaluations": given.points, "episodes": 64}
    found = {"JaxMARL": sides.theirs(**asked)}
    found[f"JaxMARL, rewards times {SMALL}"] = sides.theirs(**asked, reward_scale=SMALL)
    found |= {f"ours, {prng}": sides.ours(**asked, prng=prng) for prng in PRNGS}
    panel = {name: (one["steps"], one["returns"]) for name, one in found.items() if one is not None}
    path = RESULTS / "throughput_ippo.png"
    label = "team return of 25 steps"
    report.learning_curves({"IPPO on MPE spread": panel}, path, label=label)
    lines = []
    for name, (_, returns) in panel.items():
        middle, low, high = (curve[-1] for curve in estimates.iqm_curve(np.asarray(returns)))
        lines.append({"side": name, "iqm": middle, "low": low, "high": high})
    print(report.table(lines))
    for line in lines:
        others = [one for one in lines if one is not line]
        meets = [one for one in others if one["low"] <= line["high"] and line["low"] <= one["high"]]
        line["overlaps"] = [one["side"] for one in meets]
        print(f"{line['side']}: overlaps with {', '.join(line['overlaps']) or 'none'}")
    print(f"drawn in {path}")
    record("throughput_curves", sides, final=lines, curves=found)


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        asked = json.loads(sys.argv[1])
        tasks = {"train": train, "play": play, "scale": scale}
        tasks |= {"checkpoint": checkpoint, "curves": curves}
        print(json.dumps(tasks[asked.pop("task")](**asked)))
        return
    parser = argparse.ArgumentParser(description="Throughput on MPE spread, against JaxMARL's scripts.")
    parser.add_argument(
        "--jaxmarl", type=pathlib.Path, metavar="DIR", help="checkout of FLAIROx/JaxMARL"
    )
    parser.add_argument("--jaxmarl-python", type=pathlib.Path, metavar="PYTHON", help="has jaxmarl")
    parser.add_argument(
        "--methods", nargs="*", default=[*SETTINGS, "play"], choices=[*SETTINGS, "play"]
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--updates", type=int, help="iterations, in place of those by number of seeds")
    parser.add_argument("--repeats", type=int, default=1, help="processes for each measurement")
    parser.add_argument(
        "--parts", nargs="*", default=["scale", "checkpoint"], help="what else is timed"
    )
    parser.add_argument(
        "--limit", type=float, default=1800.0, help="seconds until a process is given up"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of our configs")
    parser.add_argument("--curves", action="store_true", help="learn instead, and compare returns")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each seed, with --curves")
    parser.add_argument("--points", type=int, default=20, help="evaluations, with --curves")
    given = parser.parse_args()
    if (given.jaxmarl is None) != (given.jaxmarl_python is None):
        parser.error("--jaxmarl and --jaxmarl-python go together.")
    (compare_curves if given.curves else compare)(Sides(given), given)


if __name__ == "__main__":
    main()
