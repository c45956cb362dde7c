"""SMAX: step by step against JaxMARL's own, what was put right, and what reference policies reach."""

import contextlib
import functools
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, make
from tad_envs.smax import MAPS, UPSTREAM, Battle, Smax

STOP = 4


def policy(env, kind, key, state, seen):
    """What the allies do."""
    if kind == "heuristic":
        return env.heuristic(key, state)
    if kind == "idle":
        return jnp.full(env.spec.n_agents, STOP, jnp.int32)
    scores = jnp.where(seen.legal, jax.random.uniform(key, seen.legal.shape), -1)
    return jnp.argmax(scores, axis=1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def play(env, key, episodes, steps, kinds):
    """Episodes that run on past their end, one row for each kind of policy: ``[K, E, T]``."""

    def episode(key, choice):
        reset_key, run_key = jax.random.split(key)

        def advance(carry, key):
            state, seen = carry
            act_key, step_key = jax.random.split(key)
            options = jnp.stack([policy(env, kind, act_key, state, seen) for kind in kinds])
            action = options[choice]
            following, step = env.step(step_key, state, action)
            return (following, step.observation), (state, seen, action, step_key, following, step)

        return jax.lax.scan(advance, env.reset(reset_key), jax.random.split(run_key, steps))[1]

    keys = jax.random.split(key, episodes)
    return jax.vmap(jax.vmap(episode, (0, None)), (None, 0))(keys, jnp.arange(len(kinds)))


KINDS = ("random", "heuristic", "idle")


@pytest.fixture(scope="module")
def marines():
    """256 battles of each kind, beyond their end, all made by one program: ``[K, E, T]``."""
    env = make("smax/3m")
    return env, jax.device_get(play(env, jax.random.key(0), 256, 130, KINDS))


def running(step):
    """Steps at or before the end of each episode."""
    over = step.terminated | step.truncated
    return np.cumsum(over, axis=-1) - over == 0


@pytest.mark.slow
def test_every_step_is_jaxmarls(marines):
    """State, rewards, views and what is legal, on random and scripted battles, also past their end."""
    env, (state, _, action, keys, following, step) = marines
    upstream = env._inside
    from jaxmarl.environments.smax.heuristic_enemy_smax_env import State

    @jax.jit
    @jax.vmap
    def theirs(key, inner, memory, action):
        actions = {agent: action[i] for i, agent in enumerate(upstream.agents)}
        before = State(state=inner, enemy_policy_state=memory)
        seen, after, reward, _, _ = upstream.step_env(key, before, actions)
        legal = upstream.get_avail_actions(after)
        rows = [jnp.stack([x[a] for a in upstream.agents]) for x in (seen, reward, legal)]
        return (after.state, after.enemy_policy_state), *rows

    def cut(tree):
        return jax.tree.map(lambda x: x[:2, :20, :30].reshape(-1, *x.shape[3:]), tree)

    after, views, rewards, legal = theirs(
        *jax.tree.map(jnp.asarray, cut((keys, state.inner, state.memory, action)))
    )
    ours = cut(following)
    for one, other in zip(
        jax.tree.leaves(after), jax.tree.leaves((ours.inner, ours.memory)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)
    seen = cut(step).observation
    np.testing.assert_allclose(views, seen.agents, atol=1e-4)
    assert (np.asarray(legal, bool) == seen.legal).mean() > 0.9999  # a distance may round to the range
    np.testing.assert_allclose(rewards, np.repeat(cut(step).reward[:, None], 3, 1), atol=1e-5)


def test_ends_and_results_are_those_of_the_state(marines):
    env, (_, _, _, _, following, step) = marines
    alive = following.inner.unit_alive
    allies, enemies = alive[..., :3].sum(-1), alive[..., 3:].sum(-1)
    over = (allies == 0) | (enemies == 0)
    np.testing.assert_array_equal(step.terminated, over)
    late = np.arange(130) >= env.horizon - 1
    np.testing.assert_array_equal(step.truncated, late & ~over)
    np.testing.assert_array_equal(step.info["won"], (enemies == 0) & (allies > 0))
    np.testing.assert_array_equal(step.info["draw"], (enemies == 0) & (allies == 0))
    np.testing.assert_array_equal(step.info["allies_left"], allies)
    np.testing.assert_array_equal(step.info["enemies_left"], enemies)
    np.testing.assert_array_equal(step.observation.alive, alive[..., :3])
    stops = np.arange(8) == STOP
    assert (step.observation.legal[~step.observation.alive] == stops).all()
    assert (np.diff(following.inner.unit_health, axis=2) <= 0).all()


def test_a_battle_without_an_end_lasts_a_hundred_steps(marines):
    env, _ = marines
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    # Two sides that have lost sight of each other, in opposite corners and with their memory there.
    far = jnp.array([[2.0, 2.0]] * 3 + [[30.0, 30.0]] * 3) + jnp.arange(6)[:, None] * 0.1

    def hide(state):
        inner = state.inner.replace(unit_positions=far, unit_health=jnp.full(6, 45.0))
        return state._replace(inner=inner, seen=jnp.zeros_like(state.seen))

    @jax.jit
    def run(state):
        def advance(state, key):
            following, step = env.step(key, hide(state), jnp.full(3, STOP, jnp.int32))
            return following, (step.terminated, step.truncated, step.observation.state[-1])

        return jax.lax.scan(advance, state, jax.random.split(jax.random.key(0), 102))[1]

    terminated, truncated, time = run(state)
    assert not terminated.any()
    assert np.flatnonzero(truncated)[0] == 99
    np.testing.assert_allclose(time[:100], np.arange(1, 101) / 100, rtol=1e-5)


def test_the_state_stays_within_its_bounds(marines):
    env, (_, _, _, _, following, step) = marines
    seen = step.observation
    assert np.abs(seen.state).max() <= 1.0
    assert np.abs(seen.agents).max() <= 1.0
    # Upstream's cooldowns are those of units that do not shoot: they have fallen far.
    assert following.inner.unit_weapon_cooldowns.min() < -20
    n, actions = 3, env.spec.n_actions
    assert env.spec.state_dim == (10 + actions) * n + 10 * 3 + 1 == seen.state.shape[-1]
    blocks = seen.state[..., : 10 * 6].reshape(*seen.state.shape[:-1], 6, 10)
    alive = following.inner.unit_alive
    assert (blocks[~alive] == 0).all()
    np.testing.assert_allclose(blocks[..., 0], following.inner.unit_health / 45, atol=1e-6)
    np.testing.assert_allclose(
        blocks[..., 1:3][alive], following.inner.unit_positions[alive] / 16 - 1, atol=1e-5
    )
    last = seen.state[..., 60:-1].reshape(*seen.state.shape[:-1], n, actions)
    np.testing.assert_array_equal(last.argmax(-1), following.action)


def test_idle_allies_are_killed(marines):
    _, (_, _, _, _, following, step) = marines
    lost = step.terminated[2] & (following.inner.unit_alive[2, ..., :3].sum(-1) == 0)
    assert lost.any(axis=1).all()
    first = lost.argmax(axis=1)
    assert 8 < first.mean() < 20
    assert step.info["won"][2].sum() == 0


def test_scripted_allies_win_half_and_random_ones_nothing(marines):
    _, (_, _, _, _, _, step) = marines
    counts = running(step)
    won = (step.info["won"].astype(bool) & counts).any(axis=-1).mean(axis=1)
    total = (step.reward * counts).sum(axis=-1)
    assert won[0] <= 0.02
    assert won[1] == pytest.approx(0.5, abs=0.12)
    assert total[0].mean() == pytest.approx(0.18, abs=0.04)
    assert total[1].mean() == pytest.approx(1.42, abs=0.15)
    victories = total[1][(step.info["won"][1].astype(bool) & counts[1]).any(axis=-1)]
    np.testing.assert_allclose(victories, 2.0, atol=1e-4)


def test_sizes_of_all_maps_are_known_without_upstream():
    code = (
        "import sys, tad_envs\n"
        "specs = {n: tad_envs.make(n).spec for n in tad_envs.environments() if n.startswith('smax/')}\n"
        "assert 'jaxmarl' not in sys.modules\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
        "print(*(f'{n}:{s.n_agents}:{s.obs_dim}:{s.n_actions}' for n, s in specs.items()))"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr
    found = dict(row.split(":", 1) for row in done.stdout.split())
    assert len(found) == len(MAPS)
    known = {
        "3m": "3:75:8",
        "5m_vs_6m": "5:140:11",
        "3s_vs_8z-300": "3:140:13",
        "27m_vs_30m": "27:738:35",
    }
    assert {name: found[f"smax/{name}"] for name in known} == known
    assert make("smax/3s_vs_8z-300").spec.horizon == 300
    assert make("smax/3s_vs_5z-250").spec.horizon == 250
    assert make("smax/3m", horizon=40).spec.horizon == 40


def test_the_import_of_upstream_leaves_the_streams_alone():
    with contextlib.redirect_stdout(io.StringIO()) as told:
        before = sys.stdout
        make("smax/3m").spec  # noqa: B018
        make("smax/3m")._inside  # noqa: B018
        assert sys.stdout is before
    assert told.getvalue() == ""


def test_another_version_of_upstream_is_refused(monkeypatch):
    assert make("smax/3m").upstream == UPSTREAM
    with pytest.raises(ValueError, match="upstream"):
        Smax(allies=(0,), enemies=(0,), random=False, horizon=10, upstream="jaxmarl-0.1.0")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.3.0")
    with pytest.raises(ValueError, match=r"jaxmarl-0\.2\.0.*found jaxmarl-0\.3\.0"):
        jax.eval_shape(make("smax/8m").reset, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smax/3s_vs_8z", "smax/3s_vs_8z-300"),
        ("smax/3n", "smax/3m"),
        ("smax/3m/horizon=0", "horizon=0"),
        ("smax/3m/horizn=3", "did you mean 'horizon'"),
    ],
)
def test_wrong_maps_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make(name)


# --------------------------------------------------------------------------------------------------
# Longer ones


@pytest.mark.slow
def test_units_of_random_maps_start_on_the_field():
    env = make("smax/smacv2_5_units")
    keys = jax.random.split(jax.random.key(0), 2048)
    state, _ = jax.jit(jax.vmap(env.reset))(keys)
    place = np.asarray(state.inner.unit_positions)
    assert place.min() >= 1.0
    assert place.max() <= 31.0
    stop = jnp.full(env.spec.n_agents, STOP, jnp.int32)
    after: Battle = jax.jit(jax.vmap(lambda k, s: env.step(k, s, stop)[0]))(keys, state)
    fought = np.asarray(after.inner.unit_health < state.inner.unit_health)
    dead = ~np.asarray(after.inner.unit_alive)
    assert (dead & ~fought).sum() == 0
    assert dead.any(axis=1).mean() < 0.02
    assert len(np.unique(np.asarray(state.inner.unit_types))) == 6


@pytest.mark.slow
def test_views_follow_the_agents_beyond_ten():
    """Agent 10 stands behind agent 2, not before it as names are sorted."""
    env = make("smax/10m_vs_11m")
    shape = jax.eval_shape(env.reset, jax.random.key(0))[1]
    assert shape.agents.shape == (10, env.spec.obs_dim)
    assert env._inside.all_agents[10] == "enemy_0"
    names = env._inside.all_agents
    seen = {name: jnp.full(3, float(i)) for i, name in enumerate(names)}
    assert env._views(seen)[:, 0].tolist() == list(range(21))


REFERENCE = {
    "3m": (0.504, 1.41, 0.178),
    "8m": (0.488, 1.39, 0.177),
    "2s3z": (0.496, 1.41, 0.201),
    "5m_vs_6m": (0.0, 0.571, 0.145),
    "3s_vs_5z-250": (0.0, 0.297, 0.219),
    "3s_vs_8z-300": (0.0, 0.136, 0.116),
    "6h_vs_8z": (0.0, 0.622, 0.318),
    "3s5z_vs_3s6z": (0.0, 0.619, 0.174),
}
"""Win rate and return of the scripted allies, and return of random ones; 256 battles."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_reference_policies_do_as_measured(name):
    env = make(f"smax/{name}")
    episodes = 256 if env.spec.n_agents < 9 else 64
    rows = play(env, jax.random.key(1), episodes, env.horizon, ("heuristic", "random"))
    step = jax.device_get(rows[-1])
    counts = running(step)
    won = (step.info["won"].astype(bool) & counts).any(axis=-1).mean(axis=1)
    total = (step.reward * counts).sum(axis=-1).mean(axis=1)
    rate, scripted, chance = REFERENCE[name]
    assert won[0] == pytest.approx(rate, abs=0.02 + 4 * np.sqrt(rate * (1 - rate) / episodes))
    assert total[0] == pytest.approx(scripted, abs=0.06 + 0.15 * (rate > 0.02))
    assert total[1] == pytest.approx(chance, abs=0.04)
    assert won[1] <= 0.02
    assert np.abs(step.observation.state).max() <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smacv2_5_units", "3s5z_vs_3s6z"])
def test_other_maps_keep_their_promises(name):
    check(make(f"smax/{name}"))
