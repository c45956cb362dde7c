"""What can be known of one-step games without learning, and what every method then finds in them.

    python experiments/oracle_table.py                             # every method
    METHODS=ippo,vdn,qtran SEEDS=64 python experiments/oracle_table.py

Four oracles are computed exactly from each payoff, for data in which all joint actions are equally
frequent:

* ``independent``: every agent takes the action whose payoff, averaged over the others, is highest;
* ``additive``: greedy play of the least-squares fit by a sum of utilities;
* ``monotone``: greedy play of the best fit that is monotone in some order of each agent's actions, with
  its sum of squared errors;
* ``gradient``: where the exact softmax policy gradient ends from logits drawn from N(0, σ²), for σ =
  0.01 and σ = 1, as shares.

Then every registered method for discrete actions learns all games in one program. Each row holds the
shares of the seeds by greedy return, and what is expected:

* IQL: ``independent``; VDN and PQN-VDN: ``additive`` (a tie may go either way);
* QMIX: at most ``monotone``, and less where gradient descent does not find the best fit;
* decentralised policy gradients (IPPO, MAPPO, IA2C, MAA2C, COMA, EPyMARL's PPO): ``gradient``; those
  that take initial logits are run from both widths;
* methods made to leave such traps (TAD-PPO, QTRAN, QPLEX, weighted QMIX, Pareto-AC): the optimum;
* MADDPG and FACMAC: no claim; deterministic gradients through a critic follow local slopes.

Table, CSV and figure go to ``runs/oracle_table``.
"""

import functools
import itertools
import os
import pathlib
from typing import Any

import jax
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report, statistics
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.config import leaf_fields

OUT = pathlib.Path(os.environ.get("OUT", "runs/oracle_table"))
SEEDS = int(os.environ.get("SEEDS", "16"))
WIDTHS = (0.01, 1.0)
INITS = 512
"""Starts of the exact policy gradient."""

GAMES = {
    **{name: {} for name in ("climbing", "qtran", "qplex1", "qplex3")},
    **{f"penalty/k={k}": {} for k in (0, -25, -50, -75, -100)},
    **{name: {} for name in ("pymarl2_a", "pymarl2_b", "pymarl2_c")},
    **{name: {"pad_to": 3} for name in ("note001", "qmix_2b", "xor", "identity")},
}
GRADIENT = ("ippo", "mappo", "ippo_epymarl", "mappo_epymarl", "ia2c", "maa2c", "coma")
OPTIMAL = ("tad_ppo", "qtran", "qtran_alt", "qplex", "ow_qmix", "cw_qmix", "pareto_ac")
EXPECTED = {
    "iql": "independent",
    "vdn": "additive",
    "pqn_vdn": "additive",
    "qmix": "monotone",
    **dict.fromkeys(GRADIENT, "gradient"),
    **dict.fromkeys(OPTIMAL, "optimum"),
}


def games() -> dict[str, jt.Environment]:
    """All games in one shape."""
    return {name: jt.make(f"matrix/{name}", **given) for name, given in GAMES.items()}


# --- oracles ----------------------------------------------------------------------------------------


def payoff_of(env: Any) -> np.ndarray:
    """The payoff of the legal joint actions, ``[A, A]`` in float64."""
    rows, columns = np.asarray(env.actions)
    return np.asarray(env.payoff, np.float64)[:rows, :columns]


def greedy(utilities: list[np.ndarray], payoff: np.ndarray) -> list[float]:
    """Payoffs of all joint actions in which every agent takes a best one of its own."""
    best = [np.flatnonzero(np.isclose(u, u.max(), atol=1e-6)) for u in utilities]
    return sorted(set(payoff[np.ix_(*best)].round(6).ravel().tolist()))


def independent(payoff: np.ndarray) -> list[float]:
    """Every agent maximises its mean payoff, which is what IQL's utilities converge to."""
    return greedy([payoff.mean(1), payoff.mean(0)], payoff)


def additive(payoff: np.ndarray) -> tuple[float, list[float]]:
    """Mean squared error and greedy payoffs of row mean + column mean - grand mean."""
    rows, columns = payoff.mean(1), payoff.mean(0)
    fit = rows[:, None] + columns[None] - payoff.mean()
    return float(np.mean((fit - payoff) ** 2)), greedy([rows, columns], payoff)


def monotone(payoff: np.ndarray) -> tuple[float, list[float]]:
    """Sum of squared errors and greedy payoffs of the best fit that is monotone in both agents."""
    fits = []
    for rows, columns in itertools.product(*(itertools.permutations(range(n)) for n in payoff.shape)):
        fit = increasing(payoff[np.ix_(rows, columns)])
        back = np.empty_like(fit)
        back[np.ix_(rows, columns)] = fit
        fits.append((float(((back - payoff) ** 2).sum()), back))
    least = min(error for error, _ in fits)
    ends: set[float] = set()
    for error, fit in fits:
        if error < least + 1e-6:
            ends |= set(payoff[np.isclose(fit, fit.max(), atol=1e-6)].round(6).tolist())
    return least, sorted(ends)


def increasing(table: np.ndarray) -> np.ndarray:
    """Nearest table that increases along rows and columns, by the max-min formula (Brunk 1955).

    The fit of a cell is the highest, over upper sets that hold it, of the lowest, over lower sets that
    hold it, of the mean over what both share.
    """
    uppers = _upper_sets(*table.shape)
    both = uppers[:, None] & ~uppers[None]  # an upper set and the complement of another, a lower set
    count = both.sum((2, 3))
    mean = np.where(count > 0, (both * table).sum((2, 3)) / np.maximum(count, 1), 0.0)
    fit = np.empty_like(table)
    for cell in np.ndindex(*table.shape):
        inside, below = uppers[:, *cell], ~uppers[:, *cell]
        fit[cell] = mean[np.ix_(inside, below)].min(1).max()
    return fit


@functools.cache
def _upper_sets(rows: int, columns: int) -> np.ndarray:
    """Sets that hold, with a cell, all cells after it in its row and in its column ``[sets, R, C]``."""
    starts = itertools.combinations_with_replacement(range(columns, -1, -1), rows)
    return np.stack([np.arange(columns) >= np.asarray(start)[:, None] for start in starts])


def gradient(payoff: np.ndarray, width: float, steps: int = 20_000) -> dict[float, float]:
    """Shares of starts by the payoff at which the exact policy gradient ends."""
    draws = np.random.default_rng(0).normal(size=(2, INITS, max(payoff.shape))) * width
    starts = draws[0, :, : payoff.shape[0]], draws[1, :, : payoff.shape[1]]
    one, two = _ascend(payoff, *starts, 4.0 / (payoff.max() - payoff.min()), steps)
    ends = payoff[np.argmax(one, 1), np.argmax(two, 1)].round(6)
    values, counts = np.unique(ends, return_counts=True)
    return dict(zip(values.tolist(), (counts / INITS).tolist(), strict=True))


@jax.jit
def _ascend(payoff: Any, one: Any, two: Any, rate: float, steps: int) -> tuple[Any, Any]:
    def step(_: Any, logits: tuple[Any, Any]) -> tuple[Any, Any]:
        p, q = (jax.nn.softmax(x) for x in logits)
        left, right = q @ payoff.T, p @ payoff
        value = (p * left).sum(1, keepdims=True)
        return logits[0] + rate * p * (left - value), logits[1] + rate * q * (right - value)

    return jax.lax.fori_loop(0, steps, step, (one, two))


# --- learning ---------------------------------------------------------------------------------------


def learned(name: str, envs: list[jt.Environment], width: float) -> np.ndarray:
    """Greedy returns, ``[games, seeds]``; a width other than the first sets the initial logits."""
    if width == WIDTHS[0]:
        final = jt.run(name, envs, seeds=SEEDS, episodes=1, evaluations=1).final
        return final["return"].reshape(len(envs), SEEDS)
    draws = np.random.default_rng(1).normal(size=(SEEDS, 2, 3)).astype(np.float32) * width
    own = [(env, {"initial_logits": draw}) for env in envs for draw in draws]
    final = jt.run(name, own, seeds=1, episodes=1, evaluations=1).final
    return final["return"].reshape(len(envs), SEEDS)


def shares(values: np.ndarray) -> str:
    """``11 .25, 7 .75``: returns and their shares, the highest first."""
    ends, counts = np.unique(np.round(values, 2), return_counts=True)
    return _written(dict(zip(ends.tolist(), (counts / len(values)).tolist(), strict=True)))


def _written(parts: dict[float, float]) -> str:
    kept = {value: share for value, share in sorted(parts.items(), reverse=True) if share >= 0.005}
    if len(kept) == 1:
        return f"{next(iter(kept)):g}"
    return ", ".join(f"{value:g} {share:.2f}".replace(" 0.", " .") for value, share in kept.items())


def either(values: list[float]) -> str:
    """``0 or 8``."""
    return " or ".join(f"{value:g}" for value in values)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    envs = games()
    facts: dict[str, dict] = {}
    for game, env in envs.items():
        payoff = payoff_of(env)
        mse, sums = additive(payoff)
        sse, ordered = monotone(payoff)
        facts[game] = {
            "optimum": {float(payoff.max())},
            "independent": set(independent(payoff)),
            "additive": set(sums),
            "monotone": set(ordered),
            "mse": mse,
            "sse": sse,
            "gradient": {width: gradient(payoff, width) for width in WIDTHS},
        }
    oracles = [
        {"game": game, "optimum": either(sorted(fact["optimum"]))}
        | {"independent": either(sorted(fact["independent"]))}
        | {"additive": either(sorted(fact["additive"])), "mse": round(fact["mse"], 2)}
        | {"monotone": either(sorted(fact["monotone"])), "sse": round(fact["sse"], 2)}
        | {f"gradient σ={width:g}": _written(fact["gradient"][width]) for width in WIDTHS}
        for game, fact in facts.items()
    ]
    print(report.table(oracles, path=OUT / "oracles.csv"), flush=True)

    known = [
        name
        for name in jt.algorithms()
        if "discrete" in METHODS[name].actions and METHODS[name].family != "offline"
    ]
    rows, outcomes = [], []
    for name in os.environ.get("METHODS", ",".join(known)).split(","):
        wide = "initial_logits" in leaf_fields(METHODS[name].config)
        for width in WIDTHS if wide else WIDTHS[:1]:
            values = learned(name, list(envs.values()), width)
            kind, label = EXPECTED.get(name, "none"), f"{name} σ={width:g}" if wide else name
            for game, ends in zip(envs, values, strict=True):
                fact, told = facts[game], "no claim"
                allowed: set[float] = set(np.round(ends, 3).tolist())
                if kind == "gradient":
                    told = _written(fact[kind][width])
                    allowed = {value for value, share in fact[kind][width].items() if share >= 0.005}
                elif kind != "none":
                    told, allowed = either(sorted(fact[kind])), fact[kind]
                hits = [any(abs(end - value) < 1e-2 for value in allowed) for end in ends]
                rows.append(
                    {
                        "game": game,
                        "method": label,
                        "expected from": kind,
                        "expected": told,
                        "found": shares(ends),
                        "as expected": None if kind == "none" else round(float(np.mean(hits)), 2),
                        "optimal": statistics.reached(ends, max(fact["optimum"])) / SEEDS,
                    }
                )
                outcomes.append({"game": game, "method": label, "values": ends})
            print(report.table(rows[-len(envs) :]), flush=True)
    report.table(rows, path=OUT / "table.csv")
    figure = report.outcome_bars(
        outcomes,
        OUT / "outcomes.png",
        f"Greedy return of {SEEDS} seeds",
        {game: max(fact["optimum"]) for game, fact in facts.items()},
    )
    print(f"\nresults: {OUT}\nfigure:  {figure}")


if __name__ == "__main__":
    main()
