"""What methods make of recorded experience: its quality, their settings, and how agents agreed in it.

    python experiments/offline.py                                   # all parts
    python experiments/offline.py --parts alpha,correlation,distilled
    TASKS=hallway METHODS=bc,omiga SEEDS=32 python experiments/offline.py --parts methods
    python experiments/offline.py --suite smax                      # on an accelerator
    python experiments/offline.py --suite smax --steps 3e4 --episodes 30 --updates 100    # a try

A suite asks for the part ``methods`` on larger tasks: data of 1,000 episodes, recorded from MAPPO
trained there for 10 million steps, and 50,000 gradient steps. TASKS names some of them, or any other.

Every dataset is recorded here: ``random`` play; an ``expert``, the greedy policy at the end of a run
with one action in twenty at random; a ``medium`` one; and ``mixed``, half random and half expert. In
tasks of one step medium is the expert with every second action at random; in longer ones it is what
the learner's greedy policies did until they first were at their best; agents never part there. (With
a little noise they sometimes do, and OMIGA's additive fit of what that costs lifts one agent's value of
going on and lowers the other's: then it learns to part.)
The spread is played by a controller that flies each agent to its own landmark, with more or less noise.

Parts, a table each, in which ``expected`` says what should be and ``holds`` whether it is:

``methods``      methods x datasets. On the expert's nobody may lose more than 5 % against the data,
                 and on the others methods that learn values not fall below the data. On the hallway's
                 medium data OMIGA is above BC by more than both intervals: the data mostly stop early
                 for 4, and 5 is further on. (Not so: ICQ there, which parts at low temperatures and
                 imitates at others, and on the spread's medium data BCQ-MA, and CQL-MA with settings
                 that the expert's ask for.) About 3 CPU-minutes for each game of tables, of which Oryx
                 is a third, and 2 for each method on the spread.
``alpha``        OMIGA on the one-step game with payoffs 0, 1, 1, -2 against its closed form, in data
                 sets with every joint action, without (1, 1), and with (0, 1) and (1, 0) alone. Without
                 (1, 1) it gets worse as α falls: it leaves what the data support.
``mixed``        random data with a growing share of the expert's in the hallway: OMIGA is not below BC,
                 nor OMIGA with global information below OMIGA without.
``correlation``  the same game, by agents that agree more and more (from independent ones to a coin that
                 both see, of total correlation log 2). The data get better; BC, which imitates each
                 agent by itself, stays at 0 with drawn actions; OMIGA is at its closed form; nobody is
                 below 0. (Greedy actions break ties by chance, and may so be better than drawn ones.)
``distilled``    TAD offline: the joint behaviour is cloned, one agent given what those before it did
                 (``bc_joint``), and distilled into agents that choose by themselves. The clone draws
                 what the data hold. Of its likeliest actions students keep all, ties being broken once
                 for all; of drawn ones they keep what each agent did, as BC does, and no more. And they
                 keep what was done, not what pays: 5 in climbing's data, a fifth of which hold 11.

Intervals are 95 % bootstrap intervals of the mean over seeds. Tables, CSV and figures go to
``runs/offline``.
"""

import argparse
import functools
import os
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from offline_games import (
    PANELS,
    SEEDS,
    correlated,
    draw,
    interval,
    judged,
    methods_of,
    response,
    together,
)
from settings import SETTINGS as SETTINGS_OF

import jaxmarl_tad as jt
from jaxmarl_tad import quality, report
from jaxmarl_tad.dataset import returns
from tad_envs.types import Observation

OUT = pathlib.Path(os.environ.get("OUT", "runs/offline"))
TASKS = os.environ.get("TASKS", "").split(",") if os.environ.get("TASKS") else None
USUAL = ("matrix/alberdice", "matrix/tad", "hallway", "mpe/spread")
SUITES = {
    "smax": ("smax/3m", "smax/2s3z", "smax/5m_vs_6m"),
}
"""Tasks that ask for an accelerator."""
PLAYERS: dict[str, dict[str, Any]] = {
    "smax": SETTINGS_OF["battle"]["mappo"],
}
"""Of MAPPO, which is recorded there."""
PARTS = ("methods", "alpha", "mixed", "correlation", "distilled")
EPISODES = {"hallway": 8_000, "mpe/spread": 200}
SPREAD = {"actions": "continuous"}
SHOWN = {"mpe/spread": ("medium", "expert")}
"""Datasets that are learned from, where not all are: networks take long."""
STEEP = {"conservative": 20.0, "lr": 3e-3, "critic_lr": 3e-3, "hidden": (64, 64), "total_steps": 8_000}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("hallway", "omiga"): {"alpha": 0.1},
    ("hallway", "comadice"): {"alpha": 0.1},
    # At 1.5 and below agents part on the hallway's medium data, in all seeds that were tried.
    ("hallway", "icq"): {"policy_temperature": 3.0},
    ("matrix/alberdice", "icq"): {"policy_temperature": 3.0},
    # At the temperature of rewards about 1, two steps in a hundred carry all the weight.
    ("mpe/spread", "icq"): {"policy_temperature": 10.0},
    ("mpe/spread", "oryx"): {"policy_temperature": 10.0},
    # One action among many of an episode says little of its return. At the published weight 2.5 of Q
    # it pulls the policy off the expert by more than the bar; and the penalty of CQL is what tells the
    # policy where the expert is, if it weighs enough, and Q is steep enough to follow within 0.1.
    ("mpe/spread", "iddpg_bc"): {"imitation": 4.0},
    ("mpe/spread", "cql_ma"): STEEP | {"samples": 5},
    **{("mpe/spread", name): STEEP for name in ("iddpg_cql", "maddpg_cql", "omar")},
}
"""Of learning from data, by task and method."""
IMITATORS = ("bc", "bc_joint")
"""They do not ask what pays."""
SHORT = {"mpe/spread": {"total_steps": 4_000, "seeds": 2}}
"""Elsewhere the methods' own."""

# --- data -----------------------------------------------------------------------------------------


def datasets(
    task: str, steps: float | None = None, episodes: int | None = None
) -> dict[str, jt.Dataset]:
    """The datasets of a task by quality, of so many episodes; played by who learned for ``steps``."""
    if task == "mpe/spread":
        return spread()
    count = episodes or EPISODES.get(task, 1_000)
    # The learner of longer tasks chooses in a random order, so that neither agent is the one that
    # more often fails to follow.
    spec = jt.make(task).spec
    finite = spec.one_hot
    ours: dict[str, Any] = {"order": "random" if spec.horizon > 1 else "fixed"}
    looks = 20
    if not finite:
        ours = PLAYERS.get(task.partition("/")[0], {}) | {"total_steps": int(steps or 400_000)}
        looks = 20 if ours["total_steps"] >= 400_000 else 2
    learner, folder = ("tad_ppo" if finite else "mappo"), OUT / f"behaviour-{task.replace('/', '-')}"
    run = jt.run(
        learner, task, seeds=SEEDS, evaluations=looks, out=folder, keep=looks, save_seconds=0, **ours
    )
    found = {"random": jt.record("random", task, episodes=count, label="random")}
    if spec.horizon == 1:
        found["medium"] = jt.record(run, episodes=count, explore=0.5, label="medium")
    else:
        kept = [jt.load(folder, checkpoint=i) for i in jt.checkpoints(folder)]
        means = [each.final["return"].mean() for each in kept]
        far = max(2, int(np.argmax(np.asarray(means) >= max(means) - 1e-6)) + 1)
        found["medium"] = jt.record(kept[:far], episodes=count, member="all", label="medium")
    found["expert"] = jt.record(run, episodes=count, explore=0.05, label="expert")
    found["mixed"] = half_and_half(found)
    return found


def half_and_half(found: dict[str, jt.Dataset]) -> jt.Dataset:
    """As many episodes as the parts have, half of them random."""
    parts, count = [found["random"], found["expert"]], found["random"].episodes
    return quality.mix(parts, shares=[1, 1], episodes=count, name="mixed", label="mixed")


def spread() -> dict[str, jt.Dataset]:
    """The spread with continuous actions, played by controllers."""
    game = jt.make("mpe/spread", **SPREAD)
    count = EPISODES["mpe/spread"]

    def act(key: Any, memory: Any, observation: Observation) -> Any:
        del key
        rows = observation.agents
        landmarks = rows[:, 4:10].reshape(3, 3, 2)[jnp.arange(3), jnp.arange(3)]
        return jnp.clip(2.0 * landmarks - 1.0 * rows[:, :2], -1, 1), memory, {}

    pilot = jt.Policy(start=lambda: (), act=act, execution="decentralised")
    found = {
        name: jt.record(pilot, game, episodes=count, explore=noise, label=name)
        for name, noise in (("medium", 1.5), ("expert", 0.1))
    }
    found["random"] = jt.record("random", game, episodes=count, label="random")
    found["mixed"] = half_and_half(found)
    return {name: found[name] for name in ("random", "medium", "expert", "mixed")}


# --- rows -----------------------------------------------------------------------------------------


def compare_methods(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method on every dataset of every task."""
    rows = []
    steps, updates = options.steps, options.updates
    if options.suite:
        steps, updates = steps or 10_000_000, updates or 50_000
    for task in TASKS or SUITES.get(options.suite, USUAL):
        found = datasets(task, steps, options.episodes)
        game = jt.make(task, **(SPREAD if task == "mpe/spread" else {}))
        means = {name: float(returns(data).mean()) for name, data in found.items()}
        scale = means["expert"] - means["random"]
        cloned: dict[str, dict[str, Any]] = {}
        for method in methods_of(found["random"]):
            begun = time.monotonic()
            for name in SHOWN.get(task, tuple(found)):
                data = found[name]
                fields: dict[str, Any] = {"seeds": SEEDS} | SHORT.get(task, {})
                fields |= SETTINGS.get((task, method), {})
                fields |= {"total_steps": updates} if updates else {}
                run = jt.run(method, data, eval_env=game, evaluations=1, episodes=64, **fields)
                ends = run.final["return"]
                row: dict[str, Any] = {"task": task, "data": name, "J data": means[name]}
                row |= {"method": method, **interval(ends), "values": ends}
                row["normalised"] = 100 * (row["return"] - means["random"]) / scale
                if method == "bc":
                    cloned[name] = row
                if name == "expert":
                    kept = row["return"] >= means[name] - 0.05 * abs(means[name])
                    rows.append(judged(row, "within 5 % of the data", bool(kept)))
                elif (task, name, method) == ("hallway", "medium", "omiga") and name in cloned:
                    both = sum(each["high"] - each["low"] for each in (row, cloned[name]))
                    above = row["return"] - cloned[name]["return"] > both
                    rows.append(judged(row, "above bc by more than both intervals", bool(above)))
                elif method in IMITATORS:
                    rows.append(judged(row, "none: it imitates", None))
                else:
                    kept = row["high"] >= means[name] - 0.02 * scale
                    rows.append(judged(row, "not below the data", bool(kept)))
            new = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            told = ", ".join(f"{row['data']} {row['return']:.2f} {row['holds']}".strip() for row in new)
            print(f"{task}: {method}, {time.monotonic() - begun:.0f} s: {told}", flush=True)
    return rows


def mixtures() -> list[dict[str, Any]]:
    """Shares of the expert's episodes in random data, with and without global information."""
    found, rows, ours = datasets("hallway"), [], SETTINGS["hallway", "omiga"]
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "bc": ("bc", {}),
        "omiga": ("omiga", ours),
        "omiga, local": ("omiga", ours | {"global_information": False}),
    }
    for share in (0.1, 0.25, 0.5, 0.75):
        parts = [found["random"], found["expert"]]
        data = quality.mix(parts, shares=[1 - share, share], episodes=found["random"].episodes)
        ends = {
            label: jt.run(name, data, eval_env="hallway", seeds=SEEDS, evaluations=1, **fields)
            for label, (name, fields) in forms.items()
        }
        values = {label: run.final["return"] for label, run in ends.items()}
        for label in forms:
            row: dict[str, Any] = {"expert": share, "J data": float(returns(data).mean())}
            row |= {"method": label, **interval(values[label])}
            against = {"bc": None, "omiga": "omiga, local", "omiga, local": "bc"}[label]
            if against is None:
                rows.append(judged(row, "none: it imitates", None))
            else:
                holds = row["high"] >= interval(values[against])["low"]
                rows.append(judged(row, f"not below {against}", holds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", help=f"of {', '.join(PARTS)}; all, or of a suite the first")
    parser.add_argument("--suite", choices=sorted(SUITES), help="larger tasks")
    parser.add_argument("--steps", type=float, help="environment steps of who is recorded there")
    parser.add_argument("--episodes", type=int, help="in each dataset of the part methods")
    parser.add_argument("--updates", type=int, help="gradient steps of methods in that part")
    options = parser.parse_args()
    parts = (options.parts or ("methods" if options.suite else ",".join(PARTS))).split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    for task in TASKS or SUITES.get(options.suite, USUAL):
        try:
            jt.make(task)
        except ValueError as missing:
            parser.error(str(missing))
    OUT.mkdir(parents=True, exist_ok=True)
    programs = {
        "methods": functools.partial(compare_methods, options),
        "alpha": response,
        "mixed": mixtures,
        "correlation": correlated,
        "distilled": together,
    }
    made = {}
    for part in parts:
        rows = made[part] = programs[part]()
        shown = [{k: v for k, v in row.items() if k != "values"} for row in rows]
        rounded = [
            {k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}
            for row in shown
        ]
        print(f"\n{part}\n{report.table(rounded)}", flush=True)
        report.table(shown, path=OUT / f"{part}.csv")
    if "methods" in made:
        bars = [
            {"game": f"{row['task']} {row['data']}", "method": row["method"], "values": row["values"]}
            for row in made["methods"]
            if row["task"] != "mpe/spread"
        ]
        if bars:
            report.outcome_bars(bars, OUT / "methods.png", "Greedy returns after learning from data")
    if set(PANELS) & set(made):
        draw(made, OUT / "offline.png")
    failed = sum(row["holds"] == "NO" for rows in made.values() for row in rows)
    print(f"\nresults: {OUT}; {failed} expectations do not hold")


if __name__ == "__main__":
    main()
