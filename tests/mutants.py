"""Break the code on purpose, one small change at a time: every break must fail a test.

Run by ``make mutants``. Each change is made in a temporary copy of the tree, where the tests
that should notice it are run. Arguments choose changes by a part of their name.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """One change of the source, and the tests of which at least one must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    """Arguments of pytest; no spaces within one."""


PPO = "jaxmarl_tad/algorithms/policy/ppo.py"
TAD = "jaxmarl_tad/algorithms/joint/tad_ppo.py"
Q = "jaxmarl_tad/algorithms/value/q_learning.py"
PROBES = "tests/conformance/test_probes.py"
COMPILED = "tests/conformance/test_compiled.py"

MUTANTS = [
    Mutant(
        "terminated steps bootstrap",
        "jaxmarl_tad/targets.py",
        "goes_on = ~_spread(terminated, next_value)",
        "goes_on = _spread(terminated | ~terminated, next_value)",
        f"{PROBES} -k value_is_found_and_ippo",
    ),
    Mutant(
        "truncated steps do not bootstrap",
        "jaxmarl_tad/targets.py",
        "goes_on = ~_spread(terminated, next_value)",
        "goes_on = ~_spread(terminated | truncated, next_value)",
        f"{PROBES} -k endless_and_iql_and_value",
    ),
    Mutant(
        "the trace crosses a truncation",
        "jaxmarl_tad/targets.py",
        "uncut = ~_spread(terminated | truncated, next_value)",
        "uncut = ~_spread(terminated, next_value)",
        "tests/unit -k target",
    ),
    Mutant(
        "rewards come one step late",
        "jaxmarl_tad/targets.py",
        "_spread(reward, next_value) +",
        "_spread(jnp.roll(reward, 1, axis=0), next_value) +",
        f"{PROBES} -k delayed_and_vdn",
    ),
    Mutant(
        "the surrogate is descended",
        PPO,
        "policy_loss = -masked_mean(objective, batch.alive)",
        "policy_loss = masked_mean(objective, batch.alive)",
        f"{PROBES} -k policy_is_found_and_mappo",
    ),
    Mutant(
        "the surrogate takes the larger part",
        "jaxmarl_tad/losses.py",
        "return jnp.minimum(ratio * advantage,",
        "return jnp.maximum(ratio * advantage,",
        "tests/unit -k surrogate",
    ),
    Mutant(
        "dead agents are learned from",
        PPO,
        "masked_mean(distributions.entropy(log_probs), batch.alive)",
        "masked_mean(distributions.entropy(log_probs), jnp.ones_like(batch.alive))",
        f"{COMPILED} -k without_influence_and_mappo-gru",
    ),
    Mutant(
        "dead agents have utility",
        Q,
        "jnp.where(alive, own, 0.0)",
        "own",
        f"{COMPILED} -k without_influence_and_vdn",
    ),
    Mutant(
        "illegal actions are drawn",
        "jaxmarl_tad/distributions.py",
        "masked = jnp.where(legal, logits, IMPOSSIBLE)\n"
        "    return jnp.where(legal, jax.nn.log_softmax(masked), IMPOSSIBLE)",
        "return jax.nn.log_softmax(logits)",
        f"{COMPILED} -k one_legal_action_and_ippo",
    ),
    Mutant(
        "illegal actions may be best",
        "jaxmarl_tad/distributions.py",
        "return jnp.argmax(jnp.where(legal, q, IMPOSSIBLE), axis=-1).astype(jnp.int32)",
        "return jnp.argmax(q, axis=-1).astype(jnp.int32)",
        f"{COMPILED} -k forbidden_and_iql",
    ),
    Mutant(
        "target and online networks are swapped",
        Q,
        "t + config.target_update * (p - t)",
        "p + config.target_update * (t - p)",
        "tests/test_value.py",
    ),
    Mutant(
        "the replay never moves on",
        "jaxmarl_tad/replay.py",
        "cursor=(replay.cursor + count) % capacity",
        "cursor=replay.cursor",
        "tests/test_value.py tests/unit -k replay",
    ),
    Mutant(
        "memory is reset one step late",
        "jaxmarl_tad/rollout.py",
        "return (over_devices(Actors(env_state, observation, actors.memory, ended)), used), transition",
        "return (Actors(env_state, observation, actors.memory, actors.first), used), transition",
        f"{COMPILED} -k rollout_equals_and_iql",
    ),
    Mutant(
        "learning does not reset memory",
        "jaxmarl_tad/networks/net.py",
        "jnp.where(first.reshape(first.shape + (1,) * (m.ndim - 1)), s, m)",
        "m",
        f"{COMPILED} -k ratio_is_one_and_ippo-gru",
    ),
    Mutant(
        "the final observation is the next episode's",
        "jaxmarl_tad/rollout.py",
        "return (over_devices(Actors(env_state, observation, actors.memory, ended)), used), transition",
        "transition = transition._replace(next=observation)\n        "
        "return (over_devices(Actors(env_state, observation, actors.memory, ended)), used), transition",
        "tests/unit -k rollout",
    ),
    Mutant(
        "the critic does not look ahead where the clock ran out",
        "jaxmarl_tad/targets.py",
        "apart = truncated | (jnp.arange(steps) == steps - 1)[:, None]",
        "apart = (truncated & False) | (jnp.arange(steps) == steps - 1)[:, None]",
        "tests/unit/test_targets.py",
    ),
    Mutant(
        "a damaged checkpoint is read as it is",
        "jaxmarl_tad/checkpoint.py",
        "if written.get(name) != found.get(name)",
        "if False",
        "tests/test_resume.py -k flipped",
    ),
    Mutant(
        "the prefix holds those who choose later",
        TAD,
        "before = position[..., None, :] < position[..., :, None]",
        "before = position[..., None, :] > position[..., :, None]",
        f"{COMPILED} -k ratio_is_one_and_tad_ppo-gru",
    ),
    Mutant(
        "the teacher acts at random",
        "jaxmarl_tad/distill.py",
        'greedy=config.teacher == "argmax"',
        "greedy=False",
        f"{COMPILED} -k students_learn",
    ),
    Mutant(
        "agents act on their neighbour's view",
        Q,
        "rows = jax.vmap(view)(observation.agents, agents)",
        "rows = jax.vmap(view)(jnp.roll(observation.agents, 1, axis=0), agents)",
        f"{PROBES} -k policy_is_found_and_both_and_vdn",
    ),
    Mutant(
        "the clock of ε stands still",
        Q,
        "fallen = jnp.minimum(progress /",
        "fallen = jnp.minimum(0.0 * progress /",
        "tests/test_value.py",
    ),
    Mutant(
        "keys forget the iteration",
        "jaxmarl_tad/train.py",
        "t = number * length + i",
        "t = number * 0 + i",
        f"{COMPILED} -k chunked_equals_and_iql",
    ),
    Mutant(
        "rewards after the end count",
        "jaxmarl_tad/evaluate.py",
        "seen.transition.reward * seen.valid",
        "seen.transition.reward",
        f"{COMPILED} -k without_influence_and_after_and_iql",
    ),
]  # fmt: skip


def misfits(mutants: list[Mutant]) -> list[str]:
    """What no longer fits the source: each old text must stand there exactly once."""
    found = [((ROOT / m.file).read_text(encoding="utf-8").count(m.old), m) for m in mutants]
    return [f"{m.name}: {m.file} holds it {count} times, not once" for count, m in found if count != 1]


def survives(mutant: Mutant, tree: Path) -> tuple[bool, str]:
    """Whether the tests pass in ``tree`` with the change made, and the last line they print."""
    file = tree / mutant.file
    source = file.read_text(encoding="utf-8")
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    words = [
        word.replace("_and_", " and ") if "_and_" in word else word for word in mutant.tests.split()
    ]
    caches = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "--no-header",
                "-p",
                "no:cacheprovider",
                *words,
            ],
            cwd=tree,
            env={**os.environ, **caches, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(source, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
    if done.returncode not in (0, 1):  # 1: tests failed; anything else says that none were run
        raise SystemExit(f"{mutant.name}: pytest could not run {mutant.tests!r}: {lines[-1]}")
    return done.returncode == 0, lines[-1]


def main(wanted: list[str]) -> int:
    """Print a table of what was killed and what survived; 1 if anything survived."""
    chosen = [m for m in MUTANTS if not wanted or any(part in m.name for part in wanted)]
    if misfits(chosen):
        print("\n".join(misfits(chosen)))
        return 1
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        parts = ["jaxmarl_tad", "envs", "tests"]
        for part in parts:
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        for mutant in chosen:
            began = time.perf_counter()
            alive, last = survives(mutant, tree)
            survivors += alive
            verdict = "SURVIVED" if alive else "killed"
            seconds = time.perf_counter() - began
            print(f"{verdict:<9} {mutant.name:<44} {seconds:5.0f} s  {last}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
