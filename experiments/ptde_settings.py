"""Tasks, budgets and settings of `ptde.py`."""

from typing import Any

from settings import BATTLE

M = 1_000_000
TASKS: dict[str, dict[tuple[str, ...], int]] = {
    # Games of one line are of one program, with the budget behind it.
    "relay": {("relay", "relay/clue=0.5", "relay/delay=2"): 3_200},
    "ltr": {tuple(f"ltr/synthetic/sigma={sigma}" for sigma in (0, 1, 2, 4)): 25_600},
    "smax": {
        ("smax/3s_vs_5z",): 2 * M,
        ("smax/5m_vs_6m",): 2 * M,
        ("smax/3s5z_vs_3s6z",): 5 * M,
        ("smax/6h_vs_8z",): 5 * M,
        ("smax/3s_vs_8z-300",): 10 * M,
        ("smax/3s5z_vs_3s7z",): 10 * M,
    },
    "football": {
        (f"football/{name}",): 10 * M
        for name in (
            "3_vs_1_with_keeper", "3_vs_2_with_keeper", "counterattack_easy", "counterattack_hard",
            "run_pass_and_shoot",
        )
    },
}  # fmt: skip
SUITES = {"cpu": ("relay", "ltr")} | {name: (name,) for name in TASKS}
MEASURE = {"smax": "won", "football": "won"}
SEEDS = {"relay": 16, "ltr": 3, "smax": 3, "football": 3}
"""Of the first algorithm; of others half as many, at least two."""
RANKER = {"sharing": "full", "layer_norm": False, "hidden": (32, 32)}
"""Documents are alike, and see one feature, of which a layer norm leaves nothing."""
SETTINGS: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "lr": 4e-3, "envs": 32},
    "ltr": {"lr": 2e-3, "envs": 64, **RANKER},
    "smax": BATTLE["mappo"],
    "football": BATTLE["mappo"],
}
FIGHTER = BATTLE["qmix"] | {"hidden": (128, 128)}
VALUE: dict[str, dict[str, Any]] = {
    "relay": {"lam": 0.6, "updates": 2, "epsilon_end": 0.05},
    "ltr": {
        "updates": 4, "epsilon_end": 0.05, "batch": 64, "capacity": 2048, "embed": 16, "hyper": 32,
    },
    "smax": FIGHTER,
    "football": FIGHTER,
}  # fmt: skip
"""Of methods that learn values; on the last two suites in the place of what stands above."""
POLICY: dict[str, dict[str, Any]] = {
    "relay": {"envs": 64, "total_steps": 12_800},  # without a replay
    "ltr": {},
    "smax": {},
    "football": {},
}
"""Of MAPPO."""
TOLD: dict[str, dict[str, Any]] = {
    "relay": {"z_noise": 0.3},
    "ltr": {"z_size": 16, "z_noise": 0.3},
    # States of hundreds of numbers: personalised in 32 combinations of them.
    "smax": {"z_rank": 32},
    "football": {"z_rank": 32},
}
STUDENT: dict[str, dict[str, Any]] = {
    "relay": {"memory": "gru", "total_steps": 25_600},
    "ltr": {"total_steps": 12_800, "envs": 64, **RANKER},
    "smax": {"memory": "gru", "hidden": (128, 128)},
    "football": {"memory": "gru", "hidden": (128, 128)},
}
"""Of the last two the budget is 6,400 episodes; the authors go through 800 again and again."""
FORMS = {"local": "", "unified": "_giu", "personalised": "_gip"}
OTHERS = {"guided": "csrl", "coached": "copa", "qplex": "qplex"}


def settings(method: str, family: str) -> dict[str, Any]:
    """The same for all forms of an algorithm, but for what those need who are told."""
    policy = method.startswith("mappo")
    own = (POLICY if policy else VALUE)[family]
    told = TOLD[family] if method.endswith(("_giu", "_gip")) or method == "csrl" else {}
    if method.endswith("_giu"):
        told = {name: value for name, value in told.items() if name != "z_rank"}
    if method == "csrl":
        told = {name: value for name, value in told.items() if name != "z_noise"}
    common = SETTINGS[family]
    if family in MEASURE and not policy:
        common = {}
    return common | own | told
