"""Robots whose joints belong to several agents: multi-agent MuJoCo over Brax.

After Peng et al. 2021 (FACMAC), whose partitions, orders of joints and graphs of joints these are. The
robots, their rewards and ends are those of Brax, with a choice of physics: ``"spring"`` is fast on a
CPU, ``"mjx"`` is MuJoCo's own on accelerators, and ``"generalized"`` and ``"positional"`` are Brax's
others. Each is a task of its own: returns do not carry over, nor do they from MuJoCo's gym.

Needs brax, which is an extra: ``pip install "jaxmarl_tad[brax]"``. Sizes are known without it.

Everything is looked up by the names of joints. (The ant's motors are listed in the order of legs 4, 1,
2, 3 and its joints in that of 1, 2, 3, 4, and the humanoid's two waist joints are swapped: where
positions in these lists are taken for one another, an agent moves one leg and observes another.)

``J`` joints with a motor, besides the letters of :mod:`tad_envs.types`.
"""

import functools
import importlib
import importlib.metadata
import io
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs.struct import require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

Backend = Literal["spring", "mjx", "generalized", "positional"]
Views = Literal["local", "full"]

_LEGS = tuple((f"hip_{i}", f"ankle_{i}") for i in range(1, 5))
_WAIST = ("abdomen_x", "abdomen_y", "abdomen_z")


def _hip(side: str) -> tuple[str, ...]:
    return tuple(f"{side}_hip_{axis}" for axis in "xyz")


def _shoulder(side: str) -> tuple[str, ...]:
    return f"{side}_shoulder1", f"{side}_shoulder2"


class Robot(NamedTuple):
    """What is known of a robot without Brax."""

    upstream: str
    """Brax's name for it."""
    observation: int
    """Features of Brax's own observation."""
    hidden: int
    """Coordinates of its place that this lacks."""
    root: tuple[int, int]
    """Features of the torso: coordinates that are observed, and velocities."""
    falls: bool
    """Whether it can fall, which ends the episode."""
    near: tuple[tuple[str, ...], ...]
    """Groups of joints that are at distance 1 of each other."""


ROBOTS = {
    "halfcheetah": Robot(
        "halfcheetah", 17, 1, (2, 3), False,
        tuple(itertools.pairwise(("bfoot", "bshin", "bthigh", "fthigh", "fshin", "ffoot"))),
    ),
    "ant": Robot("ant", 27, 2, (5, 6), True, (*_LEGS, tuple(hip for hip, _ in _LEGS))),
    "hopper": Robot(
        "hopper", 11, 1, (2, 3), True,
        tuple(itertools.pairwise(("thigh_joint", "leg_joint", "foot_joint"))),
    ),
    "walker2d": Robot(
        "walker2d", 17, 1, (2, 3), True,
        tuple(itertools.pairwise(("foot_joint", "leg_joint", "thigh_joint", "thigh_left_joint",
                                  "leg_left_joint", "foot_left_joint"))),
    ),
    "humanoid": Robot(
        "humanoid", 244, 2, (5, 6), True,
        (
            _WAIST,
            *((*_hip(side), f"{side}_knee") for side in ("left", "right")),
            *((*_hip(side), *_WAIST) for side in ("left", "right")),
            *((*_shoulder(side), f"{side}_elbow") for side in ("left", "right")),
            *((*_shoulder(side), *_WAIST) for side in ("left", "right")),
        ),
    ),
}  # fmt: skip

TASKS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "halfcheetah_2x3": ("halfcheetah", (("bfoot", "bshin", "bthigh"), ("ffoot", "fshin", "fthigh"))),
    "halfcheetah_6x1": (
        "halfcheetah",
        (("bfoot",), ("bshin",), ("bthigh",), ("ffoot",), ("fshin",), ("fthigh",)),
    ),
    "ant_2x4": ("ant", (_LEGS[0] + _LEGS[1], _LEGS[2] + _LEGS[3])),
    "ant_2x4d": ("ant", (_LEGS[0] + _LEGS[2], _LEGS[1] + _LEGS[3])),
    "ant_4x2": ("ant", _LEGS),
    "hopper_3x1": ("hopper", (("thigh_joint",), ("leg_joint",), ("foot_joint",))),
    "walker2d_2x3": (
        "walker2d",
        (
            ("foot_joint", "leg_joint", "thigh_joint"),
            ("foot_left_joint", "leg_left_joint", "thigh_left_joint"),
        ),
    ),
    "humanoid_9|8": (
        "humanoid",
        (
            (*_shoulder("left"), *_WAIST, *_shoulder("right"), "right_elbow", "left_elbow"),
            (*_hip("left"), *_hip("right"), "right_knee", "left_knee"),
        ),
    ),
}
"""Robot and the joints of each agent, in the order of its actions."""


class Posture(NamedTuple):
    """State of :class:`Limbs`."""

    inner: Any
    """Brax's state of the bodies."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


class _Inside(NamedTuple):
    """Brax's environment, and where names stand in it."""

    env: Any
    position: dict[str, int]
    """Of each joint, in Brax's observation."""
    velocity: dict[str, int]
    motor: tuple[str, ...]
    """The joint of each motor."""


@struct
class Limbs:
    """A robot whose joints are shared out; see the module.

    An agent's action is a torque in [-1, 1] for each of its joints; numbers outside are clipped, and
    an agent with fewer joints than another has dimensions that are not legal and do nothing.

    With ``views="local"`` an agent sees height, orientation and all velocities of the torso; angle and
    velocity of its own joints; the angles of joints at distance 1, ..., ``k`` of its own; and its
    number, one-hot. With ``"full"`` it sees Brax's whole observation and its number. ``harl_norm``
    then subtracts from each such row its own mean and divides by its own deviation, as HARL and the
    data recorded with it do, which loses what is common to all features. The state is Brax's
    observation, and the forward speed.

    The reward is Brax's: forward speed, less a cost of torques, and for what can fall a bonus for
    standing. A fall ends the task, and so does a state that the physics cannot follow (the cheetah's
    is then kept as it was). ``info``: ``speed``, forward, in m/s.
    """

    task: str
    backend: Backend
    views: Views
    k: int
    harl_norm: bool
    horizon: int
    upstream: str
    """The version of Brax, whose results these are."""
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")
        require(self.k >= 0, f"k={self.k} must be at least 0.")
        full = self.views == "full"
        require(full or not self.harl_norm, "harl_norm=True is for views='full' only.")

    @property
    def robot(self) -> Robot:
        """What is known of the robot."""
        return ROBOTS[TASKS[self.task][0]]

    @property
    def joints(self) -> tuple[tuple[str, ...], ...]:
        """Each agent's, in the order of its actions."""
        return TASKS[self.task][1]

    @property
    def spec(self) -> Spec:
        """Sizes, for which Brax is not asked."""
        n = len(self.joints)
        seen = self.robot.observation
        if self.views == "local":
            own = [2 * len(mine) + len(self._neighbours(mine)) for mine in self.joints]
            seen = sum(self.robot.root) + max(own)
        return Spec(
            n_agents=n,
            obs_dim=seen + n,
            state_dim=self.robot.observation + 1,
            horizon=self.horizon,
            action_dim=max(map(len, self.joints)),
            discrete=False,
            terminates=self.robot.falls,
            order_dependent=True,
            state_markov=False,  # bodies of a spring system are not quite where joints would put them
            bounds=(-1.0, 1.0),
        )

    def _neighbours(self, own: tuple[str, ...]) -> tuple[str, ...]:
        """Joints at distance 1, ..., k of one's own, nearest first, by name where equally far."""
        reached, found = set(own), []
        for _ in range(self.k):
            touched = {j for group in self.robot.near if reached & set(group) for j in group}
            found += sorted(touched - reached)
            reached |= touched
        return tuple(found)

    @property
    def inside(self) -> _Inside:
        """Brax's environment."""
        return _upstream(self.robot.upstream, self.backend)

    def reset(self, key: Key) -> tuple[Posture, Observation]:
        """Begin an episode as Brax does, near the robot's rest."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun = self.inside.env.reset(key)
        inner = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), begun.pipeline_state)
        state = Posture(inner, jnp.zeros((), jnp.int32))
        return state, self._observation(begun.obs, inner)

    def step(self, key: Key, state: Posture, action: Action) -> tuple[Posture, TimeStep]:
        """Turn the joints; truncated at the horizon. Draws nothing."""
        del key
        brax = importlib.import_module("brax.envs.base")
        zero = jnp.zeros(())
        before = brax.State(state.inner, jnp.zeros(self.robot.observation), zero, zero, {}, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after = self.inside.env.step(before, self.torques(action))
        speed, reward = after.metrics["x_velocity"], after.reward
        sound = jnp.all(jnp.isfinite(after.obs)) & jnp.isfinite(reward) & jnp.isfinite(speed)
        inner = jax.tree.map(
            lambda new, old: jnp.where(sound, jnp.asarray(new, old.dtype), old),
            after.pipeline_state,
            state.inner,
        )
        seen = jnp.where(sound, after.obs, self._upstreams(inner))
        fallen = (after.done > 0) | ~sound if self.robot.falls else jnp.zeros((), bool)
        clock = jnp.minimum(state.clock + 1, self.horizon)
        over = (clock >= self.horizon) & ~fallen
        step = TimeStep(
            observation=self._observation(seen, inner),
            reward=jnp.where(sound, reward, 0.0).astype(jnp.float32),
            terminated=fallen,
            truncated=over,
            info={"speed": jnp.where(sound, speed, 0.0).astype(jnp.float32)},
        )
        return Posture(inner, clock), step

    def torques(self, action: Float[Array, "N D"]) -> Float[Array, "J"]:
        """What each motor is told, in Brax's order."""
        mine = {joint: (i, d) for i, own in enumerate(self.joints) for d, joint in enumerate(own)}
        agent, dimension = np.array([mine[joint] for joint in self.inside.motor]).T
        return jnp.clip(action, -1.0, 1.0)[agent, dimension]

    def _upstreams(self, inner: Any) -> Float[Array, "F"]:
        """Brax's observation of a state that has not moved; of the humanoid, without torque."""
        env = self.inside.env
        if self.robot.upstream == "humanoid":
            return env._get_obs(inner, jnp.zeros(len(self.inside.motor)))
        return env._get_obs(inner)

    def _observation(self, seen: Float[Array, "F"], inner: Any) -> Observation:
        n = len(self.joints)
        if self.views == "full":
            rows = jnp.concatenate([jnp.broadcast_to(seen, (n, seen.shape[0])), jnp.eye(n)], axis=1)
            if self.harl_norm:
                mean, deviation = (f(rows, axis=1, keepdims=True) for f in (jnp.mean, jnp.std))
                rows = (rows - mean) / deviation
        else:
            rows = self._local(seen)
        return Observation(
            agents=rows.astype(jnp.float32),
            state=jnp.append(seen, inner.qd[0]).astype(jnp.float32),
            legal=self._limbs(),
            alive=jnp.ones(n, bool),
        )

    def _limbs(self) -> Bool[Array, "N D"]:
        """Which dimensions an agent has."""
        sizes = np.array([[len(own)] for own in self.joints])
        return jnp.asarray(np.arange(sizes.max()) < sizes)

    def _local(self, seen: Float[Array, "F"]) -> Float[Array, "N O"]:
        """Torso, own joints, the angles of those nearby, zeros up to the longest row, one's number."""
        inside, n = self.inside, len(self.joints)
        angles, speeds = self.robot.root
        first = min(inside.velocity.values()) - speeds
        torso = [*range(angles), *range(first, first + speeds)]
        rows = []
        for own in self.joints:
            mine = [table[joint] for table in (inside.position, inside.velocity) for joint in own]
            rows.append(torso + mine + [inside.position[joint] for joint in self._neighbours(own)])
        width = max(map(len, rows))
        where = np.array([row + [0] * (width - len(row)) for row in rows])
        there = np.array([np.arange(width) < len(row) for row in rows])
        return jnp.concatenate([jnp.where(there, seen[where], 0.0), jnp.eye(n)], axis=1)


@functools.cache
def _upstream(robot: str, backend: Backend) -> _Inside:
    """Brax's environment, made once, and what its lists mean."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        sys.stdout = sys.stderr = io.StringIO()  # what is not installed is told at import
        with warnings.catch_warnings(), jax.ensure_compile_time_eval():
            warnings.simplefilter("ignore")
            envs = importlib.import_module("brax.envs")
            # Neither a limit of its own nor resets of its own.
            env = envs._envs[robot](backend=backend)
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
    model = env.sys.mj_model
    joints = [model.joint(i).name for i in range(model.njnt)]
    hidden = next(known.hidden for known in ROBOTS.values() if known.upstream == robot)
    turning = [(i, joint) for i, joint in enumerate(joints) if "root" not in joint]
    return _Inside(
        env=env,
        position={joint: int(model.jnt_qposadr[i]) - hidden for i, joint in turning},
        velocity={joint: int(model.nq + model.jnt_dofadr[i]) - hidden for i, joint in turning},
        motor=tuple(joints[int(joint)] for joint in model.actuator_trnid[:, 0]),
    )


def task(key: str) -> Callable[..., Limbs]:
    """The factory of one task."""

    def limbs(
        *,
        backend: Backend = "spring",
        views: Views = "local",
        k: int = 1,
        harl_norm: bool = False,
        horizon: int = 1000,
    ) -> Limbs:
        return Limbs(
            task=key,
            backend=backend,
            views=views,
            k=k,
            harl_norm=harl_norm,
            horizon=horizon,
            upstream=f"brax-{importlib.metadata.version('brax')}",
        )

    limbs.__doc__ = f"Multi-agent MuJoCo's {key} over Brax."
    return limbs
