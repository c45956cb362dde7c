"""Two palms that throw a ball to each other, in a vertical plane: physics of MuJoCo's MJX.

The smallest task of two hands (after those of Bi-DexHands, Chen et al. 2022, whose hands of 24 joints
no CPU can simulate): a palm with a lip on each side slides in x and z and tilts, each by a servo. Hand
0 holds a ball, hand 1 is to catch it, and the two can never touch. The model is the text below; nothing
is fetched.

Needs MJX, which is an extra: ``pip install "jaxmarl_tad[mjx]"``. Sizes are known without it.

A step is 0.02 s, in four of the physics. Lengths are in metres.
"""

import functools
import importlib
import importlib.metadata
import io
import sys
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.scene import Point, Scene
from tad_envs.struct import Real, require, struct
from tad_envs.types import Action, Key, Observation, Spec, TimeStep

_AGENTS = 2
_JOINTS = 3
"""Of a hand: along x, along z, tilt."""
_SUBSTEPS = 4
_REACH = np.array([0.15, 0.2, 0.6], np.float32)
"""How far a servo goes to each side."""
_APART = 0.6
"""Between the hands' middles."""
_ABOVE = 0.04
"""Of a palm, where a ball lies that is held."""
_SHAKEN = np.array([0.05, 0.05, 0.1], np.float32)
"""How far from the middle an episode may begin."""

_SWING = ((0.111, -1.0, -0.324), (0.634, 0.21, -0.116), (-1.0, -1.0, 0.0))
"""Where the servos of a throw go first, then and at last."""
_WINDING = 23
"""Steps before the throw, which lasts 6."""
_WAITING = (0.277, 0.0)
"""Height and tilt of the hand that catches."""

_HAND = """
    <body name="hand{i}" pos="{x} 0 0" gravcomp="1">
      <joint name="x{i}" type="slide" axis="1 0 0"/>
      <joint name="z{i}" type="slide" axis="0 0 1"/>
      <joint name="tilt{i}" type="hinge" axis="0 1 0"/>
      <geom type="capsule" size="0.01" fromto="-0.06 0 0 0.06 0 0" mass="0.4"/>
      <geom type="capsule" size="0.01" fromto="-0.06 0 0 -0.08 0 0.04" mass="0.05"/>
      <geom type="capsule" size="0.01" fromto="0.06 0 0 0.08 0 0.04" mass="0.05"/>
    </body>"""
_SERVOS = """
    <position joint="x{i}" kp="400" kv="28"/>
    <position joint="z{i}" kp="400" kv="28"/>
    <position joint="tilt{i}" kp="2" kv="0.1"/>"""
_MODEL = """
<mujoco>
  <option timestep="0.005" iterations="4" ls_iterations="6" gravity="0 0 -9.81"/>
  <default><geom contype="1" conaffinity="2"/></default>
  <worldbody>{hands}
    <body name="ball">
      <joint name="bx" type="slide" axis="1 0 0"/>
      <joint name="bz" type="slide" axis="0 0 1"/>
      <geom type="sphere" size="0.03" mass="0.05" contype="2" conaffinity="1" solref="0.01 1"/>
    </body>
  </worldbody>
  <actuator>{servos}
  </actuator>
</mujoco>"""


class Throw(NamedTuple):
    """State of :class:`ThrowCatch`."""

    place: Float[Array, "8"]
    """Joints of hand 0, of hand 1, and the ball's x and z."""
    speed: Float[Array, "8"]
    caught: Bool[Array, ""]
    """Whether hand 1 ever held the ball."""
    clock: Int[Array, ""]
    """Steps taken, up to the horizon."""


@struct
class ThrowCatch:
    """Throw and catch; see the module.

    An agent says in [-1, 1] where each of its servos is to go; numbers outside are clipped. It sees
    its joints and their speeds, its palm's place and tilt (sine and cosine), the ball's place and speed
    from its palm, the other palm's place from its own (zeros if ``partner`` is False), and which hand
    it is: 18 features. The state is all places and speeds, and whether the ball was caught.

    The reward is ``exp(-5 d)`` with the distance of the ball to where hand 1 holds things, and 1 more
    when it first lies there, slower than ``still`` relative to the palm. The ball lost, 0.3 below both
    palms, ends the task. ``info``: ``won``, whether it was caught.
    """

    sharpness: Real = 5.0
    """Per metre, of the reward for being near."""
    bonus: Real = 1.0
    """For the catch."""
    near: Real = 0.05
    """Distance at which a ball counts as held."""
    still: Real = 0.5
    """Metres per second at which it does."""
    partner: bool = True
    """Whether hands see each other."""
    horizon: int = 75
    upstream: str = ""
    """The version of the physics."""
    name: str = ""

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    @property
    def spec(self) -> Spec:
        """Sizes."""
        return Spec(
            n_agents=_AGENTS,
            obs_dim=2 * _JOINTS + 4 + 4 + 2 + _AGENTS,
            state_dim=2 * (_AGENTS * _JOINTS + 2) + 1,
            horizon=self.horizon,
            action_dim=_JOINTS,
            discrete=False,
            order_dependent=True,
            bounds=(-1.0, 1.0),
        )

    def reset(self, key: Key) -> tuple[Throw, Observation]:
        """Hands near the middle of their reach, the ball in hand 0, all at rest."""
        joints = jnp.asarray(_SHAKEN) * jax.random.uniform(key, (_AGENTS, _JOINTS), minval=-1.0)
        state = Throw(
            place=jnp.concatenate([joints.reshape(-1), _hold(joints)[0]]),
            speed=jnp.zeros(8),
            caught=jnp.zeros((), bool),
            clock=jnp.zeros((), jnp.int32),
        )
        return state, self.observe(state)

    def step(self, key: Key, state: Throw, action: Action) -> tuple[Throw, TimeStep]:
        """Servos, hands and ball for 0.02 s; truncated at the horizon. Draws nothing."""
        del key
        place, speed = _moved(state, jnp.clip(action, -1.0, 1.0))
        following = state._replace(
            place=place, speed=speed, clock=jnp.minimum(state.clock + 1, self.horizon)
        )
        joints, ball = place[:6].reshape(_AGENTS, _JOINTS), place[6:]
        apart = _length(ball - _hold(joints)[1])
        relative = _length(speed[6:] - speed[3:5])
        held = (apart < self.near) & (relative < self.still)
        reward = jnp.exp(-jnp.asarray(self.sharpness) * apart)
        reward += jnp.asarray(self.bonus) * (held & ~state.caught)
        following = following._replace(caught=state.caught | held)
        lost = ball[1] < jnp.min(joints[:, 1]) - 0.3
        over = (following.clock >= self.horizon) & ~lost
        info = {"won": following.caught.astype(jnp.float32)}
        seen = self.observe(following)
        return following, TimeStep(seen, reward.astype(jnp.float32), lost, over, info)

    def observe(self, state: Throw) -> Observation:
        """What each hand sees; all of it as the state."""
        joints, speeds = (x[:6].reshape(_AGENTS, _JOINTS) for x in (state.place, state.speed))
        palms, tilt = _palms(joints), joints[:, 2:]
        rows = [
            joints,
            speeds,
            palms,
            jnp.sin(tilt),
            jnp.cos(tilt),
            state.place[6:] - palms,
            state.speed[6:] - speeds[:, :2],
            (palms[::-1] - palms) * self.partner,
            jnp.eye(_AGENTS),
        ]
        return Observation(
            agents=jnp.concatenate(rows, axis=1),
            state=jnp.concatenate([state.place, state.speed, state.caught[None].astype(jnp.float32)]),
            legal=jnp.ones((_AGENTS, _JOINTS), bool),
            alive=jnp.ones(_AGENTS, bool),
        )

    def heuristic(self, key: Key, state: Throw) -> Action:
        """Wind up, throw flat, and come to rest; the other hand follows the ball and gives way.

        Its numbers were found by a random search. It winds up until the ball lies still; six balls in
        seven are caught.
        """
        del key
        clock, (x, z) = state.clock, (state.place[6], state.place[7])
        wind, throw, rest = (jnp.asarray(target, jnp.float32) for target in _SWING)
        thrower = jnp.where(clock < _WINDING, wind, jnp.where(clock < _WINDING + 6, throw, rest))
        coming = (x > 0.05) & (z - state.place[4] < 0.15)
        follow = jnp.where(x > -0.1, (x - _MIDDLE[1]) / _REACH[0], 0.0)
        catcher = jnp.stack([follow, jnp.where(coming, -1.0, _WAITING[0]), jnp.asarray(_WAITING[1])])
        return jnp.stack([thrower, catcher])

    def scene(self, state: Throw) -> Scene:
        """Both palms by their ends, and the ball."""
        points = []
        for i, (x, z, tilt) in enumerate(np.asarray(state.place)[:6].reshape(_AGENTS, _JOINTS)):
            x += _MIDDLE[i]
            for along in np.linspace(-0.06, 0.06, 5):
                end = (float(x + along * np.cos(tilt)), float(z - along * np.sin(tilt)))
                points.append(Point("agent", *end, radius=0.012))
        ball = np.asarray(state.place)[6:]
        points.append(Point("food", float(ball[0]), float(ball[1]), radius=0.03))
        title = f"step {int(state.clock)}{' caught' if state.caught else ''}"
        return Scene((-0.7, -0.6), (0.7, 0.8), tuple(points), title=title)


_MIDDLE = np.array([-_APART / 2, _APART / 2], np.float32)


def _palms(joints: Float[Array, "2 3"]) -> Float[Array, "2 2"]:
    """Where the palms are."""
    return joints[:, :2] + jnp.stack([jnp.asarray(_MIDDLE), jnp.zeros(_AGENTS)], axis=1)


def _hold(joints: Float[Array, "2 3"]) -> Float[Array, "2 2"]:
    """Where each palm holds a ball."""
    tilt = joints[:, 2]
    return _palms(joints) + _ABOVE * jnp.stack([jnp.sin(tilt), jnp.cos(tilt)], axis=1)


def _length(vector: Float[Array, "2"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(vector**2))


def _moved(state: Throw, action: Float[Array, "2 3"]) -> tuple[Float[Array, "8"], Float[Array, "8"]]:
    """Places and speeds a step later; both stay if the physics cannot follow."""
    mjx, model, rest = _physics()
    data = rest.replace(qpos=state.place, qvel=state.speed, ctrl=(action * _REACH).reshape(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = jax.lax.fori_loop(0, _SUBSTEPS, lambda _, d: mjx.step(model, d), data)
    sound = jnp.all(jnp.isfinite(data.qpos)) & jnp.all(jnp.isfinite(data.qvel))
    return jnp.where(sound, data.qpos, state.place), jnp.where(sound, data.qvel, state.speed)


@functools.cache
def _physics() -> tuple[Any, Any, Any]:
    """MJX, the model, and its data at rest."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        sys.stdout = sys.stderr = io.StringIO()  # what is not installed is told at import
        with warnings.catch_warnings(), jax.ensure_compile_time_eval():
            warnings.simplefilter("ignore")
            mujoco, mjx = (importlib.import_module(name) for name in ("mujoco", "mujoco.mjx"))
            hands = "".join(_HAND.format(i=i, x=x) for i, x in enumerate(_MIDDLE))
            servos = "".join(_SERVOS.format(i=i) for i in range(_AGENTS))
            host = mujoco.MjModel.from_xml_string(_MODEL.format(hands=hands, servos=servos))
            model = mjx.put_model(host)
            return mjx, model, mjx.make_data(model)
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)


def throw_catch(
    *,
    sharpness: Real = 5.0,
    bonus: Real = 1.0,
    near: Real = 0.05,
    still: Real = 0.5,
    partner: bool = True,
    horizon: int = 75,
) -> ThrowCatch:
    """One hand throws a ball, the other catches it."""
    return ThrowCatch(
        sharpness=finite.number(sharpness, "sharpness"),
        bonus=finite.number(bonus, "bonus"),
        near=finite.number(near, "near"),
        still=finite.number(still, "still"),
        partner=partner,
        horizon=horizon,
        upstream=f"mujoco-mjx-{importlib.metadata.version('mujoco-mjx')}",
    )
