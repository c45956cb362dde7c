"""Every method on multi-particle games, against EPyMARL's published table.

    python experiments/mpe.py                        # IPPO, MAPPO, VDN, QMIX: about 35 CPU-minutes
    METHODS=all python experiments/mpe.py            # every method on spread, longer: hours
    METHODS=ia2c,qplex GAMES=spread STEPS=300000 SEEDS=2 python experiments/mpe.py

Returns are in EPyMARL's scale, and the particles move by its integrator. ``ours`` is the mean over
seeds of the last policy, acting greedily in fresh episodes, between the ``worst`` and the ``best``
seed; ``peak`` is the best of ten evaluations of that mean, which is how the published values were
taken (Papoudakis et al. 2021: 20 M steps on-policy, 2 M off-policy). ``span`` is the share of the way
from random play to the published value that ``ours`` has gone; methods without a published value are
measured by the best one. Expected: at least 0.85 for the four, 0.5 for the others.

Table, CSV and learning curves go to ``runs/mpe``; every run can be resumed.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxmarl_tad as jt
from jaxmarl_tad import report

OUT = pathlib.Path(os.environ.get("OUT", "runs/mpe"))
SEEDS = int(os.environ.get("SEEDS", "4"))
FIRST_SEED = 100
"""The settings below were chosen by runs of seeds 0 and 1; what is reported comes from others."""
EPISODES = 1024
"""Of the final evaluation."""
FOUR = ("ippo", "mappo", "vdn", "qmix")
METHODS = os.environ.get("METHODS", ",".join(FOUR)).split(",")
EVERY = METHODS == ["all"]
GAMES = os.environ.get("GAMES", "spread" if EVERY else "spread,speaker_listener").split(",")

PPO = {"envs": 64, "epochs": 4, "minibatches": 8, "lr": 1e-3, "lam": 0.95, "entropy_coef": 0.01}
ACTOR_CRITIC = {"envs": 16, "lr": 1e-3, "entropy_coef": 0.01}
VALUE = {
    "envs": 16,
    "updates": 4,
    "batch": 32,
    "capacity": 512,
    "lr": 3e-3,
    "lr_end": 0.3,
    "gamma": 0.9,
    "lam": 0.6,
    "epsilon_end": 0.05,
    "epsilon_fraction": 0.2,
    "target_update": 0.02,
}
SEQUENCE = PPO | {"lr": 2e-3, "lr_end": 0.1, "entropy_end": 1.0, "embed": 32}
HATRPO = {"envs": 64, "critic_epochs": 4, "minibatches": 8, "lr": 1e-3, "lam": 0.95, "max_kl": 0.01}
DETERMINISTIC = {
    "envs": 16, "updates": 2, "batch": 256, "capacity": 8192, "lr": 3e-4, "critic_lr": 1e-3, "lam": 0.6,
    "target_update": 0.01,
}  # fmt: skip
PQN = {
    "envs": 64, "epochs": 2, "minibatches": 8, "lr": 1e-3, "lr_end": 0.1, "gamma": 0.9, "lam": 0.6,
    "epsilon_end": 0.05, "epsilon_fraction": 0.2,
}  # fmt: skip
SETTINGS = {
    "ippo": PPO, "mappo": PPO, "tad_ppo": PPO, "happo": PPO, "haa2c": PPO, "annealed_joint": PPO,
    "ar_ppo": PPO | {"entropy_end": 1.0}, "magpo": PPO | {"entropy_end": 1.0}, "hatrpo": HATRPO,
    "mat": SEQUENCE, "mat_dec": SEQUENCE, "sable": SEQUENCE,
    "ia2c": ACTOR_CRITIC | {"lr": 3e-3, "critic_lr_scale": 1.0, "entropy_coef": 0.03},
    "maa2c": ACTOR_CRITIC | {"critic_lr_scale": 5.0, "entropy_coef": 0.05},
    "ippo_epymarl": ACTOR_CRITIC, "mappo_epymarl": ACTOR_CRITIC,
    "coma": ACTOR_CRITIC | {"updates": 8},
    "mackrl": ACTOR_CRITIC | {"epsilon_start": 0.2},
    "pareto_ac": {"envs": 16, "lr": 1e-3, "critic_lr_scale": 20.0, "entropy_start": 1.0},
    "iql": VALUE, "vdn": VALUE, "qmix": VALUE, "ow_qmix": VALUE, "cw_qmix": VALUE,
    "qplex": VALUE | {"lr": 1e-3}, "qtran": VALUE | {"lr": 1e-3}, "qtran_alt": VALUE | {"lr": 1e-3},
    "pqn_vdn": PQN, "tad_dqn": {k: v for k, v in VALUE.items() if k != "lam"} | {"lr": 1e-3},
    "maddpg": DETERMINISTIC, "facmac": DETERMINISTIC,
}  # fmt: skip
GAMMA = {"spread": 0.95, "speaker_listener": 0.9}
"""Discount of the policy methods; the value methods take 0.9 in both."""
PUBLISHED = {
    "spread": {
        "iql": -132.63, "ia2c": -134.43, "ippo": -133.86, "maddpg": -141.70, "coma": -204.31,
        "maa2c": -129.90, "mappo": -133.54, "vdn": -131.03, "qmix": -126.62,
    },
    "speaker_listener": {
        "iql": -18.36, "ia2c": -12.60, "ippo": -13.10, "maddpg": -13.56, "coma": -30.40,
        "maa2c": -10.71, "mappo": -10.68, "vdn": -15.95, "qmix": -11.56,
    },
}  # fmt: skip


def budget(method: str) -> int:
    """Environment steps of each seed."""
    if "STEPS" in os.environ:
        return int(os.environ["STEPS"])
    return (4_000_000 if method in FOUR else 2_000_000) if EVERY else 1_000_000


def random_return(env: jt.Environment, episodes: int = 4096) -> float:
    """Mean team return of uniform play over legal actions."""

    def act(key, memory, observation):
        noise = jax.random.uniform(key, observation.legal.shape)
        return jnp.argmax(jnp.where(observation.legal, noise, -1.0), axis=-1), memory, {}

    policy = jt.Policy(start=lambda: (), act=act, execution="decentralised")
    return float(jt.evaluate(policy, env, episodes=episodes)["return"][0])


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows, curves = [], {}
    for game in GAMES:
        env = jt.make(f"mpe/{game}", integrator="openai")
        scale = lambda returns, env=env: np.asarray(env.to_scale(returns, "epymarl"))  # noqa: E731
        chance = float(scale(random_return(env)))
        for method in jt.algorithms() if EVERY else METHODS:
            settings = dict(SETTINGS.get(method, {}))
            settings.setdefault("gamma", GAMMA[game])
            run = jt.run(
                method,
                env,
                seeds=list(range(FIRST_SEED, FIRST_SEED + SEEDS)),
                total_steps=budget(method),
                evaluations=10,
                episodes=100,
                out=OUT / f"{method}-{game}-{budget(method)}-{SEEDS}",
                **settings,
            )
            returns = scale(run.curves["return"])
            curves.setdefault(game, {})[method] = (run.steps, returns)
            final = scale(jt.evaluate(run, env, episodes=EPISODES)["return"])
            published = PUBLISHED[game].get(method)
            goal = max(PUBLISHED[game].values()) if published is None else published
            span = float((final.mean() - chance) / (goal - chance))
            expected = 0.85 if method in FOUR else 0.5
            rows.append(
                {
                    "game": game,
                    "method": method,
                    "seeds": SEEDS,
                    "steps": int(run.steps[-1]),
                    "random": round(chance, 1),
                    "ours": round(float(final.mean()), 1),
                    "worst": round(float(final.min()), 1),
                    "best": round(float(final.max()), 1),
                    "peak": round(float(returns.mean(axis=0).max()), 1),
                    "published": "–" if published is None else published,
                    "span": round(span, 3),
                    "holds": "yes" if span >= expected else "no",
                    "run_s": round(run.timing.get("run_s", 0.0)),
                }
            )
            print(report.table(rows, path=OUT / "table.csv"), flush=True)
    figure = OUT / "learning_curves.png"
    report.learning_curves(curves, figure, "Multi-particle games, EPyMARL's scale")
    print(f"\nresults: {OUT}\nfigure:  {figure}")


if __name__ == "__main__":
    main()
