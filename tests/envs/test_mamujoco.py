"""Robots shared out: what an agent drives and sees is its own, by name, and ends are told apart.

What runs the physics needs brax, and is left out where that is not installed.
"""

import functools
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarl_tad.cli import words
from tad_envs import check, environments, make
from tad_envs.mamujoco import ROBOTS, TASKS, Limbs, task

BRAX = importlib.util.find_spec("brax") is not None
physics = pytest.mark.skipif(not BRAX, reason="brax is not installed")


def limbs(name, **options):
    """A task, also where its physics is not there."""
    fields = {"backend": "spring", "views": "local", "k": 1, "harl_norm": False, "horizon": 1000}
    return Limbs(task=name, upstream="brax-0.14.2", **fields | options)


# --------------------------------------------------------------------------------------------------
# Without physics


def test_every_joint_is_somebodys_and_nobodys_twice():
    motors = {"halfcheetah": 6, "ant": 8, "hopper": 3, "walker2d": 6, "humanoid": 17}
    for robot, shares in TASKS.values():
        joints = [joint for own in shares for joint in own]
        assert len(set(joints)) == len(joints) == motors[robot]
        assert {j for group in ROBOTS[robot].near for j in group} == set(joints)


def test_sizes_are_known_without_brax():
    sizes = {  # agents, dimensions, all that is seen, and with the angles next to one's own
        "halfcheetah_2x3": (2, 3, 17, 5 + 6 + 1),
        "halfcheetah_6x1": (6, 1, 17, 5 + 2 + 2),
        "ant_2x4": (2, 4, 27, 11 + 8 + 2),
        "ant_2x4d": (2, 4, 27, 11 + 8 + 2),
        "ant_4x2": (4, 2, 27, 11 + 4 + 3),
        "hopper_3x1": (3, 1, 11, 5 + 2 + 2),
        "walker2d_2x3": (2, 3, 17, 5 + 6 + 1),
        "humanoid_9|8": (2, 9, 244, 11 + 18 + 6),
    }
    assert set(sizes) == set(TASKS)
    for name, (agents, dimensions, full, local) in sizes.items():
        spec = limbs(name).spec
        assert (spec.n_agents, spec.action_dim) == (agents, dimensions)
        assert spec.obs_dim == local + agents
        assert limbs(name, views="full").spec.obs_dim == full + agents
        assert spec.state_dim == full + 1
        assert spec.terminates == (not name.startswith("halfcheetah"))


def test_joints_nearby_are_counted_along_the_body():
    ant = limbs("ant_4x2", k=2)
    assert limbs("ant_4x2")._neighbours(("hip_1", "ankle_1")) == ("hip_2", "hip_3", "hip_4")
    assert ant._neighbours(("hip_1", "ankle_1"))[3:] == ("ankle_2", "ankle_3", "ankle_4")
    cheetah = limbs("halfcheetah_6x1", k=2)
    assert cheetah._neighbours(("bthigh",)) == ("bshin", "fthigh", "bfoot", "fshin")
    assert limbs("hopper_3x1", k=0)._neighbours(("leg_joint",)) == ()


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.metadata.distributions", lambda **named: iter(()))
    for asked in (make, words.game_parameters):  # in Python, and in the shell
        with pytest.raises(ValueError, match=r"needs brax.*jaxmarl_tad\[brax\]") as error:
            asked("mamujoco/ant_4x2")
        assert "\n" not in str(error.value)
    monkeypatch.undo()
    listed = {name for name in environments() if name.startswith("mamujoco/")}
    assert listed == ({f"mamujoco/{name}" for name in TASKS} if BRAX else set())


def test_wrong_settings_are_refused():
    for wrong, message in (
        ({"horizon": 0}, "horizon=0"),
        ({"k": -1}, "k=-1"),
        ({"harl_norm": True}, "views='full'"),
        ({"backend": "springs"}, "spring"),
    ):
        with pytest.raises(ValueError, match=message):
            limbs("ant_4x2", **wrong)


# --------------------------------------------------------------------------------------------------
# With physics


ROBOTS_ONCE = ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "walker2d_2x3", "humanoid_9|8")


@functools.cache
def started(name):
    """A task, and some state of it."""
    env = task(name)()
    return env, jax.jit(env.reset)(jax.random.key(0))[0]


@physics
@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_an_agent_drives_its_own_joints_and_no_others(name):
    """By name, in Brax's own list of motors, through Brax's own torques."""
    env, state = started(name)
    model = env.inside.env.sys.mj_model
    actuator = __import__("brax.actuator", fromlist=["to_tau"])
    dof = {model.joint(i).name: int(model.jnt_dofadr[i]) for i in range(model.njnt)}
    torque = jax.jit(
        lambda a: actuator.to_tau(env.inside.env.sys, env.torques(a), state.inner.q, state.inner.qd)
    )
    shape = (env.spec.n_agents, env.spec.action_dim)
    still = np.asarray(torque(jnp.zeros(shape)))
    for i, own in enumerate(env.joints):
        for d in range(env.spec.action_dim):
            moved = np.flatnonzero(np.asarray(torque(jnp.zeros(shape).at[i, d].set(1.0))) != still)
            assert moved.tolist() == ([dof[own[d]]] if d < len(own) else []), (i, d)


@physics
@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("k", [0, 1])
def test_an_agent_sees_its_own_joints_and_those_nearby(name, k):
    """Turn one joint, or give it speed: exactly those see it who list it."""
    _, state = started(name)
    env = task(name)(k=k)
    inside, inner = env.inside, state.inner
    model = inside.env.sys.mj_model
    seen = np.asarray(jax.jit(env._upstreams)(inner))
    rows = jax.jit(env._local)
    before = np.asarray(rows(seen))
    place = {model.joint(i).name: (int(model.jnt_qposadr[i]), int(model.jnt_dofadr[i]))
             for i in range(model.njnt)}  # fmt: skip
    for joint in (j for own in env.joints for j in own):
        angle, speed = place[joint]
        for where, value in ((inside.position, inner.q[angle]), (inside.velocity, inner.qd[speed])):
            assert seen[where[joint]] == pytest.approx(float(value), abs=1e-6)
            other = seen.copy()
            other[where[joint]] += 0.5
            changed = (np.asarray(rows(other)) != before).any(axis=1)
            for i, own in enumerate(env.joints):
                near = where is inside.position and joint in env._neighbours(own)
                assert changed[i] == (joint in own or near), (joint, i)
    # The torso, by contrast, is seen by all, but for where it is.
    other = seen.copy()
    angles, speeds = env.robot.root
    first = min(inside.velocity.values()) - speeds
    for feature in [*range(angles), *range(first, first + speeds)]:
        other = seen.copy()
        other[feature] += 0.5
        assert (np.asarray(rows(other)) != before).any(axis=1).all()


@physics
@pytest.mark.slow
def test_one_agents_action_turns_its_own_leg_most():
    """The whole way: an action of agent i, physics, and what agent i sees of its own joints."""
    env, state = started("ant_4x2")
    step = jax.jit(lambda a: env.step(jax.random.key(0), state, a)[1].observation.agents)
    still = np.asarray(step(jnp.zeros((4, 2))))
    for i in range(4):
        turned = np.abs(np.asarray(step(jnp.zeros((4, 2)).at[i, 1].set(1.0))) - still)
        speed = turned[:, 14]  # after torso (11), angles (2) and the hip's speed (1)
        assert speed.argmax() == i
        assert speed[i] > 3 * np.delete(speed, i).max()


@physics
@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS_ONCE)
def test_robots_keep_their_promises(name):
    check(task(name)(horizon=20))


@physics
@pytest.mark.slow
def test_a_fall_ends_the_task_and_time_does_not():
    env = make("mamujoco/hopper_3x1", horizon=60)

    def run(key):
        def advance(state, key):
            action = jax.random.uniform(key, (3, 1), minval=-1.0)
            state, step = env.step(key, state, action)
            return state, (step, state.inner.q, state.inner.x.pos[0, 2])

        return jax.lax.scan(advance, env.reset(key)[0], jax.random.split(key, 60))[1]

    step, q, height = jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 16)))
    fallen = (height <= 0.7) | (np.abs(q[..., 2]) >= 0.2)
    np.testing.assert_array_equal(step.terminated, fallen)
    assert 4 <= fallen.any(axis=1).sum() < 16  # both kinds of end are seen
    last = np.zeros((16, 60), bool)
    last[:, -1] = True
    np.testing.assert_array_equal(step.truncated, last & ~fallen)


@physics
@pytest.mark.slow
def test_steps_are_braxs_own():
    """Torques by name against Brax's own environment, in its order of motors."""
    env, state = started("ant_4x2")
    theirs = env.inside.env
    action = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    flat = action[[3, 0, 1, 2]].ravel()  # legs 4, 1, 2, 3
    began = jax.jit(theirs.reset)(jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Brax's own
        expected = jax.jit(theirs.step)(began, flat)
    _, step = jax.jit(env.step)(jax.random.key(0), state, action)
    np.testing.assert_allclose(step.observation.state[:-1], expected.obs, atol=1e-4)
    assert float(step.reward) == pytest.approx(float(expected.reward), abs=1e-4)
    full = make("mamujoco/ant_4x2", views="full", harl_norm=True)
    rows = np.asarray(full._observation(expected.obs, state.inner).agents)
    own = np.append(expected.obs, [0, 1, 0, 0])
    np.testing.assert_allclose(rows[1], (own - own.mean()) / own.std(), atol=1e-5)
