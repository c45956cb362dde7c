"""What `benchmark.py` runs: tasks with their published figures, settings of the methods, suites."""

from dataclasses import dataclass, field
from typing import Any

import jaxmarl_tad as jt

EPYMARL = "Papoudakis et al. 2021: 20 M steps on-policy (warehouse 40 M), 2 M off-policy (4 M)"
MAVA = "Mava's plots, 10 M steps (2s3z: 1 M), upstream's older rules"


@dataclass(frozen=True)
class Task:
    """A task, what was published on it, and what is expected of us."""

    env: str
    """As :func:`jaxmarl_tad.make` takes it."""
    settings: str
    """Which of `SETTINGS` the methods take."""
    common: dict[str, Any]
    """Fields of all methods whose settings do not say otherwise."""
    steps: int
    """Environment steps of each seed, where `more_steps` names no others."""
    methods: tuple[str, ...]
    """Run unless others are asked for."""
    measure: str = "return"
    """``return``, or a share that the environment reports at an episode's end, such as ``won``."""
    scale: str | None = None
    """The library in whose scale returns are told; the environment's own if none."""
    published: dict[str, float] = field(default_factory=dict)
    optimum: float = 1.0
    """What is best, or nearly: the end of the span where nothing was published."""
    source: str = ""
    at_least: dict[str, float] = field(default_factory=dict)
    """Bars in the units of ``measure``."""
    at_most: dict[str, float] = field(default_factory=dict)
    span: dict[str, float] = field(default_factory=dict)
    """Bars as shares of the way from random play to the published value; ``""`` for all others."""
    more_steps: dict[str, int] = field(default_factory=dict)

    def make(self) -> jt.Environment:
        """The environment."""
        return jt.make(self.env)

    def to_scale(self, env: jt.Environment, values: Any) -> Any:
        """Values in the scale of the published ones."""
        return values if self.scale is None else env.to_scale(values, self.scale)  # pyright: ignore


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
ADVANTAGE = {"envs": 16, "steps": 10, "lr": 1e-3, "critic_lr_scale": 2.0, "entropy_coef": 0.01}
EATER = VALUE | {"gamma": 0.95, "capacity": 1024, "epsilon_fraction": 0.3}
FORAGING = {
    "ippo": PPO, "mappo": PPO | {"entropy_coef": 0.02}, "tad_ppo": PPO | {"entropy_coef": 0.02},
    "ia2c": ADVANTAGE, "maa2c": ADVANTAGE,
    "iql": EATER, "vdn": EATER, "qmix": EATER,
}  # fmt: skip
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {"particles": PARTICLES, "foraging": FORAGING}
"""By kind of task and method. Chosen by runs of seeds 0 and 1; what is reported comes from others."""

FOUR = ("ippo", "mappo", "vdn", "qmix")
SPAN = {"": 0.5} | dict.fromkeys(FOUR, 0.85)

SPREAD = Task(
    "mpe/spread/integrator=openai", "particles", {"gamma": 0.95}, 1_000_000, FOUR,
    scale="epymarl", source=EPYMARL, span=SPAN | dict.fromkeys(("happo", "hatrpo", "mat"), 0.85),
    published={
        "iql": -132.63, "ia2c": -134.43, "ippo": -133.86, "maddpg": -141.70, "coma": -204.31,
        "maa2c": -129.90, "mappo": -133.54, "vdn": -131.03, "qmix": -126.62,
    },
)  # fmt: skip
SPEAKER_LISTENER = Task(
    "mpe/speaker_listener/integrator=openai", "particles", {"gamma": 0.9}, 1_000_000, FOUR,
    scale="epymarl", source=EPYMARL, span=SPAN,
    published={
        "iql": -18.36, "ia2c": -12.60, "ippo": -13.10, "maddpg": -13.56, "coma": -30.40,
        "maa2c": -10.71, "mappo": -10.68, "vdn": -15.95, "qmix": -11.56,
    },
)  # fmt: skip
FORAGERS = ("ippo", "mappo", "maa2c", "vdn")
FORAGING_8 = Task(
    "lbf/8x8-2p-2f-coop", "foraging", {"gamma": 0.99}, 2_000_000, FORAGERS,
    source=EPYMARL, at_least=dict.fromkeys(FORAGERS, 0.97), span={"": 0.5},
    more_steps={"ia2c": 4_000_000, "maa2c": 4_000_000},
    published={
        "iql": 1.0, "ia2c": 1.0, "ippo": 1.0, "maddpg": 0.46, "coma": 0.61, "maa2c": 1.0, "mappo": 1.0,
        "vdn": 1.0, "qmix": 0.96,
    },
)  # fmt: skip
SUITES: dict[str, tuple[Task, ...]] = {
    "mpe": (SPREAD, SPEAKER_LISTENER),
    "lbf": (FORAGING_8,),
}
"""Tasks that are run together."""
