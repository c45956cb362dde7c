"""What methods make of recorded experience: its quality, their settings, and how agents agreed in it.

    python experiments/offline.py                                   # all parts
    python experiments/offline.py --parts alpha,correlation
    TASKS=hallway METHODS=bc,omiga SEEDS=32 python experiments/offline.py --parts methods
    TASKS=smax/3m python experiments/offline.py --parts methods     # any environment, by a longer run

Every dataset is recorded here: ``random`` play; an ``expert``, the greedy policy at the end of a run
with one action in twenty at random; a ``medium`` one; and ``mixed``, half random and half expert. In
tasks of one step medium is the expert with every second action at random; in longer ones it is what
the learner's greedy policies did until it was half way; agents never part there. (With a little noise
they sometimes do, and OMIGA's additive fit of what that costs lifts one agent's value of going on and
lowers the other's: then it learns to part.)
The spread is played by a controller that flies each agent to its own landmark, with more or less noise.

Parts, a table each, in which ``expected`` says what should be and ``holds`` whether it is:

``methods``      methods x datasets. On the expert's nobody may lose more than 5 % against the data,
                 and on the others methods that learn values not fall below the data. On the hallway's
                 medium data OMIGA is above BC: the data mostly stop early for 4, and 5 is further on.
                 On the spread learning is short: what asks a learned Q for better actions (CQL-MA,
                 IDDPG+BC, OMAR) falls short of the expert there.
``alpha``        OMIGA on the one-step game with payoffs 0, 1, 1, -2 against its closed form, in data
                 sets with every joint action, without (1, 1), and with (0, 1) and (1, 0) alone. Without
                 (1, 1) it gets worse as α falls: it leaves what the data support.
``mixed``        random data with a growing share of the expert's in the hallway: OMIGA is not below BC,
                 nor OMIGA with global information below OMIGA without.
``correlation``  the same game, by agents that agree more and more (from independent ones to a coin that
                 both see, of total correlation log 2). The data get better; BC, which imitates each
                 agent by itself, stays at 0 with drawn actions; OMIGA is at its closed form; nobody is
                 below 0. (Greedy actions break ties by chance, and may so be better than drawn ones.)

Intervals are 95 % bootstrap intervals of the mean over seeds. Tables, CSV and figures go to
``runs/offline``.
"""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import quality, report
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.dataset import Episode, from_episodes, returns
from jaxmarl_tad.statistics import stratified_bootstrap
from tad_envs.types import Observation

OUT = pathlib.Path(os.environ.get("OUT", "runs/offline"))
SEEDS = int(os.environ.get("SEEDS", "8"))
TASKS = os.environ.get("TASKS", "matrix/alberdice,matrix/tad,hallway,mpe/spread").split(",")
CHOSEN = os.environ.get("METHODS", "").split(",") if os.environ.get("METHODS") else None
PARTS = ("methods", "alpha", "mixed", "correlation")
EPISODES = {"hallway": 8_000, "mpe/spread": 200}
SPREAD = {"actions": "continuous"}
SHOWN = {"mpe/spread": ("medium", "expert")}
"""Datasets that are learned from, where not all are: networks take long."""
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("hallway", "omiga"): {"alpha": 0.1},
    # At the temperature of rewards about 1, two steps in a hundred carry all the weight.
    ("mpe/spread", "icq"): {"policy_temperature": 10.0},
    ("mpe/spread", "oryx"): {"policy_temperature": 10.0},
}
"""Of learning from data, by task and method."""
SHORT = {"mpe/spread": {"total_steps": 4_000, "seeds": 2}}
"""Elsewhere the methods' own."""

PAYOFF = np.array([[0.0, 1.0], [1.0, -2.0]])
ALPHAS = (0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 10.0)
COUNTS = {
    "all": [[3, 3], [3, 3]],
    "without 11": [[4, 4], [4, 0]],
    "apart": [[0, 6], [6, 0]],
}
"""How often each joint action is in the data sets of the part ``alpha``."""
AGREEMENT = (0.0, 0.5, 0.8, 0.95, 1.0)
FIELD: dict[str, dict[str, Any]] = {"omiga": {"alpha": 0.5}}
"""In the part ``correlation``."""


# --- data -----------------------------------------------------------------------------------------


def datasets(task: str) -> dict[str, jt.Dataset]:
    """The datasets of a task by quality."""
    if task == "mpe/spread":
        return spread()
    count = EPISODES.get(task, 1_000)
    # The learner of longer tasks chooses in a random order, so that neither agent is the one that
    # more often fails to follow.
    spec = jt.make(task).spec
    finite = spec.one_hot
    ours: dict[str, Any] = {"order": "random" if spec.horizon > 1 else "fixed"}
    if not finite:
        ours = {"total_steps": 400_000}
    learner, folder = ("tad_ppo" if finite else "mappo"), OUT / f"behaviour-{task.replace('/', '-')}"
    run = jt.run(
        learner, task, seeds=SEEDS, evaluations=20, out=folder, keep=20, save_seconds=0, **ours
    )
    found = {"random": jt.record("random", task, episodes=count, label="random")}
    if spec.horizon == 1:
        found["medium"] = jt.record(run, episodes=count, explore=0.5, label="medium")
    else:
        steps = [jt.load(folder, checkpoint=i) for i in jt.checkpoints(folder)]
        means = [each.final["return"].mean() for each in steps]
        far = max(2, int(np.argmax(np.asarray(means) >= max(means) - 1e-6)) + 1)
        found["medium"] = jt.record(steps[:far], episodes=count, member="all", label="medium")
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


def one_step(counts: Sequence[Sequence[float]] | np.ndarray) -> jt.Dataset:
    """The game with ``PAYOFF`` in which joint actions were taken so often."""
    env = jt.make("matrix/alberdice")
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    ends = np.array([True]), np.array([False])
    made = [
        Episode(shown, np.array([joint]), np.array([PAYOFF[joint]]), *ends)
        for joint, count in np.ndenumerate(np.asarray(counts, int))
        for _ in range(count)
    ]
    return from_episodes(made, env.spec, env="matrix/alberdice")


# --- closed forms -----------------------------------------------------------------------------------


def fixed_point(counts: Any, alpha: float) -> np.ndarray:
    """What OMIGA's π_i(1) converge to: the additive least-squares fit, and its soft-max.

    Where the fit is not unique, it is the one of least norm, to which gradient descent from 0 goes.
    """
    counts = np.asarray(counts, float)
    share = counts / counts.sum()
    joints = list(np.ndindex(2, 2))
    design = np.array([[1.0, a == 0, a == 1, b == 0, b == 1] for a, b in joints])
    root = np.sqrt([share[joint] for joint in joints])
    target = np.array([PAYOFF[joint] for joint in joints])
    fit = np.linalg.lstsq(root[:, None] * design, root * target, rcond=None)[0]
    gaps = np.array([fit[2] - fit[1], fit[4] - fit[3]])
    behaviour = np.array([share.sum(1)[1], share.sum(0)[1]])
    grown = behaviour * np.exp(gaps / alpha)
    return grown / (grown + 1 - behaviour)


def value(ones: np.ndarray) -> float:
    """The expected payoff of two agents that take action 1 with these chances."""
    first, second = (np.array([1 - p, p]) for p in ones)
    return float(first @ PAYOFF @ second)


def chances(run: jt.Trained, member: int) -> np.ndarray | None:
    """π_i(1) of one member, where its policy tells it."""
    _, seen = jt.make("matrix/alberdice").reset(jax.random.key(0))
    policy = run.policy(member, greedy=False)
    told = policy.act(jax.random.key(0), policy.start(), seen)[2]
    return np.exp(np.asarray(told["log_probs"]))[:, 1] if "log_probs" in told else None


# --- rows -----------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean over seeds and its interval."""
    low, high = stratified_bootstrap(values, np.mean)
    return {"return": float(values.mean()), "low": low, "high": high}


def judged(row: dict[str, Any], expected: str, holds: bool | None) -> dict[str, Any]:
    """The row with what was expected, and whether it is so."""
    return row | {"expected": expected, "holds": "" if holds is None else "yes" if holds else "NO"}


def methods_of(data: jt.Dataset) -> list[str]:
    """Methods that learn from such data."""
    kind = "discrete" if data.spec.discrete else "continuous"
    every = [m.name for m in METHODS.values() if m.family == "offline" and kind in m.actions]
    return [name for name in every if CHOSEN is None or name in CHOSEN]


def compare_methods() -> list[dict[str, Any]]:
    """Every method on every dataset of every task."""
    rows = []
    for task in TASKS:
        found = datasets(task)
        game = jt.make(task, **(SPREAD if task == "mpe/spread" else {}))
        means = {name: float(returns(data).mean()) for name, data in found.items()}
        scale = means["expert"] - means["random"]
        beaten: dict[str, float] = {}
        for method in methods_of(found["random"]):
            for name in SHOWN.get(task, tuple(found)):
                data = found[name]
                fields: dict[str, Any] = (
                    {"seeds": SEEDS} | SHORT.get(task, {}) | SETTINGS.get((task, method), {})
                )
                run = jt.run(method, data, eval_env=game, evaluations=1, episodes=64, **fields)
                ends = run.final["return"]
                row: dict[str, Any] = {"task": task, "data": name, "J data": means[name]}
                row |= {"method": method, **interval(ends), "values": ends}
                row["normalised"] = 100 * (row["return"] - means["random"]) / scale
                slack = 0.05 * abs(means[name]) if name == "expert" else 0.02 * scale
                kept = bool(row["high"] >= means[name] - slack)
                if method == "bc":
                    beaten[name] = row["high"]
                if (task, name, method) == ("hallway", "medium", "omiga") and name in beaten:
                    rows.append(judged(row, "above bc", row["low"] > beaten[name]))
                elif name == "expert":
                    rows.append(judged(row, "within 5 % of the data", kept))
                elif method == "bc":
                    rows.append(judged(row, "none: it imitates", None))
                else:
                    rows.append(judged(row, "not below the data", kept))
            print(f"{task}: {method}", flush=True)
    return rows


def response() -> list[dict[str, Any]]:
    """OMIGA against its closed form for every α, one program for all."""
    rows = []
    for name, counts in COUNTS.items():
        run = jt.run("omiga", one_step(counts), alpha=list(ALPHAS), evaluations=1)
        for i, alpha in enumerate(ALPHAS):
            found = chances(run, i)
            assert found is not None
            exact = fixed_point(counts, alpha)
            off = float(np.abs(found - exact).max())
            row = {"data": name, "alpha": alpha, "π(1)": float(found.mean()), "exact": exact.mean()}
            row |= {"J": value(found), "J exact": value(exact), "off": off}
            rows.append(judged(row, "off by at most 0.01", off <= 0.01))
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


def correlated() -> list[dict[str, Any]]:
    """All methods on data of agents that agree more and more."""
    rows = []
    for agreement in AGREEMENT:
        apart, same = 100 * (1 + agreement), 100 * (1 - agreement)
        counts = np.rint([[same, apart], [apart, same]])
        data = one_step(counts)
        about: dict[str, Any] = {"correlation": quality.total_correlation(data)}
        about["J data"] = float((counts / counts.sum() * PAYOFF).sum())
        for method in methods_of(data):
            fields = FIELD.get(method, {})
            run = jt.run(method, data, seeds=SEEDS, evaluations=1, batch=400, **fields)
            told = chances(run, 0)
            drawn = None if told is None else value(told)
            row = about | {"method": method, **interval(run.final["return"]), "drawn": drawn}
            exact = None
            if method == "bc":
                exact = 0.0
            elif method == "omiga":
                exact = value(fixed_point(counts, FIELD["omiga"]["alpha"]))
            if exact is not None and drawn is not None:
                row["exact"] = exact
                rows.append(judged(row, "drawn is exact", abs(drawn - exact) <= 0.03))
            else:
                rows.append(judged(row | {"exact": None}, "not below 0", row["high"] >= 0.0))
        print(f"correlation {about['correlation']:.3f}", flush=True)
    return rows


# --- figures --------------------------------------------------------------------------------------


def draw(made: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """The response to α, and returns over total correlation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    fine = np.geomspace(min(ALPHAS), max(ALPHAS), 100)
    for colour, (name, counts) in zip(report.METHODS, COUNTS.items(), strict=False):
        left.plot(fine, [value(fixed_point(counts, a)) for a in fine], color=colour, linewidth=1.2)
        rows = [row for row in made.get("alpha", []) if row["data"] == name]
        x, y = [row["alpha"] for row in rows], [row["J"] for row in rows]
        left.plot(x, y, "o", color=colour, markersize=4, label=name)
    left.set(xscale="log", xlabel="α", title="OMIGA: points, and closed form: lines")
    left.set_ylabel("expected return")
    rows = made.get("correlation", [])
    every = list(dict.fromkeys(row["method"] for row in rows))
    for i, method in enumerate(every):
        points = [row for row in rows if row["method"] == method]
        x = [row["correlation"] for row in points]
        y = [row["return"] if row["drawn"] is None else row["drawn"] for row in points]
        style = "o-" if points[0]["drawn"] is not None else "s--"
        colour = report.METHODS[i % len(report.METHODS)]
        right.plot(x, y, style, color=colour, markersize=3.5, linewidth=1.2, label=method)
    first = [row for row in rows if row["method"] == every[0]] if every else []
    x, y = [row["correlation"] for row in first], [row["J data"] for row in first]
    right.plot(x, y, color=report.INK, linewidth=1.4, linestyle=":", label="the data")
    right.set(xlabel="total correlation of the data (nats)")
    right.set_title("solid: drawn actions; dashed: greedy ones")
    for axes in (left, right):
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7.5)
        axes.grid(color=report.FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parts = parser.parse_args().parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    programs = {
        "methods": compare_methods,
        "alpha": response,
        "mixed": mixtures,
        "correlation": correlated,
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
    if {"alpha", "correlation"} & set(made):
        draw(made, OUT / "offline.png")
    failed = sum(row["holds"] == "NO" for rows in made.values() for row in rows)
    print(f"\nresults: {OUT}; {failed} expectations do not hold")


if __name__ == "__main__":
    main()
