"""What sharing parameters costs and gains: none, full, full with identities, selective (SePS).

    python experiments/parameter_sharing.py                   # every game
    GAMES=colours SEEDS=64 python experiments/parameter_sharing.py

IPPO with four ways to share on games in which agents must differ, and the autoregressive policy, whose
agents share all and see what others chose. ``drawn`` is the mean return of the policy as it draws its
actions, over 1024 episodes; ``greedy`` that of its most likely ones. Expected of ``drawn``:

* agents that share all and are not told who they are play one policy, which is bounded: on ``xor`` by
  1/2, on ``permutation/n=4`` by 4!/4⁴ = 0.094, on ``hatrpo/n`` by 2/2ⁿ (Kuba et al. 2022);
* without sharing, with identities, and autoregressively: 1;
* ``colours``, six agents of two hidden colours: 1/2 if they share all, else 1, with a set for each
  colour as with one each; ``steps to .9`` tells how soon the mean of all seeds passes 0.9.

``selective`` needs three agents, and groups only where agents differ by themselves: in the symmetric
games all agents are alike, so that whatever it finds is no better founded than chance; these rows are
without a claim. Colours are learned by a network, as tables cannot share between agents that are told
who they are. Table, CSV and figure go to ``runs/parameter_sharing``.
"""

import os
import pathlib

import jax
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report

OUT = pathlib.Path(os.environ.get("OUT", "runs/parameter_sharing"))
SEEDS = int(os.environ.get("SEEDS", "16"))
EPISODES = 1024
GAMES = os.environ.get("GAMES", "matrix/xor,matrix/hatrpo/n=4,matrix/permutation/n=4,colours")

PLAIN = {"evaluations": 10, "episodes": 8, "progress": False}
NETWORK = {"network": "mlp", "lr": 1e-3, "envs": 32, "total_steps": 9_600, "evaluations": 30}
BOUNDS = {
    "matrix/xor": 1 / 2,
    "matrix/hatrpo/n=4": 2 / 2**4,
    "matrix/permutation/n=4": 24 / 256,
    "colours": 1 / 2,
}
"""The best mean return of one policy for agents that cannot be told apart."""
MODES = ("none", "full", "full_id", "selective")


def drawn_return(run: jt.Trained) -> np.ndarray:
    """Mean return of every member's policy with its actions drawn."""

    def one(member, state):
        policy = run.plan.make(member.config, member.source).policy(state, greedy=False)
        return jt.score(member.env, policy, jax.random.key(member.seed), EPISODES)["return"]

    return np.asarray(jax.jit(jax.vmap(one))(run.stacked, run.state))


def steps_to(run: jt.Trained, level: float) -> int | None:
    """Environment steps after which the mean greedy return of all seeds first passes ``level``."""
    passed = np.flatnonzero(run.curves["return"].mean(0) > level)
    return int(run.steps[passed[0]]) if len(passed) else None


def row(game: str, method: str, mode: str) -> tuple[dict, dict]:
    """One line of the table, and one of the figure."""
    fields = {**PLAIN, **(NETWORK if game == "colours" and method == "ippo" else {})}
    run = jt.run(method, game, seeds=SEEDS, sharing=mode, **fields)
    drawn, sharing = drawn_return(run), run.config.sharing
    bound = BOUNDS[game]
    if mode == "full" and method == "ippo":
        expected, holds = f"at most {bound:.3f}", drawn.mean() <= bound * 1.05 + 0.01
    elif mode == "selective" and game != "colours":
        expected, holds = "no claim", None
    else:
        expected, holds = "1", bool((drawn > 0.95).mean() >= 15 / 16)
    label = f"{method} {mode}"
    told = {
        "game": game,
        "method": label,
        "assignment": "".join(map(str, sharing)) if isinstance(sharing, tuple) else "",
        "drawn": round(float(drawn.mean()), 3),
        "greedy": round(float(run.final["return"].mean()), 3),
        "seeds at 1": f"{int((drawn > 0.95).sum())}/{SEEDS}",
        "steps to .9": steps_to(run, 0.9),
        "expected": expected,
        "as expected": None if holds is None else ("yes" if holds else "no"),
    }
    return told, {"game": game, "method": label, "values": drawn.round(1)}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows, outcomes = [], []
    for game in GAMES.split(","):
        agents = jt.make(game).spec.n_agents
        cases = [("ippo", mode) for mode in MODES if mode != "selective" or agents >= 3]
        if game != "colours":  # 18,432 rows of what five others chose
            cases.append(("ar_ppo", "full_id"))
        for method, mode in cases:
            told, outcome = row(game, method, mode)
            rows.append(told)
            print(*(f"{name}={value}" for name, value in told.items()), flush=True)
            outcomes.append(outcome)
        print(report.table(rows, path=OUT / "table.csv"), flush=True)
    figure = report.outcome_bars(
        outcomes, OUT / "outcomes.png", f"Return of {SEEDS} seeds", dict.fromkeys(GAMES.split(","), 1.0)
    )
    print(f"\nresults: {OUT}\nfigure:  {figure}")


if __name__ == "__main__":
    main()
