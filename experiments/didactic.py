"""Why decentralised learners get stuck in locally optimal coordination, and which methods do not.

Trains IPPO, MAPPO, IQL, VDN, QMIX and TAD-PPO (teacher and distilled students) on games whose optimum
and equilibria are known exactly, 64 seeds each, and shows on which equilibrium every seed ends. Games
of equal sizes share a program: payoffs, lengths and seeds are data.

    python experiments/didactic.py            # table, CSV files and figures into runs/didactic
    ALL=1 python experiments/didactic.py      # adds the hallway of length 3, with settings of its own

Expected: decentralised methods stop at 5/5/5/7/2/0 on T1/T2/T3/climbing/penalty/qtran, at 0 on
note001 (where they start in the basin of 0) and at 4 in the hallways; TAD-PPO and its decentralised
students reach 10/10/10/11/10/8, 10 and 5. In the hallway of length 1 everybody gets 5.
"""

import functools
import math
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report, statistics

SEEDS = 64
OUT = pathlib.Path("runs/didactic")
PPO = {"envs": 128, "epochs": 4, "lr": 0.02, "entropy_coef": 0.01}
ITERATIONS = 150
VALUE_STEPS = 6_400
SAFE = (math.log(9), 0.0, 0.0)  # p = q = 0.9 for the safe action of note001

MATRIX = {
    "matrix/tad": jt.make("matrix/tad"),
    "matrix/t2": jt.make("matrix/t2"),
    "matrix/t3": jt.make("matrix/t3"),
    "matrix/climbing": jt.make("matrix/climbing"),
    "matrix/penalty/k=-100": jt.make("matrix/penalty", k=-100.0),
    "matrix/qtran": jt.make("matrix/qtran"),
    "matrix/note001": jt.make("matrix/note001", pad_to=3),
}
HALLWAY = {
    "hallway/length=1": jt.make("hallway", length=1, max_length=2, n_actions=3),
    "hallway/length=2": jt.make("hallway", length=2, max_length=2, n_actions=3),
    "hallway/wait": jt.make("hallway/wait", length=1, max_length=2),
}
LONGER = {"hallway/length=3": jt.make("hallway", length=3)}
# A plateau of two cells before the goal takes more entropy, more data and more time to cross.
LONGER_PPO = PPO | {"envs": 256, "entropy_coef": 0.2}
LONGER_ITERATIONS = 500

METHODS = ("ippo", "mappo", "iql", "vdn", "qmix", "tad_ppo")
VALUE = ("iql", "vdn", "qmix")
TOLD = {"ctds", "copa"} | {
    name for name in jt.algorithms() if jt.algorithm(name).fixed.get("information", "local") != "local"
}
FIELD = [
    name
    for name in jt.algorithms()
    if name not in METHODS
    and name not in TOLD
    and "discrete" in jt.algorithm(name).actions
    and jt.algorithm(name).family != "offline"
]
"""Every other method that plays, with its own defaults, fewer seeds and fewer games; not those whose
agents are told of the state, which tells nothing in games of one step."""
FIELD_SEEDS = 8
FIELD_GAMES = ("matrix/tad", "matrix/climbing", "matrix/penalty/k=-100", "matrix/qtran")
FIELD_STEPS = {
    "annealed_joint": 19_200,
    "ippo_epymarl": 38_400,
    "mackrl": 38_400,
    "magpo": 19_200,
    "mappo_epymarl": 38_400,
    "mat_dec": 3_200,
}
"""Where half of the default steps end every seed of every game alike."""
COLUMNS = (
    "game", "method", "seeds", "optimum", "mean_return", "share_optimal", "modal_return",
    "compile_s", "run_s",
)  # fmt: skip


class Study:
    """Rows of the table, curves of the figure and the runs behind them."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.outcomes: list[dict] = []
        self.curves: dict[str, dict] = {}
        self.optima: dict[str, float] = {}
        self.programs: list[dict] = []

    def add(self, games: dict, method: str, trained: jt.Trained, seeds: int = SEEDS) -> None:
        """Take in a run over all of ``games``, with as many seeds each."""
        timing = trained.timing
        compile_s, run_s = timing["trace_s"] + timing["compile_s"], timing["run_s"]
        self.programs.append(
            {"program": f"{method} on {next(iter(games))} and {len(games) - 1} more"}
            | {"members": len(trained.members), "peak_MiB": timing["peak_bytes"] / 2**20}
            | {name: timing[name] for name in ("trace_s", "compile_s", "run_s")}
        )
        by_game = trained.curves["return"].reshape(len(games), seeds, -1)
        for game, curve in zip(games, by_game, strict=True):
            values, optimum = curve[:, -1], self.optima[game]
            self.outcomes.append({"game": game, "method": method, "values": values})
            self.curves.setdefault(game, {})[method] = (trained.steps, curve)
            self.rows.append({
                "game": game, "method": method, "seeds": seeds, "optimum": optimum,
                "mean_return": float(values.mean()),
                "share_optimal": statistics.reached(values, optimum) / seeds,
                "modal_return": statistics.modal(values),
                "compile_s": round(compile_s, 2), "run_s": round(run_s, 2),
            })  # fmt: skip

    def run(self, games: dict, ppo: dict, iterations: int, keep: dict | None = None) -> None:
        """Every method on ``games``, which share a program per method."""
        for game, env in games.items():
            self.optima[game] = round(float(jt.solve(env).value), 6)
        horizon = next(iter(games.values())).spec.horizon
        for method in METHODS:
            kept: list = []
            if method in VALUE:
                trained = jt.run(
                    method, list(games.values()), seeds=SEEDS, episodes=1, total_steps=VALUE_STEPS
                )
            else:
                trained = jt.run(
                    method,
                    [
                        (env, {"initial_logits": SAFE} if "note001" in game else {})
                        for game, env in games.items()
                    ],
                    seeds=SEEDS,
                    episodes=1,
                    after_chunk=lambda i, state, metrics, kept=kept: kept.append(host(state)),
                    total_steps=iterations * ppo["envs"] * horizon,
                    **ppo,
                )
            name = f"{method}/teacher" if method == "tad_ppo" else method
            self.add(games, name, trained)
            if keep is not None:
                keep[name] = (trained, kept)
        kept = []
        student = jt.distill(
            trained,
            episodes=1,
            after_chunk=lambda i, state, metrics: kept.append(host(state)),
        )
        self.add(games, "tad_ppo/distilled", student)
        if keep is not None:
            keep["tad_ppo/distilled"] = (student, kept)

    def run_field(self) -> None:
        """Every other method on some of the matrix games."""
        games = {name: MATRIX[name] for name in FIELD_GAMES}
        self.optima = {name: round(float(jt.solve(env).value), 6) for name, env in games.items()}
        for method in FIELD:
            own = {"total_steps": FIELD_STEPS[method]} if method in FIELD_STEPS else {}
            asked = {"seeds": FIELD_SEEDS, "episodes": 1, "evaluations": 1}
            self.add(games, method, jt.run(method, list(games.values()), **asked, **own), FIELD_SEEDS)

    def table(self, name: str, down: str = "game") -> list[dict]:
        """The rows, game by game, with where the seeds ended; to ``name``.csv and .md as well."""
        rows = sorted(self.rows, key=lambda row: list(self.optima).index(row["game"]))
        report.table(rows, COLUMNS, OUT / f"{name}.csv")
        (OUT / f"{name}.md").write_text(summary(rows, down))
        ends = {(o["game"], o["method"]): statistics.shares(o["values"]) for o in self.outcomes}
        for row in rows:
            pairs = zip(*ends[row["game"], row["method"]], strict=True)
            row["seeds ending at"] = "  ".join(f"{e:g} ×{x * row['seeds']:.0f}" for e, x in pairs)
        return rows


def host(state):
    """A copy of a run's state that outlives the next chunk."""
    return jax.tree.map(np.array, state)


def joint_policy(trained: jt.Trained, states: list, game: int) -> np.ndarray:
    """How often each joint action begins an episode of each seed, ``[snapshots, seeds, A, A]``."""
    rows = slice(game * SEEDS, (game + 1) * SEEDS)
    members = jax.tree.map(lambda x: x[rows], trained.stacked)
    shares = action_shares(trained.plan.make)
    return np.stack(
        [np.asarray(shares(members, jax.tree.map(lambda x: x[rows], state))) for state in states]
    )


@functools.cache
def action_shares(make, draws: int = 256):
    """A compiled function of members and their states: the share of each first joint action."""

    def one(member, state):
        policy = make(member.config, member.source).policy(state, greedy=False)
        _, observation = member.env.reset(jax.random.key(0))
        keys = jax.random.split(jax.random.key(member.seed), draws)
        action, _, _ = jax.vmap(lambda key: policy.act(key, policy.start(), observation))(keys)
        one_hot = jax.nn.one_hot(action, observation.legal.shape[-1])
        return jnp.einsum("da,db->ab", one_hot[:, 0], one_hot[:, 1]) / draws

    return jax.jit(jax.vmap(one))


def figures(study: Study, kept: dict) -> list[pathlib.Path]:
    """The four pictures, each with a CSV of its numbers."""
    folder = OUT / "figures"
    climbing, note = list(MATRIX).index("matrix/climbing"), list(MATRIX).index("matrix/note001")
    shown = {"ippo": "independent", "tad_ppo/teacher": "sequential", "tad_ppo/distilled": "distilled"}
    strips, chosen = {}, [0, 1, 2, 4, 9]
    for method, label in shown.items():
        trained, states = kept[method]
        last = len(states) - 1
        states = [states[min(i, last)] for i in (chosen if last > 4 else range(5))]
        strips[label] = joint_policy(trained, states, climbing).mean(axis=1)
    trained, states = kept["ippo"]
    mass = joint_policy(trained, states, note)  # [snapshots, seeds, A, A]
    paths = np.stack([mass[:, :, 0, :].sum(-1), mass[:, :, :, 0].sum(-1)], axis=-1)
    paths = np.concatenate([np.full((1, SEEDS, 2), 0.9), paths])
    payoff = np.asarray(MATRIX["matrix/note001"].payoff)[:2, :2]
    return [
        report.outcome_bars(
            study.outcomes,
            folder / "outcomes.png",
            title=f"Where {SEEDS} seeds of each method end (greedy return)",
            optima=study.optima,
        ),
        report.payoff_mass(
            np.asarray(MATRIX["matrix/climbing"].payoff),
            strips,
            folder / "payoff_mass.png",
            title="Climbing: the joint policy's probability mass over training",
            snapshots=[f"{(i + 1) * 10} %" for i in chosen],
            label="of the run",
        ),
        report.learning_curves(
            study.curves,
            folder / "learning_curves.png",
            title="Greedy return over environment steps",
            optima=study.optima,
        ),
        report.gradient_field(
            payoff,
            folder / "gradient_field.png",
            title="note001: two basins of the independent policy gradient",
            trajectories=list(np.moveaxis(paths[:, :8], 1, 0)),
            actions=("safe", "risky"),
        ),
    ]


def summary(rows: list[dict], down: str = "game") -> str:
    """A Markdown table of games and methods: the most frequent return, and the share at the optimum."""
    across = "method" if down == "game" else "game"
    lines = [[down, *(str(name) for name in dict.fromkeys(row[across] for row in rows))]]
    optima = {row["game"]: f"{row['optimum']:g}" for row in rows}
    if across == "game":
        lines[0] = [down, *(f"`{game}` ({best})" for game, best in optima.items())]
    else:
        lines[0].insert(1, "optimum")
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for name in dict.fromkeys(row[down] for row in rows):
        own = [row for row in rows if row[down] == name]
        ends = [f"{row['modal_return']:g} ({100 * row['share_optimal']:.0f} %)" for row in own]
        lines.append([f"`{name}`", *([optima[name]] if down == "game" else []), *ends])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    began, wall = time.process_time(), time.perf_counter()
    study, kept = Study(), {}
    study.run(MATRIX, PPO, ITERATIONS, kept)
    study.run(HALLWAY, PPO, ITERATIONS)
    if os.environ.get("ALL", "") not in ("", "0"):
        study.run(LONGER, LONGER_PPO, LONGER_ITERATIONS)

    field = Study()
    field.run_field()
    OUT.mkdir(parents=True, exist_ok=True)
    columns = ["game", "method", "optimum", "mean_return", "share_optimal", "seeds ending at"]
    print(report.table(study.table("table"), columns))
    print(f"\nEvery other method, {FIELD_SEEDS} seeds:\n")
    print(report.table(field.table("field", "method"), columns))
    print("\nOn matrix/note001 the policy methods start at p = q = 0.9 for the safe action; value")
    print("methods start as usual.\n")
    print(report.table(study.programs + field.programs, path=OUT / "programs.csv"))
    pictures = figures(study, kept)
    pictures.append(
        report.outcome_bars(
            field.outcomes,
            OUT / "figures" / "field.png",
            title=f"Where {FIELD_SEEDS} seeds of every other method end (greedy return)",
            optima=field.optima,
        )
    )
    print("\n" + "\n".join(str(path) for path in [OUT / "table.csv", *pictures]))
    seconds = time.process_time() - began
    print(f"\n{seconds:.1f} CPU-seconds, {time.perf_counter() - wall:.1f} s, after imports")


if __name__ == "__main__":
    sys.exit(main())
