"""Settings of the methods by kind of task, for `benchmark.py`."""

from typing import Any

PPO = {"envs": 64, "epochs": 4, "minibatches": 8, "lr": 1e-3, "lam": 0.95, "entropy_coef": 0.01}
ACTOR_CRITIC = {"envs": 16, "lr": 1e-3, "entropy_coef": 0.01}
VALUE = {
    "envs": 16, "updates": 4, "batch": 32, "capacity": 512, "lr": 3e-3, "lr_end": 0.3, "gamma": 0.9,
    "lam": 0.6, "epsilon_end": 0.05, "epsilon_fraction": 0.2, "target_update": 0.02,
}  # fmt: skip
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
PARTICLES = {
    "ippo": PPO, "mappo": PPO, "tad_ppo": PPO, "happo": PPO, "haa2c": PPO, "annealed_joint": PPO,
    "ar_ppo": PPO | {"entropy_end": 1.0}, "magpo": PPO | {"entropy_end": 1.0}, "hatrpo": HATRPO,
    "mat": SEQUENCE | {"embed": 64, "lr": 7e-4}, "mat_dec": SEQUENCE, "sable": SEQUENCE,
    "ia2c": ACTOR_CRITIC | {"lr": 3e-3, "critic_lr_scale": 1.0, "entropy_coef": 0.03},
    "maa2c": ACTOR_CRITIC | {"critic_lr_scale": 5.0, "entropy_coef": 0.05},
    "ippo_epymarl": ACTOR_CRITIC, "mappo_epymarl": ACTOR_CRITIC,
    "coma": ACTOR_CRITIC | {"updates": 8},
    "mackrl": ACTOR_CRITIC | {"epsilon_start": 0.2, "advantage_lam": 0.95, "delegation": 8.0},
    "pareto_ac": {"envs": 16, "lr": 1e-3, "critic_lr_scale": 20.0, "entropy_start": 1.0},
    "iql": VALUE, "vdn": VALUE, "qmix": VALUE, "ow_qmix": VALUE, "cw_qmix": VALUE,
    "qplex": VALUE | {"lr": 1e-3}, "qtran": VALUE | {"lr": 1e-3}, "qtran_alt": VALUE | {"lr": 1e-3},
    "pqn_vdn": PQN, "tad_dqn": {k: v for k, v in VALUE.items() if k != "lam"} | {"lr": 1e-3},
    "maddpg": DETERMINISTIC, "facmac": DETERMINISTIC,
}  # fmt: skip
ADVANTAGE = {"envs": 16, "steps": 10, "lr": 1e-3, "critic_lr_scale": 2.0, "entropy_coef": 0.01}
EATER = VALUE | {"gamma": 0.95, "capacity": 1024, "epsilon_fraction": 0.3}
FORAGING = {
    "ippo": PPO, "mappo": PPO | {"entropy_coef": 0.02}, "tad_ppo": PPO | {"entropy_coef": 0.02},
    "ia2c": ADVANTAGE, "maa2c": ADVANTAGE | {"lr": 2e-3, "critic_lr_scale": 4.0, "entropy_coef": 0.001},
    "iql": EATER, "vdn": EATER, "qmix": EATER,
}  # fmt: skip
HUNTER = VALUE | {"lr": 1e-3, "gamma": 0.95, "epsilon_fraction": 0.5}
STALKER = PPO | {"envs": 128, "minibatches": 4, "lr": 2e-3, "entropy_coef": 0.02}
HUNTING = {
    "ippo": STALKER, "mappo": STALKER, "happo": STALKER,
    "tad_ppo": STALKER | {"information": "local"},  # windows tell what is near; the state, coordinates
    "iql": HUNTER, "vdn": HUNTER, "qmix": HUNTER, "ow_qmix": HUNTER, "cw_qmix": HUNTER, "qplex": HUNTER,
    "qtran": HUNTER, "qtran_alt": HUNTER, "tad_dqn": {k: v for k, v in HUNTER.items() if k != "lam"},
}  # fmt: skip
EARLY = {  # on 7x7, ε falls within 240 episodes; published: within 250, 50,000 steps of 200 each
    name: fields | ({"epsilon_fraction": 0.05} if "epsilon_fraction" in fields else {})
    for name, fields in HUNTING.items()
}
RECURRENT = PPO | {"memory": "gru", "hidden": (128, 128), "minibatches": 4, "steps": 128}
FIGHTER = VALUE | {"memory": "gru", "lr": 1e-3, "gamma": 0.99, "batch": 64, "epsilon_fraction": 0.1}
BATTLE = {
    "ippo": RECURRENT, "mappo": RECURRENT, "happo": RECURRENT, "tad_ppo": RECURRENT,
    "vdn": FIGHTER, "qmix": FIGHTER, "qplex": FIGHTER,
}  # fmt: skip
CARRIER = PPO | {"steps": 128, "lr": 5e-4, "hidden": (128, 128)}
PICKER = VALUE | {"gamma": 0.99, "lr": 5e-4, "epsilon_fraction": 0.1}
WAREHOUSE = {
    "ippo": CARRIER, "mappo": CARRIER, "tad_ppo": CARRIER, "vdn": PICKER, "qmix": PICKER, "iql": PICKER,
}  # fmt: skip
RANKER = {"envs": 256, "updates": 4, "batch": 256, "capacity": 4096, "lr": 1e-3, "lr_end": 0.1}
RANKING = {
    "ippo": PPO | {"envs": 256}, "mappo": PPO | {"envs": 256},
    "vdn": RANKER, "qmix": RANKER, "qplex": RANKER,
}  # fmt: skip
SIGNALS = dict.fromkeys(
    ("ippo", "mappo"), PPO | {"envs": 32, "steps": 30, "lr": 5e-4, "entropy_coef": 0.003}
)
PLAYER = PPO | {"envs": 128, "steps": 64, "minibatches": 4, "lr": 5e-4}
PITCH = dict.fromkeys(("ippo", "mappo", "tad_ppo", "happo"), PLAYER) | dict.fromkeys(
    ("vdn", "qmix", "qplex"), VALUE | {"lr": 1e-3, "gamma": 0.99, "epsilon_fraction": 0.1}
)
THROWER = PPO | {"envs": 64, "steps": 75, "minibatches": 4, "lr": 5e-4, "entropy_coef": 0.0}
PALMS = {
    "ippo": THROWER, "mappo": THROWER, "happo": THROWER,
    "hatrpo": HATRPO | {"steps": 75, "minibatches": 4},
    "mat": THROWER | {"embed": 32}, "maddpg": DETERMINISTIC | {"gamma": 0.99},
}  # fmt: skip
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "particles": PARTICLES, "foraging": FORAGING, "hunting": HUNTING, "early": EARLY,
    "battle": BATTLE, "warehouse": WAREHOUSE, "ranking": RANKING, "signals": SIGNALS, "pitch": PITCH,
    "palms": PALMS,
}  # fmt: skip
"""By kind of task and method. Those of particles, foraging, hunting and signals were chosen by runs of
seeds 0 and 1 (on the hunt, of TAD-PPO, whose settings IPPO has too), and what is reported comes from
others; of the early hunt, ε alone differs, as published (seen on seeds 0 to 2 first). Those of
battles, warehouses and ranking are the particles' with the memory and the widths that
were published, and were not chosen by runs; nor were those of the pitch and the palms.
"""
