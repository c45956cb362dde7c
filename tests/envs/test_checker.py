"""Every registered environment keeps its promises; the checker notices when one does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import kept, steps, tiers

from tad_envs import check, make, struct
from tad_envs.hallway import Hallway
from tad_envs.mpe import Spread


@pytest.mark.parametrize("name", tiers())
def test_registered_environments_keep_their_promises(name):
    check(kept(name), steps=steps(kept(name)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("matrix/tad", {"repeats": 4, "pad_to": 5}),
        ("hallway", {"length": 2, "max_length": 4, "n_agents": 3, "n_actions": 3}),
        ("hallway/meet", {"lengths": (3, 2), "clock": True}),
        ("matrix/gaussian_squeeze", {"n_agents": 2, "multi_domain": True}),
    ],
)
def test_other_sizes_keep_their_promises(name, parameters):
    check(make(name, **parameters))


def test_random_games_keep_their_promises(random_game):
    check(random_game(0))


@struct
class Broken(Hallway):
    """A hallway with one fault."""

    fault: str = ""

    @property
    def spec(self):
        spec = super().spec
        if self.fault == "horizon":
            return spec._replace(horizon=1)
        return spec._replace(terminates=self.fault != "clock")

    def observe(self, state):
        seen = super().observe(state)
        if self.fault == "one-hot":
            return seen._replace(state=seen.state + 1)
        if self.fault == "legal":
            return seen._replace(legal=seen.legal & False)
        if self.fault == "varying":
            return seen._replace(legal=seen.legal.at[0, 0].set(seen.state[0] > 0))
        if self.fault == "nan":
            return seen._replace(agents=seen.agents / 0)
        if self.fault == "shape":
            return seen._replace(state=seen.state[:-1])
        return seen

    def outcomes(self, state, action):
        probability, following, reward, terminated = super().outcomes(state, action)
        if self.fault == "distribution":
            probability = probability / 2
        return probability, following, reward, terminated

    def step(self, key, state, action):
        following, step = super().step(key, state, action)
        if self.fault == "model":
            step = step._replace(reward=step.reward + 1)
        if self.fault == "both":
            step = step._replace(truncated=step.terminated)
        if self.fault == "early":
            step = step._replace(truncated=~step.terminated)
        if self.fault == "dtype":
            step = step._replace(reward=step.reward.astype(jnp.int32))
        if self.fault == "state":
            following = following.astype(jnp.float32)
        if self.fault == "host":
            jax.debug.callback(print, step.reward)
        if self.fault == "info":
            step = step._replace(info={"place": jnp.zeros(2)})
        return following, step


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("horizon", "longer than spec.horizon=1"),
        ("clock", "spec.terminates is False"),
        ("one-hot", "not one-hot"),
        ("legal", "no legal action"),
        ("varying", "what is legal differs between states"),
        ("early", "the clock ran out before"),
        ("nan", "not finite"),
        ("shape", r"observation.state has shape \(1,\), expected \(2,\)"),
        ("distribution", "not a distribution"),
        ("model", "not in outcomes"),
        ("host", "step calls back to the host"),
        ("both", "both terminated and truncated"),
        ("dtype", "reward is int32, expected float32"),
        ("state", "after reset and"),
        ("info", "expected"),
    ],
)
def test_a_broken_promise_is_named(fault, message):
    env = Broken(
        length=np.float32(2),
        penalty=np.float32(0),
        waiting=np.float32(0),
        max_length=2,
        fault=fault,
    )
    with pytest.raises(ValueError, match=message):
        check(env)


@struct
class Restarting(Spread):
    """Begins again by itself when its time is over, inside of a step."""

    def step(self, key, state, action):
        following, step = super().step(key, state, action)
        clock = jnp.where(step.truncated, 0, following.clock)
        return following._replace(clock=clock), step


def test_a_step_that_resets_is_named():
    with pytest.raises(ValueError, match="as if it began anew"):
        check(Restarting(horizon=2))


def test_a_weak_type_is_named():
    @struct
    class Weak(Hallway):
        def reset(self, key):
            _, observation = super().reset(key)
            return jax.lax.select(True, 0, 0), observation

    env = Weak(length=np.float32(1), penalty=np.float32(0), waiting=np.float32(0), max_length=1)
    with pytest.raises(ValueError, match="weak type"):
        check(env)
