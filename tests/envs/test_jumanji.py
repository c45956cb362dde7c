"""jumanji's games: their traps, and our environments behind its interface.

Traces are those that `check` makes, whose programs are compiled once for both.
"""

import contextlib
import functools
import io
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, environments, jumanji, make, to_jumanji
from tad_envs.checker import _episodes, _host
from tad_envs.jumanji_interface import View

SMALL = {
    "connector": "con-5x5x3a",
    "cleaner": "clean-5x5",
    "rware": "tiny-2ag/horizon=30",
    "lbf": "8x8-2p-2f-coop/horizon=30",
}
ORACLES = [pytest.param(game, marks=pytest.mark.slow) for game in ("rware", "lbf")]
EVERY = ["connector", "cleaner", *ORACLES]


@functools.cache
def small(game):
    return make(f"jumanji/{game}/{SMALL[game]}")


@functools.cache
def trace(game):
    """Eight random episodes of three horizons without a reset, as `check` makes them."""
    env = small(game)
    keys = jax.random.split(jax.random.key(0), 8)
    return _host(_episodes(env, keys, 3 * env.spec.horizon))


@pytest.mark.parametrize("game", EVERY)
def test_small_scenarios_keep_their_promises(game):
    check(small(game))


@pytest.mark.parametrize("game", EVERY)
def test_sizes_are_known_without_upstream(game):
    for name in jumanji.SCENARIOS[game]:
        spec = make(f"jumanji/{game}/{name}").spec
        state, seen = jax.eval_shape(make(f"jumanji/{game}/{name}").reset, jax.random.key(0))
        assert seen.agents.shape == (spec.n_agents, spec.obs_dim)
        assert seen.state.shape == (spec.state_dim,)
        assert seen.legal.shape == (spec.n_agents, spec.n_actions)
        assert state.clock.shape == ()


def test_making_imports_nothing_and_keeps_the_streams():
    code = (
        "import sys, io, contextlib; from tad_envs import environments, make\n"
        "specs = [make(n).spec for n in environments() if n.startswith('jumanji/')]\n"
        "from jax._src import xla_bridge; assert not xla_bridge._backends\n"
        "assert len(specs) > 20 and not {'jaxmarl', 'jumanji', 'brax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        small("cleaner").inside  # noqa: B018
        to_jumanji(make("hallway"))
        assert sys.stdout is caught


# --------------------------------------------------------------------------------------------------
# How the states are read, against slow loops


def slow_connector_views(grid, n):
    """Per agent [5, G, G]: everybody's heads and targets, paths, and one's own."""
    views = np.zeros((n, 5, *grid.shape))
    for i, (row, column) in itertools.product(range(n), np.argwhere(grid > 0)):
        value = grid[row, column]
        turned = (value - 1 - 3 * i) % (3 * n) + 1  # the own agent is 1, 2, 3
        kind, number = (turned - 1) % 3, (turned - 1) // 3 + 1
        if kind == 0:
            views[i, 2, row, column] = 1
        else:
            views[i, 0 if kind == 1 else 1, row, column] = number / n
            views[i, 3 if kind == 1 else 4, row, column] = number == 1
    return views.reshape(n, -1)


def test_connector_shows_each_agent_the_board_with_itself_first():
    got = trace("connector")
    for e, t in itertools.product(range(8), range(0, 25, 6)):
        seen = jax.tree.map(lambda x, e=e, t=t: x[e, t], got.step.observation)
        grid = got.following.inner.grid[e, t]
        np.testing.assert_allclose(seen.agents, slow_connector_views(grid, 3), atol=1e-6)
        first = slow_connector_views(grid, 3)[0].reshape(5, 25)
        np.testing.assert_allclose(seen.state, first[:3].ravel(), atol=1e-6)


def test_connector_ends_for_all_at_once():
    got = trace("connector")
    inner, step = got.following.inner, got.step
    connected = (inner.agents.position == inner.agents.target).all(-1)
    stuck = ~inner.action_mask[..., 1:].any(-1)
    np.testing.assert_array_equal(step.terminated, (connected | stuck).all(-1))
    np.testing.assert_array_equal(step.observation.alive, ~connected)
    np.testing.assert_array_equal(step.info["won"], connected.all(-1))
    # Upstream's discount is 0 for some agents in the middle of an episode.
    going = ~(step.terminated | step.truncated)
    assert (going & (connected | stuck).any(-1)).any()
    before = (got.state.inner.agents.position == got.state.inner.agents.target).all(-1)
    np.testing.assert_allclose(step.reward, (connected & ~before).sum(-1) - 0.03 * (~before).sum(-1),
                               atol=1e-5)  # fmt: skip


def test_the_teams_reward_may_be_a_mean():
    env, seen = make("jumanji/connector/con-5x5x3a", reward="mean"), trace("connector")
    state, action = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), (seen.state, seen.action))
    inner = state.inner.replace(key=jax.random.key(0))
    _, step = jax.jit(env.step)(jax.random.key(0), state._replace(inner=inner), action)
    assert step.reward == pytest.approx(seen.step.reward[0, 0] / 3)


def test_cleaner_shows_dirt_walls_and_places():
    got = trace("cleaner")
    inner = got.following.inner
    for e, t in itertools.product(range(8), range(0, 25, 6)):
        rows = got.step.observation.agents[e, t].reshape(5, 4, 5, 5)
        crowd = np.zeros((5, 5))
        for row, column in inner.agents_locations[e, t]:
            crowd[row, column] += 0.2
        for i, (row, column) in enumerate(inner.agents_locations[e, t]):
            assert np.argwhere(rows[i, 0]).tolist() == [[row, column]]
            np.testing.assert_array_equal(rows[i, 1], inner.grid[e, t] == 0)
            np.testing.assert_array_equal(rows[i, 2], inner.grid[e, t] == 2)
            np.testing.assert_allclose(rows[i, 3], crowd, atol=1e-6)
    clean = ~(inner.grid == 0).any((-2, -1))
    np.testing.assert_array_equal(got.step.terminated, clean)
    cleaned = (got.state.inner.grid == 0).sum((-2, -1)) - (inner.grid == 0).sum((-2, -1))
    np.testing.assert_allclose(got.step.reward, cleaned - 0.5)


def test_an_illegal_action_in_a_maze_does_nothing_and_ends_nothing():
    env = small("cleaner")
    state, seen = env.reset(jax.random.key(0))
    assert not seen.legal[0, 0]  # up, out of the board
    after, step = jax.jit(env.step)(jax.random.key(1), state, jnp.zeros(5, jnp.int32))
    assert not step.terminated
    np.testing.assert_array_equal(after.inner.agents_locations, state.inner.agents_locations)


def test_masks_of_a_maze_are_where_one_can_go():
    inner = trace("cleaner").following.inner
    legal = trace("cleaner").step.observation.legal
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    for e, t in itertools.product(range(8), range(0, 25, 6)):
        walls = np.pad(inner.grid[e, t], 1, constant_values=2) == 2
        places = inner.agents_locations[e, t] + 1
        expected = [[not walls[r + dr, c + dc] for dr, dc in moves] for r, c in places]
        np.testing.assert_array_equal(legal[e, t], expected)


@pytest.mark.parametrize("game", EVERY)
def test_the_end_of_time_is_not_the_end_of_the_task(game):
    got = trace(game)
    horizon = small(game).spec.horizon
    assert not got.step.truncated[:, : horizon - 1].any()
    np.testing.assert_array_equal(got.step.truncated[:, horizon - 1 :],
                                  ~got.step.terminated[:, horizon - 1 :])  # fmt: skip
    assert (got.following.clock[:, horizon:] == horizon).all()


@pytest.mark.slow
def test_robots_end_by_collision_alone_and_shelves_are_kept():
    got = trace("rware")
    place = np.stack([got.following.inner.agents.position.x, got.following.inner.agents.position.y], -1)
    np.testing.assert_array_equal(got.step.terminated, (place[:, :, 0] == place[:, :, 1]).all(-1))
    rows = got.step.observation.agents
    assert rows.min() >= 0
    assert rows.max() <= 1
    boards = got.step.observation.state[..., :220].reshape(8, -1, 2, 110).sum(-1)
    before_end = np.cumsum(got.step.terminated, axis=1) == 0
    assert (boards[before_end] == [got.first.state[0, :110].sum(), 2]).all()
    robots = got.step.observation.state[..., 220:].reshape(8, -1, 2, 7)
    np.testing.assert_allclose(robots[..., 0] * 10, place[..., 0], atol=1e-5)
    assert (robots[..., 2:6].sum(-1) == 1).all()


@pytest.mark.slow
def test_foragers_end_when_all_is_eaten():
    got = trace("lbf")
    inner, seen = got.following.inner, got.step.observation
    np.testing.assert_array_equal(got.step.terminated, inner.food_items.eaten.all(-1))
    # Everything is in sight on this board: each view holds all of the state but what is eaten.
    own = seen.agents[:, :, 0].reshape(8, -1, 4, 3)
    assert np.abs(own).max() <= 1
    np.testing.assert_allclose(own[:, :, 2, :2] * 7, inner.agents.position[:, :, 0], atol=1e-5)
    levels = np.concatenate([inner.agents.level, inner.food_items.level], -1)
    np.testing.assert_allclose(seen.state[..., [2, 5, 8, 11]] * 4, levels, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("jumanji/connector", {"grid": 2}, "grid=2"),
        ("jumanji/connector", {"grid": 5, "agents": 9}, "agents=9 do not fit"),
        ("jumanji/cleaner", {"horizon": 0}, "horizon=0"),
        ("jumanji/cleaner", {"agents": 0}, "agents=0"),
        ("jumanji/connector/con-5x5x3a", {"reward": "max"}, "sum"),
        ("jumanji/connector/con-5x5x3", {}, "con-5x5x3a"),
    ],
)
def test_a_wrong_board_is_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(name, **parameters)


# --------------------------------------------------------------------------------------------------
# The other way round


GAMES = ("hallway/meet", "mpe/spread/actions=continuous", "ltr/synthetic")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", GAMES[:2])
def test_behind_the_interface_is_the_same_game_step_by_step(name, raw):
    env = make(name)
    ours, key = to_jumanji(env), jax.random.key(3)
    state, first = jax.jit(ours.reset)(jax.random.key_data(key) if raw else key)
    now, key = jax.random.split(key)
    inner, seen = env.reset(now)
    rng = np.random.default_rng(0)
    step, reference = jax.jit(ours.step), jax.jit(env.step)
    assert (int(first.step_type), float(first.reward), float(first.discount)) == (0, 0.0, 1.0)
    _same(first.observation, seen, 0)
    for t in range(env.spec.horizon):
        action = rng.integers(0, 3, 3).astype(np.int32)
        if not env.spec.discrete:
            action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        state, got = step(state, action)
        now, key = jax.random.split(key)
        inner, expected = reference(now, inner, action)
        _same(got.observation, expected.observation, t + 1)
        assert float(got.reward) == float(expected.reward)
        last = bool(expected.terminated | expected.truncated)
        assert int(got.step_type) == (2 if last else 1)
        assert float(got.discount) == 1 - float(expected.terminated)
        if last:
            break
    assert last


def _same(view, seen, count):
    assert isinstance(view, View)
    pairs = [(view.agents_view, seen.agents), (view.global_state, seen.state),
             (view.action_mask, seen.legal), (view.alive, seen.alive)]  # fmt: skip
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
    assert int(view.step_count) == count


@pytest.mark.parametrize("name", GAMES)
def test_upstreams_own_checks_pass(name):
    from jumanji.testing.env_not_smoke import (
        check_env_does_not_smoke,
        check_env_specs_does_not_smoke,
    )

    env = to_jumanji(make(name))
    check_env_does_not_smoke(env)
    check_env_specs_does_not_smoke(env)
    assert repr(env) == f"to_jumanji({name})"
    env.reward_spec.validate(env.reset(jax.random.key(0))[1].reward)


def test_upstreams_wrapper_draws_new_starts():
    from jumanji.wrappers import AutoResetWrapper

    env = AutoResetWrapper(to_jumanji(make("ltr/synthetic")))
    state, first = env.reset(jax.random.PRNGKey(0))
    views = [first.observation.agents_view]
    step = jax.jit(env.step)
    for _ in range(4):
        state, timestep = step(state, jnp.zeros(10, jnp.int32))
        assert int(timestep.step_type) == 2
        views.append(timestep.observation.agents_view)
    assert len({np.asarray(view).tobytes() for view in views}) == 5


def test_scenarios_are_names():
    assert "jumanji/rware/tiny-4ag-easy" in environments()
    env = make("jumanji/lbf/2s-8x8-2p-2f-coop")
    assert (env.sizes.sight, env.sizes.together, env.spec.horizon) == (2, True, 100)
