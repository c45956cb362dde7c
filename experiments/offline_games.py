"""What methods make of recorded joint actions in games of one step, where the answers are known.

The parts ``alpha``, ``correlation`` and ``distilled`` of ``experiments/offline.py``.
"""

import itertools
import os
import pathlib
from typing import Any

import jax
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import quality, report
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.dataset import Episode, from_episodes
from jaxmarl_tad.statistics import stratified_bootstrap
from jaxmarl_tad.sweep import over_members

SEEDS = int(os.environ.get("SEEDS", "8"))
CHOSEN = os.environ.get("METHODS", "").split(",") if os.environ.get("METHODS") else None

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
"""In the parts ``correlation`` and ``distilled``."""
COMPARED = ("bc", "omiga", "bc_joint")
"""Beside what is distilled of the last."""
DRAWS = 4_096
"""Of joint actions, to tell what a policy's draws are worth."""


# --- data -----------------------------------------------------------------------------------------


def one_step(counts: Any, task: str = "matrix/alberdice") -> jt.Dataset:
    """A game of one step in which joint actions were taken so often."""
    env: Any = jt.make(task)
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    ends, payoff = (np.array([True]), np.array([False])), np.asarray(env.payoff)
    made = [
        Episode(shown, np.array([joint]), np.array([payoff[joint]]), *ends)
        for joint, count in np.ndenumerate(np.asarray(counts, int))
        for _ in range(count)
    ]
    return from_episodes(made, env.spec, env=task)


def agreeing(agreement: float) -> np.ndarray:
    """How often two agents took each joint action of two, which agree so much to do the opposite."""
    apart, same = 100 * (1 + agreement), 100 * (1 - agreement)
    return np.rint([[same, apart], [apart, same]])


def ordered() -> np.ndarray:
    """Every permutation of four actions once."""
    counts = np.zeros((4, 4, 4, 4))
    for joint in itertools.permutations(range(4)):
        counts[joint] = 1
    return counts


TOGETHER = {
    **{
        f"{agreement:.0%} apart": ("matrix/alberdice", agreeing(agreement))
        for agreement in AGREEMENT[::2]
    },
    "each its own": ("matrix/permutation", ordered()),
    "mostly 5": ("matrix/climbing", np.array([[20, 0, 0], [0, 10, 0], [0, 30, 40]])),
}
"""Games of one step, and how often each joint action is in the data of the part ``distilled``."""


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


def product(counts: np.ndarray) -> np.ndarray:
    """The law of agents that do by themselves as often what each of them did."""
    law, share = np.ones(()), counts / counts.sum()
    for i in range(counts.ndim):
        law = np.multiply.outer(law, share.sum(tuple(j for j in range(counts.ndim) if j != i)))
    return law


def likeliest(counts: np.ndarray) -> set[tuple[int, ...]]:
    """Joint actions of the first agent's most frequent action, the next one's given that, and so on."""
    if counts.ndim == 0:
        return {()}
    often = counts.reshape(len(counts), -1).sum(1)
    firsts = np.flatnonzero(often == often.max())
    return {(int(a), *rest) for a in firsts for rest in likeliest(counts[a])}


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


def drawn_value(run: jt.Trained, task: str) -> float:
    """The mean payoff of joint actions that the members of a run draw in a game of one step."""
    env: Any = jt.make(task)

    @jax.jit
    def draw(members: Any, states: Any) -> Any:
        def one(member: Any, state: Any) -> Any:
            made = run.plan.make(member.config, member.source)
            policy, (_, seen) = made.policy(state, greedy=False), env.reset(jax.random.key(0))
            keys = jax.random.split(jax.random.key(1), DRAWS)
            return jax.vmap(lambda key: policy.act(key, policy.start(), seen)[0])(keys)

        return over_members(one)(members, states)

    actions = np.asarray(draw(run.stacked, run.state))
    return float(np.asarray(env.payoff)[tuple(np.moveaxis(actions, -1, 0))].mean())


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
    every.sort(key=lambda name: name != "bc")  # others are compared with it
    return [name for name in every if CHOSEN is None or name in CHOSEN]


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


def correlated() -> list[dict[str, Any]]:
    """All methods on data of agents that agree more and more."""
    rows = []
    for agreement in AGREEMENT:
        counts = agreeing(agreement)
        data = one_step(counts)
        about: dict[str, Any] = {"correlation": quality.total_correlation(data)}
        about["J data"] = behaved = float((counts / counts.sum() * PAYOFF).sum())
        for method in methods_of(data):
            ours = FIELD["omiga"]["alpha"]
            exact = {"bc": 0.0, "bc_joint": behaved, "omiga": value(fixed_point(counts, ours))}
            fields: dict[str, Any] = {"batch": len(data.rows)} if method in exact else {}
            fields |= FIELD.get(method, {})
            run = jt.run(method, data, seeds=SEEDS, evaluations=1, **fields)
            drawn = None if chances(run, 0) is None else drawn_value(run, "matrix/alberdice")
            row = about | {"method": method, **interval(run.final["return"]), "drawn": drawn}
            if method in exact and drawn is not None:
                row["exact"] = exact[method]
                rows.append(judged(row, "drawn is exact", abs(drawn - exact[method]) <= 0.03))
            else:
                rows.append(judged(row | {"exact": None}, "not below 0", row["high"] >= 0.0))
        print(f"correlation {about['correlation']:.3f}", flush=True)
    return rows


def together() -> list[dict[str, Any]]:
    """The joint behaviour distilled, against imitation and others, where it is correlated."""
    rows = []
    for name, (task, counts) in TOGETHER.items():
        data, payoff = one_step(counts, task), np.asarray(jt.make(task).payoff)  # type: ignore[attr-defined]
        about: dict[str, Any] = {"data": name, "correlation": quality.total_correlation(data)}
        about["J data"] = behaved = float((counts / counts.sum() * payoff).sum())
        apart = float((product(counts) * payoff).sum())
        kept = {float(payoff[joint]) for joint in likeliest(counts)}
        # Ties are broken by chance, and break even where the payoff is the same.
        certain = kept.pop() if len(kept) == 1 else None
        runs = {
            method: jt.run(method, data, seeds=SEEDS, evaluations=1, batch=400, **FIELD.get(method, {}))
            for method in COMPARED
        }
        for taught in ("argmax", "sample"):
            runs[f"distilled, {taught}"] = jt.distill(
                runs["bc_joint"], teacher=taught, evaluations=1, total_steps=12_800
            )
        exact = {"bc": apart, "bc_joint": behaved, "distilled, sample": apart}
        for method, run in runs.items():
            ends = run.final["return"]
            row = about | {"policy": method, **interval(ends), "drawn": drawn_value(run, task)}
            if method == "distilled, argmax" and certain is not None:
                holds = bool((np.abs(ends - certain) < 1e-6).all())
                rows.append(judged(row | {"exact": certain}, "the likeliest joint action", holds))
            elif method in exact:
                close = abs(row["drawn"] - exact[method]) <= 0.03 * np.ptp(payoff)
                rows.append(judged(row | {"exact": exact[method]}, "drawn is exact", bool(close)))
            else:
                rows.append(judged(row | {"exact": None}, "none", None))
        print(f"distilled: {name}", flush=True)
    return rows


# --- figures --------------------------------------------------------------------------------------


def draw(made: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """The response to α, returns over total correlation, and over the expert's share of the data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [part for part in PANELS if part in made]
    figure = Figure(figsize=(4.5 * len(shown), 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, part in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        PANELS[part](axes, made[part])
        axes.set_ylabel("expected return")
        axes.title.set_fontsize(9)
        axes.xaxis.label.set_fontsize(8.5)
        axes.yaxis.label.set_fontsize(8.5)
        axes.tick_params(labelsize=7.5)
        axes.grid(color=report.FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def by_method(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Each method, its colour and its rows."""
    every = list(dict.fromkeys(row["method"] for row in rows))
    colours = (report.METHODS[i % len(report.METHODS)] for i in range(len(every)))
    return [
        (method, colour, [row for row in rows if row["method"] == method])
        for method, colour in zip(every, colours, strict=True)
    ]


def draw_response(axes: Any, rows: list[dict[str, Any]]) -> None:
    """What is found at each α, on the closed form."""
    fine = np.geomspace(min(ALPHAS), max(ALPHAS), 100)
    for colour, (name, counts) in zip(report.METHODS, COUNTS.items(), strict=False):
        axes.plot(fine, [value(fixed_point(counts, a)) for a in fine], color=colour, linewidth=1.2)
        found = [row for row in rows if row["data"] == name]
        x, y = [row["alpha"] for row in found], [row["J"] for row in found]
        axes.plot(x, y, "o", color=colour, markersize=4, label=name)
    axes.set(xscale="log", xlabel="α", title="OMIGA: points, and closed form: lines")


def draw_correlation(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Of policies that tell their chances what drawn actions return, and what greedy ones of others."""
    for i, (method, colour, points) in enumerate(by_method(rows)):
        x = [row["correlation"] for row in points]
        y = [row["return"] if row["drawn"] is None else row["drawn"] for row in points]
        style = "o-" if points[0]["drawn"] is not None else "s--"
        again = "none" if i >= len(report.METHODS) else "full"  # colours begin anew
        axes.plot(x, y, style, color=colour, fillstyle=again, markersize=4, lw=1.2, label=method)
    data = {row["correlation"]: row["J data"] for row in rows}
    axes.plot(*zip(*data.items(), strict=True), color=report.INK, linestyle=":", label="the data")
    axes.set(xlabel="total correlation of the data (nats)")
    axes.set_title("solid: drawn actions; dashed: greedy ones")


def draw_mixed(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Greedy returns and their intervals."""
    for method, colour, points in by_method(rows):
        x, y = ([row[name] for row in points] for name in ("expert", "return"))
        ends = [[row["return"] - row["low"] for row in points]]
        ends.append([row["high"] - row["return"] for row in points])
        axes.errorbar(x, y, ends, fmt="o-", color=colour, markersize=3.5, capsize=2, label=method)
    data = {row["expert"]: row["J data"] for row in rows}
    axes.plot(*zip(*data.items(), strict=True), color=report.INK, linestyle=":", label="the data")
    axes.set(xlabel="share of the expert's episodes", title="hallway, greedy actions")


PANELS = {"alpha": draw_response, "correlation": draw_correlation, "mixed": draw_mixed}
"""What draws the rows of a part."""
