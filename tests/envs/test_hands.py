"""Two palms and a ball: what holds without the physics, and (where MJX is installed) what it does."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, environments, make, random_action
from tad_envs.hands import Throw, ThrowCatch, throw_catch

MJX = any(True for _ in importlib.metadata.distributions(name="mujoco-mjx"))
physics = pytest.mark.skipif(not MJX, reason="MJX is not installed")


def state(joints=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), ball=(-0.3, 0.04), speed=None):
    """Hands and ball put by hand."""
    place = np.append(np.ravel(joints), ball).astype(np.float32)
    speed = np.zeros(8, np.float32) if speed is None else np.asarray(speed, np.float32)
    return Throw(jnp.asarray(place), jnp.asarray(speed), jnp.zeros((), bool), jnp.zeros((), jnp.int32))


def test_an_agent_sees_itself_the_ball_and_the_other_palm():
    env, blind = ThrowCatch(), ThrowCatch(partner=False)
    joints, speed = ((0.1, -0.1, 0.3), (-0.05, 0.2, -0.4)), np.arange(8) / 10
    seen = env.observe(state(joints, (0.0, 0.5), speed))
    assert seen.agents.shape == (2, env.spec.obs_dim)
    assert seen.state.shape == (env.spec.state_dim,)
    for i, side in enumerate((-0.3, 0.3)):
        x, z, tilt = joints[i]
        palm, other = np.array([x + side, z]), np.array([joints[1 - i][0] - side, joints[1 - i][1]])
        row = [*joints[i], *speed[3 * i : 3 * i + 3], *palm, np.sin(tilt), np.cos(tilt)]
        row += [*(np.array([0.0, 0.5]) - palm), *(speed[6:] - speed[3 * i : 3 * i + 2])]
        row += [*(other - palm), i == 0, i == 1]
        np.testing.assert_allclose(seen.agents[i], row, atol=1e-6)
    moved = (joints[0], (0.1, 0.1, 0.1))
    rows = [blind.observe(state(j, (0.0, 0.5), speed)).agents[0] for j in (joints, moved)]
    np.testing.assert_array_equal(*rows)


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    assert ("hands/throw_catch" in environments()) == MJX
    monkeypatch.setattr("importlib.metadata.distributions", lambda **named: iter(()))
    with pytest.raises(ValueError, match=r"needs mujoco-mjx.*jaxmarl_tad\[mjx\]") as error:
        make("hands/throw_catch")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="horizon=0"):
        ThrowCatch(horizon=0)


# --------------------------------------------------------------------------------------------------
# With physics

WAYS = ("idle", "random", "heuristic")
EPISODES = 48


@functools.cache
def episodes():
    """Whole episodes of each policy: states before and after, steps; ``[way, episode, step]``."""
    env = throw_catch()

    def episode(way, key):
        def advance(carry, key):
            state, seen = carry
            rows = [jnp.zeros((2, 3)), random_action(env.spec, key, seen), env.heuristic(key, state)]
            following, step = env.step(key, state, jnp.stack(rows)[way])
            return (following, step.observation), (state, following, step)

        return jax.lax.scan(advance, env.reset(key), jax.random.split(key, env.horizon))[1]

    keys = jax.random.split(jax.random.key(3), EPISODES)
    each = jax.vmap(jax.vmap(episode, in_axes=(None, 0)), in_axes=(0, None))
    return env, *jax.device_get(jax.jit(each)(jnp.arange(len(WAYS)), keys))


@physics
@pytest.mark.slow
def test_a_ball_that_is_held_stays_and_hands_never_touch():
    _, _, after, step = episodes()
    assert not step.terminated[0].any()
    palms = after.place[..., :6].reshape(*after.place.shape[:-1], 2, 3)
    held = after.place[0, ..., 6:] - palms[0, ..., 0, :2] - [-0.3, 0.04]
    assert np.abs(held[:, 10:]).max() < 0.05  # between the lips
    assert np.isfinite(after.place).all()
    gap = 0.6 + palms[..., 1, 0] - palms[..., 0, 0]
    assert gap.min() > 2 * 0.09 + 0.06  # both palms with their lips, and the ball


@physics
@pytest.mark.slow
def test_rewards_and_ends_are_those_told():
    env, before, after, step = episodes()
    place, speed = after.place.astype(float), after.speed.astype(float)
    x, z, tilt = np.moveaxis(place[..., 3:6], -1, 0)
    hold = np.stack([x + 0.3 + 0.04 * np.sin(tilt), z + 0.04 * np.cos(tilt)], axis=-1)
    apart = np.linalg.norm(place[..., 6:] - hold, axis=-1)
    calm = np.linalg.norm(speed[..., 6:] - speed[..., 3:5], axis=-1) < 0.5
    held = (apart < 0.05) & calm
    np.testing.assert_array_equal(after.caught, before.caught | held)
    np.testing.assert_allclose(step.reward, np.exp(-5 * apart) + (held & ~before.caught), atol=1e-4)
    lost = place[..., 7] < np.minimum(place[..., 1], place[..., 4]) - 0.3
    np.testing.assert_array_equal(step.terminated, lost)
    assert lost[1].any()
    last = np.arange(env.horizon) == env.horizon - 1
    np.testing.assert_array_equal(step.truncated, last & ~lost)


@physics
@pytest.mark.slow
def test_a_script_throws_and_catches_and_chance_does_not():
    _, _, after, step = episodes()
    over = np.cumsum(step.terminated, axis=-1) - step.terminated > 0
    total = np.where(over, 0, step.reward).sum(-1).mean(-1)
    caught = (after.caught & ~over).any(-1).mean(-1)
    assert caught[0] == 0
    assert caught[1] < 0.05
    assert caught[2] == pytest.approx(0.85, abs=0.15)
    assert total[0] == pytest.approx(4.0, abs=0.6)
    assert total[2] > 25


@physics
@pytest.mark.slow
def test_a_hand_moves_its_own_joints_only():
    env = throw_catch()
    step = jax.jit(lambda a: env.step(jax.random.key(0), state(), a)[0].place)
    still = np.asarray(step(jnp.zeros((2, 3))))
    for i, joint in np.ndindex(2, 3):
        moved = np.abs(np.asarray(step(jnp.zeros((2, 3)).at[i, joint].set(1.0))) - still)[:6]
        assert moved[3 * i + joint] > 0.01
        np.testing.assert_allclose(moved[3 * (1 - i) : 3 * (1 - i) + 3], 0, atol=1e-6)


@physics
@pytest.mark.slow
def test_hands_keep_their_promises_and_can_be_drawn():
    env = make("hands/throw_catch")
    check(env)
    scene = env.scene(jax.device_get(state(ball=(0.1, 0.2))))
    assert [point.kind for point in scene.points].count("food") == 1
