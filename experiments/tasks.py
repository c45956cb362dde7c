"""What `benchmark.py` runs: tasks with their published figures, and suites of them."""

from dataclasses import dataclass, field
from typing import Any

import jaxmarl_tad as jt

EPYMARL = "Papoudakis et al. 2021: 20 M steps on-policy (warehouse 40 M), 2 M off-policy (4 M)"
JAXMARL = "JaxMARL's curves as Mava plots them, 10 M steps (2s3z: 1 M), older rules"


@dataclass(frozen=True)
class Task:
    """A task, what was published on it, and what is expected of us."""

    env: str
    """As :func:`jaxmarl_tad.make` takes it."""
    settings: str
    """Which of `settings.SETTINGS` the methods take."""
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
NEVER: dict[str, float] = dict.fromkeys(("ippo", "vdn", "qmix"), 0.0)
HUNTERS = ("ippo", "vdn", "qmix", "qtran", "qplex", "tad_ppo")


def hunt(size: str, optimum: float, steps: int, settings: str = "hunting", **more: int) -> Task:
    """A stag hunt with a punishment of 2: half of what can be had, or not a catch."""
    escapes: dict[str, float] = dict.fromkeys(("qtran", "qplex", "tad_ppo"), optimum / 2)
    return Task(
        f"predator_prey/stag_hunt{size}", settings, {"gamma": 0.95}, steps, HUNTERS,
        optimum=optimum, at_least=escapes, at_most=NEVER, more_steps=more,
    )  # fmt: skip


SMALL_HUNT = hunt("/size=5/n_agents=2/n_prey=1/horizon=25", 10, 300_000)
WIDER_HUNT = hunt("/size=7/n_agents=2/n_prey=1/horizon=50", 10, 240_000, "early", tad_ppo=400_000)
STAG_HUNT = hunt("", 40, 5_000_000)


def battle(scenario: str, steps: int, **published: float) -> Task:
    """A map of SMAX, by the share of battles that are won."""
    return Task(
        f"smax/{scenario}", "battle", {"gamma": 0.99}, steps, ("ippo", "mappo", "qmix"),
        measure="won", source=JAXMARL, published=published, span={"": 0.85},
    )  # fmt: skip


BATTLES = (
    battle("3m", 1_000_000),
    battle("2s3z", 1_000_000, ippo=0.90, mappo=1.00),
    battle("3s5z", 10_000_000, ippo=0.55, mappo=0.70),
    battle("5m_vs_6m", 10_000_000, ippo=0.12, mappo=0.05),
)


def warehouse(scenario: str, **published: float) -> Task:
    """A robotic warehouse, by what is delivered in 500 steps."""
    return Task(
        f"rware/{scenario}", "warehouse", {"gamma": 0.99}, 40_000_000, ("ippo", "mappo"),
        source=EPYMARL, published=published, span={"": 0.85},
        more_steps=dict.fromkeys(("iql", "vdn", "qmix"), 4_000_000),
    )  # fmt: skip


WAREHOUSES = (
    warehouse("tiny-2ag", iql=0.28, ippo=20.22, mappo=21.16, vdn=0.12, qmix=0.14),
    warehouse("tiny-4ag", iql=0.72, ippo=31.82, mappo=49.42, vdn=0.80, qmix=0.30),
    warehouse("small-4ag", iql=0.14, ippo=19.78, mappo=27.00, vdn=0.18, qmix=0.06),
)
RANKING = Task("ltr/synthetic", "ranking", {}, 400_000, ("ippo", "vdn", "qmix"), span={"": 0.5})
GRID = Task(
    "traffic/grid3x3", "signals", {"gamma": 0.97}, 300_000, ("ippo", "mappo"),
    optimum=-442.4,  # of the best controller, which gives green to the longest queue; 32 episodes
    at_least={"mappo": 1.05 * -442.4},
)  # fmt: skip


def academy(scenario: str, bar: float | None = None) -> Task:
    """Football of our own rules, by the share of episodes that end with a goal."""
    return Task(
        f"football/{scenario}/reward=checkpoints", "pitch", {"gamma": 0.99}, 10_000_000,
        ("ippo", "mappo", "tad_ppo", "qmix"),
        measure="won", at_least={} if bar is None else dict.fromkeys(("mappo", "tad_ppo"), bar),
    )  # fmt: skip


FOOTBALL = (
    academy("3_vs_1_with_keeper", 0.8),
    *map(academy, ("pass_and_shoot", "counterattack_easy", "run_pass_and_shoot", "counterattack_hard")),
)
HANDS = Task(
    "hands/throw_catch", "palms", {"gamma": 0.99}, 2_000_000,
    ("mappo", "happo", "hatrpo", "mat", "maddpg"),
    measure="won", optimum=41 / 48,  # of the script
)  # fmt: skip

PARTICLES = (SPREAD, SPEAKER_LISTENER)
SUITES: dict[str, tuple[Task, ...]] = {
    "cpu": (FORAGING_8, *PARTICLES, SMALL_HUNT),
    "lbf": (FORAGING_8,),
    "mpe": PARTICLES,
    "predator_prey": (SMALL_HUNT, WIDER_HUNT, STAG_HUNT),
    "smax": BATTLES,
    "rware": WAREHOUSES,
    "ltr": (RANKING,),
    "traffic": (GRID,),
    "football": FOOTBALL,
    "hands": (HANDS,),
}
"""Tasks that are run together; all but those of ``cpu`` and their families ask for an accelerator."""
