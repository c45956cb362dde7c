"""EPyMARL's matrix games with its presets: on which entry of the payoff does every seed end?

    python experiments/benchmark_matrix.py                       # every registered method
    METHODS=ia2c,coma SEEDS=5 STEPS=250000 python experiments/benchmark_matrix.py
    GAMES=climbing,penalty/k=-25 python experiments/benchmark_matrix.py

A game is played 25 times in an episode and nothing is seen, so that a deterministic policy earns 25
times one entry: climbing pays 275 at best, and 175, 150 or 125 at 7, 6 and 5; penalty pays 250 or 50.
The published values (Papoudakis et al. 2021: the best of 41 evaluations, mean and deviation of 5 seeds,
20 M steps on-policy and 2 M off-policy) are means over such entries: for example 195 ± 67.82 is {275,
275, 175, 125, 125}. Hence a reproduction is a matter of entries and their shares, not of means.

Settings are EPyMARL's as far as they can be: 10 environments, one update (or 4 epochs) per 10 episodes,
n = 5, γ 0.99, its learning rates and entropy weights; 1 update per episode, 32 episodes from the last
5000, ε 1 → 0.05 off-policy. Different are: a feed-forward network of 128 (64) units without memory, as
in EPyMARL's ``_ns`` presets, for nothing is seen that could be remembered; rewards that are divided by
their deviation in random play rather than standardised, so that no mean is subtracted; target networks
that follow at Polyak's rate 0.01 where EPyMARL copies every 200 steps; a twentieth of the steps.

Expected, in the long run: 'expected' in the table, with the reason in ``EXPECTED``. Measured with 250 k
steps and 5 seeds: in penalty (k = −100) every seed of the published methods at 50, as published; 3 of 5
of ``pareto_ac`` at 250. In climbing ``pareto_ac`` at 275 in 5 of 5, but only 1 or 2 of 5 of the policy
gradients had left the first plateaus, 125 and 150, for 175 (3 of 5 of ``maa2c`` and 1 of 5 of ``coma``
after 1 M): this is far from the published number of steps. The value methods all stayed at 125.

Table, CSV of every seed and figure go to ``runs/benchmark_matrix``.
"""

import os
import pathlib
import sys
import time

import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report, statistics
from jaxmarl_tad.config import leaf_fields, static_fields
from tad_envs.matrix import MatrixGame

OUT = pathlib.Path(os.environ.get("OUT", "runs/benchmark_matrix"))
REPEATS = 25
SEEDS = int(os.environ.get("SEEDS", "10"))
STEPS = int(os.environ.get("STEPS", "1000000"))
"""Environment steps of the on-policy methods; the off-policy ones have a fifth."""
GAMES = os.environ.get("GAMES", "climbing,penalty/k=0,penalty/k=-100").split(",")

MLP = {"network": "mlp", "memory": "none", "layer_norm": False, "gamma": 0.99}
ON = {**MLP, "hidden": (128, 128), "envs": 10, "n_step": 5, "target_update": 0.01}
OFF = {**MLP, "hidden": (64, 64), "envs": 5, "updates": 5, "batch": 32, "capacity": 5000} | {
    "epsilon_start": 1.0, "epsilon_end": 0.05, "lr_end": 1.0, "target_update": 0.01,
}  # fmt: skip
SETTINGS: dict[str, dict] = {
    "iql": {**OFF, "hidden": (128, 128), "lr": 3e-4, "epsilon_fraction": 1.0},
    "ia2c": {**ON, "lr": 5e-4, "entropy_coef": 0.001},
    "ippo_epymarl": {**ON, "lr": 3e-4, "entropy_coef": 0.001, "epochs": 4, "clip": 0.2},
    "maddpg": {**OFF, "lr": 5e-4},
    "coma": {**ON, "hidden": (64, 64), "lr": 3e-4, "entropy_coef": 0.001, "updates": 1}
    | {"critic_lr_end": 1.0},
    "maa2c": {**ON, "lr": 5e-4, "entropy_coef": 0.01},
    "mappo_epymarl": {**ON, "lr": 3e-4, "entropy_coef": 0.001, "epochs": 4, "clip": 0.2},
    "vdn": {**OFF, "lr": 5e-4, "epsilon_fraction": 0.25},
    "qmix": {**OFF, "lr": 5e-4, "epsilon_fraction": 0.25},
    "pareto_ac": {**ON, "lr": 3e-4, "n_step": 10},
}
OFF_POLICY = ("iql", "maddpg", "vdn", "qmix")

# Climbing; penalty with k = 0; penalty with k ≤ -25.
_PUBLISHED = {
    "iql": ("195±68", "250", "50"), "ia2c": ("175", "250", "50"), "ippo_epymarl": ("175", "250", "50"),
    "maddpg": ("170±10", "250", "50"), "coma": ("185±49", "250", "50"), "maa2c": ("175", "250", "50"),
    "mappo_epymarl": ("175", "250", "50"), "vdn": ("175±55", "250", "50"),
    "qmix": ("175±55", "250", "50"), "pareto_ac": ("", "", ""),
}  # fmt: skip
_STUCK = ({175}, {250}, {50})
EXPECTED: dict[str, tuple[set[int], ...]] = {
    # Policy gradients climb from uniform play to the equilibrium 7 (through 6), or to the safe 2.
    **dict.fromkeys(("ia2c", "maa2c", "ippo_epymarl", "mappo_epymarl"), _STUCK),
    # COMA's gradient is theirs; how exact its critic is decides, and one published seed is at 275.
    "coma": ({175, 275}, {250}, {50}),
    # What is explored with falling ε decides: any equilibrium of climbing, or its plateaus.
    **dict.fromkeys(("iql", "vdn", "qmix"), ({275, 175, 150, 125}, {250}, {50})),
    "maddpg": ({175, 150}, {250}, {50}),
    # Hopes for the best from the other.
    "pareto_ac": ({275}, {250}, {250}),
}


def kind_of(game: str) -> int:
    """Which column of the tables above."""
    return 0 if game.startswith("climbing") else 1 if game.endswith("k=0") else 2


def scaled(game: str) -> tuple[jt.Environment, float]:
    """The repeated game with rewards divided by their deviation in random play, and that deviation."""
    made = jt.make(f"matrix/{game}")
    assert isinstance(made, MatrixGame)
    payoff = np.asarray(made.payoff)
    deviation = float(payoff.std())
    table = (payoff / deviation).tolist()
    return jt.make("matrix/custom", payoff=table, repeats=REPEATS, blind=True), deviation


def fields_of(method: str, deviation: float) -> dict:
    """Settings of ``method`` that depend on the game: weights in units of its return."""
    if method != "pareto_ac":
        return {}
    return {name: value / deviation for name, value in
            {"entropy_start": 20.0, "entropy_end": 0.01, "tie_break": 0.1}.items()}  # fmt: skip


def main() -> None:
    began = time.process_time()
    chosen = os.environ.get("METHODS", ",".join(SETTINGS)).split(",")
    methods = [m for m in chosen if m in jt.algorithms()]
    games = {game: scaled(game) for game in GAMES}
    optima = {
        g: REPEATS * round(d * float(jt.solve(env).value) / REPEATS) for g, (env, d) in games.items()
    }
    rows, outcomes, seeds = [], [], []
    for method in methods:
        config = jt.algorithm(method).config
        known = {*leaf_fields(config), *static_fields(config)}
        settings = {name: value for name, value in SETTINGS[method].items() if name in known}
        run = jt.run(
            method,
            [(env, fields_of(method, deviation)) for env, deviation in games.values()],
            seeds=SEEDS,
            total_steps=STEPS // 5 if method in OFF_POLICY else STEPS,
            evaluations=10,
            episodes=1,
            **settings,
        )
        returns = run.final["return"].reshape(len(games), SEEDS)
        for (game, (_, deviation)), own in zip(games.items(), returns, strict=True):
            ends = np.round(own * deviation, 2)
            kind = kind_of(game)
            expected = EXPECTED[method][kind]
            outcomes.append({"game": game, "method": method, "values": ends})
            seeds += [{"game": game, "method": method, "seed": i, "return": v, "entry": v / REPEATS}
                      for i, v in enumerate(ends)]  # fmt: skip
            shares = zip(*statistics.shares(ends), strict=True)
            rows.append({
                "game": game, "method": method, "steps": int(run.steps[-1]),
                "optimum": optima[game], "published": _PUBLISHED[method][kind],
                "mean": round(float(ends.mean()), 1), "std": round(float(ends.std()), 1),
                "expected": "/".join(map(str, sorted(expected, reverse=True))),
                "as expected": int(np.isin(ends, sorted(expected)).sum()), "seeds": SEEDS,
                "ends": "  ".join(f"{end:g} ×{share * SEEDS:.0f}" for end, share in shares),
                "run_s": round(run.timing["run_s"], 1),
            })  # fmt: skip
        print(report.table([row for row in rows if row["method"] == method]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: GAMES.index(row["game"]))
    print(report.table(rows, path=OUT / "table.csv"))
    report.table(seeds, path=OUT / "seeds.csv")
    figure = report.outcome_bars(
        outcomes,
        OUT / "outcomes.png",
        title=f"EPyMARL's matrix games: where {SEEDS} seeds of each method end (25 plays)",
        optima=optima,
    )
    print(f"\nresults: {OUT}\nfigure:  {figure}\n{time.process_time() - began:.0f} CPU-seconds")


if __name__ == "__main__":
    sys.exit(main())
