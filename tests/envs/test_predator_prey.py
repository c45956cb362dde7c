"""Hunts on a grid: against a slow loop, known optima, and what reference policies reach."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, make
from tad_envs.hunt import CATCH, STAY, Hunt

SMALL = "predator_prey/stag_hunt/size=5/n_agents=4/n_prey=3/horizon=40"
STEPS = [(0, 1), (1, 0), (0, -1), (-1, 0), (0, 0)]


class Slow:
    """The rules, one body at a time, on a dictionary of who stands where."""

    def __init__(self, env, state):
        self.env, self.size = env, env.size
        self.agents, self.prey = (
            [None if cell < 0 else divmod(int(cell), env.size) for cell in cells]
            for cells in (state.agents, state.prey)
        )

    def onward(self, place, way):
        """Where a move leads; None outside."""
        row, column = (a + b for a, b in zip(place, STEPS[way], strict=True))
        if getattr(self.env, "toroidal", False):
            row, column = row % self.size, column % self.size
        return (row, column) if 0 <= row < self.size and 0 <= column < self.size else None

    def free(self, place):
        return place is not None and place not in self.agents and place not in self.prey

    def beside(self, place):
        """Agents next to a place."""
        around = [self.onward(place, way) for way in range(4)]
        return [i for i, agent in enumerate(self.agents) if agent is not None and agent in around]

    def move_agents(self, order, action):
        for i in order:
            if self.agents[i] is not None and action[i] < STAY:
                target = self.onward(self.agents[i], action[i])
                self.agents[i] = target if self.free(target) else self.agents[i]

    def stag_hunt(self, noise, action):
        n, p = len(self.agents), len(self.prey)
        order, turns, pick, lazy = np.split(noise, np.cumsum([n, p, p]))
        self.move_agents(np.argsort(order), action)
        reward = 0.0
        for k in np.argsort(turns):
            if self.prey[k] is None:
                continue
            hands = [i for i in self.beside(self.prey[k]) if action[i] == CATCH]
            if len(hands) >= 2:
                self.prey[k], reward = None, reward + float(self.env.reward)
                for i in hands:
                    self.agents[i] = None
                continue
            reward += float(self.env.punishment) * len(hands)
            preferred = list(itertools.permutations(range(4)))[int(pick[k] * 24)]
            ways = sorted(range(4), key=lambda way, liked=preferred: -liked[way])
            targets = [self.onward(self.prey[k], way) for way in ways]
            if lazy[k] >= float(self.env.rest):
                self.prey[k] = next((t for t in targets if self.free(t)), self.prey[k])
        return reward

    def qtran(self, noise, action):
        self.move_agents(range(len(self.agents)), action)
        reward = -float(self.env.step_cost)
        for k, tries in enumerate(noise):
            if self.prey[k] is None:
                continue
            near = len(self.beside(self.prey[k]))
            reward += [0, -float(self.env.penalty)][near] if near < 2 else float(self.env.reward)
            if near >= 2:
                self.prey[k] = None
                continue
            for chance in tries:
                way = int(np.sum(chance >= np.float32(0.175) * np.arange(1, 5, dtype=np.float32)))
                target = tuple(a + b for a, b in zip(self.prey[k], STEPS[way], strict=True))
                if not any(sum(abs(np.subtract(target, agent))) == 1 for agent in self.agents):
                    inside = self.onward(self.prey[k], way)
                    self.prey[k] = target if self.free(inside) else self.prey[k]
                    break
        return reward

    def cells(self):
        bodies = (self.agents, self.prey)
        return tuple([-1 if p is None else p[0] * self.size + p[1] for p in side] for side in bodies)


@functools.partial(jax.jit, static_argnums=(2, 3))
def play(env, key, steps, policy="random"):
    """One episode that runs on: states before and after, observations, actions, keys of the steps."""
    reset_key, run_key = jax.random.split(key)

    def advance(carry, key):
        state, seen = carry
        act_key, step_key = jax.random.split(key)
        scores = jnp.where(seen.legal, jax.random.uniform(act_key, seen.legal.shape), -1)
        action = jnp.argmax(scores, axis=1).astype(jnp.int32)
        if policy == "heuristic":
            action = env.heuristic(act_key, state)
        following, step = env.step(step_key, state, action)
        return (following, step.observation), (state, seen, action, step_key, following, step)

    return jax.lax.scan(advance, env.reset(reset_key), jax.random.split(run_key, steps))[1]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (SMALL, 300),
        pytest.param(
            "predator_prey/stag_hunt/size=4/n_agents=5/n_prey=4/toroidal=True/rest=0.3",
            300,
            marks=pytest.mark.slow,
        ),
        ("predator_prey/qtran/size=5/n_agents=3/n_prey=3", 300),
    ],
)
def test_every_step_follows_the_rules(name, steps):
    env = make(name)
    seen_some = 0
    for seed in range(3):
        trace = jax.device_get(play(env, jax.random.key(seed), steps, "random"))
        state, _, action, keys, following, step = trace
        shape = (env.n_agents + 3 * env.n_prey,) if "stag" in name else (env.n_prey, 5)
        noise = np.asarray(jax.vmap(lambda k, s=shape: jax.random.uniform(k, s))(jnp.asarray(keys)))
        for t in range(steps):
            slow = Slow(env, Hunt(state.agents[t], state.prey[t], 0))
            rule = slow.stag_hunt if "stag" in name else slow.qtran
            reward = rule(noise[t], action[t].tolist())
            assert (following.agents[t].tolist(), following.prey[t].tolist()) == slow.cells(), t
            assert step.reward[t] == pytest.approx(reward, abs=1e-5), t
            gone = all(p is None for p in slow.prey) or all(a is None for a in slow.agents)
            assert step.terminated[t] == gone
            assert step.truncated[t] == (not gone and t + 1 >= env.horizon)
            seen_some += int(step.info["caught"][t] > 0)
    assert seen_some > 0


def windows(env, state):
    """What agents see, drawn on a padded board."""
    board = np.zeros((2, env.size + 4, env.size + 4))
    for layer, cells in enumerate((state.agents, state.prey)):
        for cell in cells[cells >= 0]:
            board[layer, cell // env.size + 2, cell % env.size + 2] = 1
    outside = np.ones(board.shape[1:])
    outside[2:-2, 2:-2] = 0
    board = np.concatenate([board, outside[None]])
    rows = []
    for cell in state.agents:
        row, column = divmod(int(cell), env.size)
        view = board[:, row : row + 5, column : column + 5]
        rows.append(view.ravel() if cell >= 0 else np.zeros(75))
    return np.array(rows)


def test_hunters_see_a_window_and_may_catch_next_to_prey():
    env = make(SMALL, walls=True)
    state, seen, *_ = jax.device_get(play(env, jax.random.key(3), 60, "heuristic"))
    gone = False
    for t in range(60):
        now = Hunt(state.agents[t], state.prey[t], 0)
        np.testing.assert_array_equal(seen.agents[t], windows(env, now))
        slow = Slow(env, now)
        for i, agent in enumerate(slow.agents):
            assert seen.alive[t, i] == (agent is not None)
            if agent is None:
                gone = True
                assert np.flatnonzero(seen.legal[t, i]).tolist() == [STAY]
                continue
            moves = [slow.onward(agent, way) is not None for way in range(5)]
            prey = any(i in slow.beside(place) for place in slow.prey if place is not None)
            assert seen.legal[t, i].tolist() == [*moves, prey]
        table = seen.state[t].reshape(-1, 3)
        cells = np.concatenate([now.agents, now.prey])
        assert table[:, 2].tolist() == (cells >= 0).tolist()
        there = cells >= 0
        np.testing.assert_allclose(
            (table[there, 0] + 1) * 2 * 5 + (table[there, 1] + 1) * 2, cells[there]
        )
    assert gone


def test_what_one_agent_cannot_see_does_not_change_its_view():
    env = make("predator_prey/stag_hunt", size=10, n_agents=2, n_prey=2)
    near = Hunt(jnp.array([0, 99]), jnp.array([12, 88]), jnp.zeros((), jnp.int32))
    far = near._replace(prey=jnp.array([12, 55]))
    observe = jax.jit(env.observe)
    one, other = observe(near), observe(far)
    assert np.array_equal(one.agents[0], other.agents[0])
    assert not np.array_equal(one.agents[1], other.agents[1])
    assert not np.array_equal(one.state, other.state)


def test_catching_together_pays_and_alone_costs():
    env = make("predator_prey/stag_hunt/size=5/n_agents=2/n_prey=1", punishment=-1.5, horizon=1)
    state = Hunt(jnp.array([11, 13]), jnp.array([12]), jnp.zeros((), jnp.int32))
    step = jax.jit(env.step)
    after, done = step(jax.random.key(0), state, jnp.array([CATCH, CATCH]))
    # The task ended in the last step: that is its end, not the clock's.
    assert (float(done.reward), bool(done.terminated), bool(done.truncated)) == (10.0, True, False)
    assert after.agents.tolist() == [-1, -1]
    assert not done.observation.alive.any()
    _, alone = step(jax.random.key(0), state, jnp.array([CATCH, STAY]))
    assert (float(alone.reward), bool(alone.truncated)) == (-1.5, True)
    _, nobody = step(jax.random.key(0), state, jnp.array([STAY, STAY]))
    assert float(nobody.reward) == 0.0


def test_starts_cover_the_grid_without_overlap():
    env = make("predator_prey/stag_hunt/size=4/n_agents=4/n_prey=4")
    keys = jax.random.split(jax.random.key(0), 10_000)
    state = jax.device_get(jax.jit(jax.vmap(lambda k: env.reset(k)[0]))(keys))
    cells = np.concatenate([state.agents, state.prey], axis=1)
    assert (np.diff(np.sort(cells, axis=1)) > 0).all()
    for who in cells.T:
        expected = len(keys) / 16
        chi2 = np.sum((np.bincount(who, minlength=16) - expected) ** 2 / expected)
        assert chi2 < 40  # 15 degrees of freedom: beyond this once in 2000
    env = make("predator_prey/qtran")
    state = jax.device_get(jax.jit(jax.vmap(lambda k: env.reset(k)[0]))(keys))
    places = [np.stack(np.divmod(cells, 5), -1) for cells in (state.agents, state.prey)]
    assert (np.abs(places[0] - places[1]).sum(-1) > 1).all()
    assert set(state.prey.ravel()) == set(state.agents.ravel()) == set(range(25))


def test_agents_and_prey_of_the_stag_hunt_are_interchangeable():
    """Other orders of turns are as likely; with room for all they do not matter."""
    env = make("predator_prey/stag_hunt/size=10/n_agents=3/n_prey=1/rest=1")
    state = Hunt(jnp.array([0, 44, 46]), jnp.array([45]), jnp.zeros((), jnp.int32))
    action, order = jnp.array([0, CATCH, CATCH]), jnp.array([2, 0, 1])
    key = jax.random.key(0)
    step = jax.jit(env.step)
    one, first = step(key, state, action)
    other, second = step(key, state._replace(agents=state.agents[order]), action[order])
    assert np.array_equal(one.agents[order], other.agents)
    assert np.array_equal(first.observation.agents[order], second.observation.agents)
    assert first.reward == second.reward == 10.0


def test_punishments_run_in_one_program(stack):
    games = [make(SMALL, punishment=p) for p in (0.0, -1.0, -2.0)]
    assert len({game.spec for game in games}) == 1
    run = jax.jit(jax.vmap(lambda env: play(env, jax.random.key(0), 40, "random")[5]))
    step = jax.device_get(run(stack(*games)))
    np.testing.assert_allclose(
        step.reward,
        10 * step.info["caught"] - np.array([0, 1, 2])[:, None] * step.info["missed"],
    )
    assert step.info["missed"].sum() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("predator_prey/stag_hunt/punishment=2", "did you mean -2"),
        ("predator_prey/stag_hunt/n_agents=1", "n_agents=1"),
        ("predator_prey/stag_hunt/size=3", "more cells than size=3"),
        ("predator_prey/stag_hunt/rest=2", "rest=2"),
        ("predator_prey/qtran/penalty=-0.5", r"did you mean 0\.5"),
        ("predator_prey/qtran/n_agents=5", "no room"),
        ("predator_prey/stag_hnt", "predator_prey/stag_hunt"),
    ],
)
def test_wrong_parameters_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        SMALL + "/walls=True",
        "predator_prey/stag_hunt/toroidal=True/rest=0.5",
        "predator_prey/qtran/size=7/n_agents=4/n_prey=2",
    ],
)
def test_other_sizes_keep_their_promises(name):
    check(make(name))


@functools.partial(jax.jit, static_argnums=(2, 3))
def returns(env, key, episodes, policy):
    """Return of each episode, and whether the task ended in it."""
    run = jax.vmap(lambda k: play(env, k, env.spec.horizon, policy)[5])
    step = run(jax.random.split(key, episodes))
    over = step.terminated | step.truncated
    running = jnp.cumsum(over, axis=1) - over == 0
    return jnp.sum(step.reward * running, axis=1), jnp.any(step.terminated & running, axis=1)


REFERENCE = {
    ("predator_prey/stag_hunt", "random"): (-94.2, 1.2, 40),
    ("predator_prey/stag_hunt", "heuristic"): (38.61, 0.12, 40),
    ("predator_prey/stag_hunt/punishment=0", "random"): (5.21, 0.28, 40),
    (SMALL, "random"): (-14.64, 0.39, 20),
    (SMALL, "heuristic"): (17.82, 0.18, 20),
    ("predator_prey/qtran", "random"): (-6.85, 0.17, 0.99),
    ("predator_prey/qtran", "heuristic"): (0.51, 0.05, 0.99),
    ("predator_prey/qtran/size=7/n_agents=4/n_prey=2", "random"): (-11.08, 0.24, 1.99),
    ("predator_prey/qtran/size=7/n_agents=4/n_prey=2", "heuristic"): (1.01, 0.06, 1.99),
}
"""Mean return of 512 episodes, its standard error, and the most that can be had.

Two agents leave with each prey: 10 for half of the agents. QTRAN's prey cannot be caught before the
first step has been paid for.
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "policy"), REFERENCE)
def test_reference_policies_score_as_measured(name, policy):
    mean, error, best = REFERENCE[name, policy]
    got, ended = jax.device_get(returns(make(name), jax.random.key(1), 512, policy))
    assert got.mean() == pytest.approx(mean, abs=6 * error)
    assert got.max() <= best + 1e-4
    if policy == "heuristic":
        assert got.max() == pytest.approx(best, abs=0.011)
        assert ended.mean() > 0.75
