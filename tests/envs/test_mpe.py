"""Particle games: against a slow loop, against JaxMARL's own transitions, and known scores."""

import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tad_envs import check, make, mpe
from tad_envs.jaxmarl import jaxmarl_env

GAMES = ("spread", "speaker_listener", "reference")
INTEGRATORS = ("pettingzoo", "openai")
RECORDED = np.load(pathlib.Path(__file__).parent / "data" / "jaxmarl_mpe.npz")
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], float)


class Slow:
    """The rules, one body at a time, in float64."""

    def __init__(self, game, world, integrator):
        self.game, self.integrator = game, integrator
        fields = ("position", "velocity", "landmark", "goal", "word")
        self.x, self.v, self.landmark, goal, self.word = (
            np.array(getattr(world, field), float) for field in fields
        )
        self.goal = [int(np.argmax(row)) for row in goal]

    def contact(self, i):
        """Force on body i from all others: 100 times a soft overlap, away from them."""
        force = np.zeros(2)
        for j in range(len(self.x)):
            away = self.x[i] - self.x[j]
            distance = np.sqrt(away @ away)
            if j != i and distance > 0:
                overlap = 1e-3 * np.logaddexp(0, (0.3 - distance) / 1e-3)
                force += 100 * overlap * away / distance
        return force

    def chosen(self, action):
        """Thrusts of the bodies, of one of five moves or as given; what is said is noted."""
        if np.ndim(action) == 2:  # numbers, of which pairs of JaxMARL's give the thrusts
            thrust = np.clip(action, -1, 1)
            if self.game == "speaker_listener":
                self.word, thrust = (1 + thrust[:1]) / 2, thrust[1:]
            if self.game == "reference":
                self.word = (1 + thrust[:, 2:]) / 2
            return thrust[:, :2]
        move = list(action)
        if self.game == "speaker_listener":
            self.word, move = np.eye(3)[action[:1]], [action[1]]
        if self.game == "reference":
            self.word, move = np.eye(10)[[a // 5 for a in action]], [a % 5 for a in action]
        return MOVES[move]

    def step(self, action):
        """Advance; returns each agent's own reward, in JaxMARL's scale."""
        thrust = self.chosen(action)
        bodies = range(len(self.x))
        force = [5 * thrust[i] for i in bodies]
        if self.game == "spread":
            force = [force[i] + self.contact(i) for i in bodies]
        for i in bodies:
            before = self.v[i].copy()
            self.v[i] = 0.75 * self.v[i] + 0.1 * force[i]
            self.x[i] = self.x[i] + 0.1 * (before if self.integrator == "pettingzoo" else self.v[i])
        if self.game == "spread":
            return self.spread_rewards()
        far = [np.linalg.norm(self.x[i] - self.landmark[self.goal[i]]) for i in bodies]
        if self.game == "speaker_listener":
            return [-(far[0] ** 2)] * 2
        return [-(sum(far) / 2 + far[1 - i]) / 2 for i in bodies]

    def spread_rewards(self):
        n = len(self.x)
        common = -sum(min(np.linalg.norm(x - place) for x in self.x) for place in self.landmark)
        near = [[np.linalg.norm(self.x[i] - self.x[j]) < 0.3 for j in range(n)] for i in range(n)]
        return [0.5 * common - 0.5 * (sum(near[i]) - 1) for i in range(n)]

    def views(self):
        """What each agent sees, without padding."""
        places = [(self.landmark - x).ravel() for x in self.x]
        if self.game == "speaker_listener":
            colour = 0.15 + 0.5 * np.eye(3)[self.goal[0]]
            return [colour, np.concatenate([self.v[0], places[0], self.word[0]])]
        if self.game == "reference":
            colours = [0.25 + 0.5 * np.eye(3)[self.goal[1 - i]] for i in range(2)]
            parts = [(self.v[i], places[i], colours[i], self.word[1 - i]) for i in range(2)]
            return [np.concatenate(part) for part in parts]
        n = len(self.x)
        others = [[self.x[j] - self.x[i] for j in range(n) if j != i] for i in range(n)]
        silence = np.zeros(2 * n - 2)
        return [
            np.concatenate([self.v[i], self.x[i], places[i], *others[i], silence]) for i in range(n)
        ]


@functools.partial(jax.jit, static_argnums=3)
def play(env, state, actions, keep_views=True):
    """States, observations and rewards of a sequence of joint actions ``[T, N]``."""

    def advance(state, action):
        state, step = env.step(jax.random.key(0), state, action)
        return state, (state, step.observation if keep_views else (), step.reward, step.truncated)

    return jax.lax.scan(advance, state, actions)[1]


@jax.jit
def start(env, seed):
    return env.reset(jax.random.key(seed))


def random_actions(env, steps, seed):
    """Random legal joint actions ``[steps, N]``; numbers, also beyond the range, ``[steps, N, D]``."""
    legal = np.asarray(start(env, 0)[1].legal)
    rng = np.random.default_rng(seed)
    if not env.spec.discrete:
        return rng.uniform(-1.5, 1.5, (steps, *legal.shape)).astype(np.float32)
    return rng.integers(0, legal.sum(axis=1), (steps, env.spec.n_agents)).astype(np.int32)


def padded(views, width):
    return np.stack([np.pad(view, (0, width - len(view))) for view in views])


RULES = [(game, kind, "discrete") for game in [*GAMES, "spread_5"] for kind in INTEGRATORS]
RULES += [(game, "pettingzoo", "continuous") for game in GAMES]


@pytest.mark.parametrize(("game", "integrator", "kind"), RULES)
def test_steps_follow_the_rules(game, integrator, kind):
    sizes = {"n_agents": 5} if game == "spread_5" else {}
    game = game.removesuffix("_5")
    env = make(f"mpe/{game}", integrator=integrator, actions=kind, **sizes)
    for seed in range(4):
        state, seen = start(env, seed)
        # A quarter of the plane in every second episode, so that bodies collide.
        state = state._replace(position=state.position * (1.0 if seed % 2 else 0.25))
        actions = random_actions(env, 25, seed)
        after = jax.device_get(play(env, state, actions, True))
        slow = Slow(game, jax.device_get(state), integrator)
        if seed % 2:
            np.testing.assert_allclose(seen.agents, padded(slow.views(), env.spec.obs_dim), atol=1e-5)
        for t, action in enumerate(actions):
            # From where the environment stands: contacts are stiff, and rounding would grow.
            rewards = slow.step(action)
            world, views, reward, _ = jax.tree.map(lambda x, t=t: x[t], after)
            team = rewards[0] if game == "speaker_listener" else sum(rewards)
            np.testing.assert_allclose(reward, team, atol=2e-5)
            np.testing.assert_allclose(world.position, slow.x, atol=1e-5)
            np.testing.assert_allclose(world.velocity, slow.v, atol=1e-4)
            expected = padded(slow.views(), env.spec.obs_dim)
            np.testing.assert_allclose(views.agents, expected, atol=1e-4)
            slow = Slow(game, world, integrator)


def world_of(game, part, t):
    """The recorded worlds at time ``t``, ``[E, ...]``; a speaker is not a body here."""
    bodies = slice(1, None) if game == "speaker_listener" else slice(None)
    episodes, landmarks = part("landmark").shape[:2]
    goal = np.eye(landmarks, dtype=np.float32)[part("goal")]
    words = {"speaker_listener": 3, "reference": 10}.get(game, 0)
    said = np.zeros((episodes, goal.shape[1], words), np.float32)
    if words and t > 0:
        last = part("action")[t - 1]
        spoken = last[:, :1] if game == "speaker_listener" else last // 5
        said = np.eye(words, dtype=np.float32)[spoken]
    return mpe.World(
        position=part("position")[t][:, bodies],
        velocity=part("velocity")[t][:, bodies],
        landmark=part("landmark"),
        goal=goal,
        word=said,
        clock=np.full(episodes, t, np.int32),
    )


def as_numbers(game, action):
    """Moves and words ``[T, E, N]`` as the thrusts and loudnesses that they mean, ``[T, E, N, D]``."""
    if game == "reference":
        words = 2 * np.eye(10)[action // 5] - 1
        return np.concatenate([MOVES[action % 5], words], axis=-1).astype(np.float32)
    if game == "speaker_listener":
        moved = np.pad(MOVES[action[..., 1]], [(0, 0), (0, 0), (0, 1)])
        return np.stack([2 * np.eye(3)[action[..., 0]] - 1, moved], axis=2).astype(np.float32)
    return MOVES[action].astype(np.float32)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("game", [*GAMES, "spread_5"])
def test_transitions_are_those_of_jaxmarl(game, kind):
    """Written by `record_jaxmarl.py` with JaxMARL 0.2.0, whose rewards come one per agent."""
    part = lambda name: RECORDED[f"{game}/{name}"]  # noqa: E731
    sizes = {"n_agents": 5} if game == "spread_5" else {}
    env = make(f"mpe/{game.removesuffix('_5')}", actions=kind, **sizes)
    taken = part("action").astype(np.int32)
    taken = taken if kind == "discrete" else as_numbers(game, taken)
    steps = part("action").shape[0]
    worlds = [world_of(game, part, t) for t in range(steps + 1)]
    before, after = (jax.tree.map(lambda *x: np.stack(x), *part) for part in (worlds[:-1], worlds[1:]))
    advance = jax.jit(jax.vmap(jax.vmap(lambda s, a: env.step(jax.random.key(0), s, a))))
    reached, step = jax.device_get(advance(before, taken))
    own = part("reward")
    team = own[..., 0] if game == "speaker_listener" else own.sum(-1)
    np.testing.assert_allclose(step.reward, team, atol=1e-5)
    for name in ("position", "velocity", "landmark", "goal", "word", "clock"):
        np.testing.assert_allclose(getattr(reached, name), getattr(after, name), atol=1e-5)
    every = steps // (part("view_0").shape[0] - 1)
    observe = jax.jit(jax.vmap(jax.vmap(env.observe)))
    shown = observe(jax.tree.map(lambda *x: np.stack(x), *worlds[::every])).agents
    for i in range(env.spec.n_agents):
        view = part(f"view_{i}")
        np.testing.assert_allclose(shown[:, :, i, : view.shape[-1]], view, atol=1e-5)
        assert not np.any(shown[:, :, i, view.shape[-1] :])


UPSTREAM = {
    "spread": "MPE_simple_spread_v3",
    "speaker_listener": "MPE_simple_speaker_listener_v4",
    "reference": "MPE_simple_reference_v3",
}


@pytest.mark.parametrize("game", GAMES)
def test_wrapped_jaxmarl_plays_the_same_game(game):
    streams = sys.stdout, sys.stderr
    upstream = jaxmarl_env(UPSTREAM[game])
    assert (sys.stdout, sys.stderr) == streams
    env = make(f"mpe/{game}")
    ours = env.spec._replace(state_dim=upstream.spec.state_dim, reset_pool=0)
    assert upstream.spec == ours
    check(upstream)
    state, seen = start(upstream, 3)
    inner = state.inner
    bodies = slice(1, 2) if game == "speaker_listener" else slice(0, env.spec.n_agents)
    goals = [] if inner.goal is None else np.atleast_1d(inner.goal)
    words = start(env, 0)[0].word
    world = mpe.World(
        inner.p_pos[bodies], inner.p_vel[bodies], inner.p_pos[env.spec.n_agents :],
        jnp.eye(3)[np.array(goals, int)], jnp.zeros_like(words), jnp.zeros((), jnp.int32),
    )  # fmt: skip
    np.testing.assert_allclose(env.observe(world).agents, seen.agents, atol=1e-5)
    actions = random_actions(env, 25, 0)
    _, theirs, their_reward, their_end = jax.device_get(play(upstream, state, actions))
    _, seen, reward, end = jax.device_get(play(env, world, actions))
    np.testing.assert_allclose(seen.agents, theirs.agents, atol=1e-4)
    np.testing.assert_array_equal(seen.legal, theirs.legal)
    np.testing.assert_allclose(reward, their_reward, atol=1e-4)
    np.testing.assert_array_equal(end, their_end)


def test_a_game_of_opponents_is_not_wrapped():
    with pytest.raises(ValueError, match="not cooperative"):
        jaxmarl_env("MPE_simple_tag_v3")


# --------------------------------------------------------------------------------------------------
# Known scores


def returns(env, policy, episodes, seed):
    """Team returns of ``policy(key, state, observation)`` from ``episodes`` starts."""

    def episode(key):
        reset_key, act_key = jax.random.split(key)

        def advance(carry, t):
            action = policy(jax.random.fold_in(act_key, t), *carry)
            state, step = env.step(act_key, carry[0], action)
            return (state, step.observation), step.reward

        return jax.lax.scan(advance, env.reset(reset_key), jnp.arange(25))[1].sum()

    return np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), episodes)))


def at_random(key, state, observation):
    uniform = jax.random.uniform(key, observation.alive.shape)
    return (uniform * observation.legal.sum(-1)).astype(jnp.int32)


def to_assigned_landmarks(key, state, observation):
    """The nearest assignment of landmarks to agents; each closes the wider gap, braking in time."""
    orders = np.array(list(itertools.permutations(range(3))))
    gaps = state.landmark[None] - state.position[:, None]
    cost = jnp.sqrt(jnp.sum(gaps**2, -1))[np.arange(3), orders].sum(-1)
    gap = gaps[np.arange(3), jnp.asarray(orders)[jnp.argmin(cost)]]
    # Left alone, speed v drifts on for 0.1 v / damping = 0.4 v.
    wanted = gap - 0.25 * state.velocity
    axis = jnp.argmax(jnp.abs(wanted), axis=1)
    error = jnp.take_along_axis(wanted, axis[:, None], axis=1)[:, 0]
    move = 1 + 2 * axis + (error > 0)
    return jnp.where(jnp.abs(error) < 0.1, 0, move).astype(jnp.int32)


def test_random_agents_score_what_is_known_of_them():
    # JaxMARL's spread: -79.9 per team in 4096 episodes of 25 steps, whose standard error is 0.37.
    scores = {name: returns(make(f"mpe/{name}"), at_random, 4096, 1) for name in GAMES[:2]}
    assert scores["spread"].mean() == pytest.approx(-79.9, abs=1.2)
    # A listener at random: 26 steps of JaxMARL cost -42.5.
    assert scores["speaker_listener"].mean() == pytest.approx(-42.5 * 25 / 26, abs=1.5)


@pytest.mark.parametrize(("integrator", "known"), [("pettingzoo", -24.3), ("openai", -22.4)])
def test_scripted_agents_score_what_is_known_of_them(integrator, known):
    env = make("mpe/spread", integrator=integrator)
    mean = returns(env, to_assigned_landmarks, 2048, 0).mean()
    assert mean == pytest.approx(known, abs=0.7)


def test_scales_of_other_libraries():
    """Per step, with G minus the nearest distances and c_i the agents that touch agent i:
    JaxMARL ½G - ½c_i; HARL sums ½G - ½(1 + c_i) over agents; EPyMARL sums G - (1 + c_i)."""
    env = make("mpe/spread", n_agents=4)
    rng = np.random.default_rng(0)
    common, touching = -rng.random((100, 25)), rng.integers(0, 3, (100, 25, 4))
    own = 0.5 * common[..., None] - 0.5 * touching
    team = own.sum((1, 2))
    expected = {
        "jaxmarl": own.sum(1).mean(-1),
        "pettingzoo": own.sum(1).mean(-1),
        "harl": (0.5 * common[..., None] - 0.5 * (1 + touching)).sum((1, 2)),
        "epymarl": (common[..., None] - (1 + touching)).sum((1, 2)),
    }
    for library, values in expected.items():
        np.testing.assert_allclose(env.to_scale(team, library), values)
    assert make("mpe/spread").to_scale(-25.8, "epymarl") == pytest.approx(-126.6)
    assert make("mpe/speaker_listener").to_scale(-5.35, "epymarl") == pytest.approx(-10.7)
    assert make("mpe/reference").to_scale(-12, "jaxmarl") == pytest.approx(-6)
    with pytest.raises(ValueError, match="squared"):
        make("mpe/reference").to_scale(-12, "epymarl")
    with pytest.raises(ValueError, match="harl"):
        env.to_scale(-12, "hardl")
    with pytest.raises(ValueError, match="local_ratio"):
        make("mpe/spread", local_ratio=0.2).to_scale(-12, "harl")


# --------------------------------------------------------------------------------------------------
# Promises


@pytest.mark.parametrize("game", GAMES)
def test_episodes_last_exactly_25_steps(game):
    env = make(f"mpe/{game}")
    state, _ = start(env, 0)
    truncated = jax.device_get(play(env, state, random_actions(env, 30, 0)))[3]
    assert truncated.tolist() == [False] * 24 + [True] * 6


@pytest.mark.parametrize(
    ("game", "parameters"),
    [
        ("spread", {"n_agents": 2, "horizon": 10}),
        ("reference", {"integrator": "openai", "damping": 0.5}),
        *((game, {"actions": "continuous"}) for game in GAMES),
    ],
)
def test_other_sizes_keep_their_promises(game, parameters):
    check(make(f"mpe/{game}", **parameters))


def test_coincident_bodies_stay_finite():
    env = make("mpe/spread")
    state, _ = start(env, 0)
    state = state._replace(position=jnp.zeros((3, 2)), landmark=jnp.zeros((3, 2)))
    after = jax.device_get(play(env, state, random_actions(env, 25, 0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    # Everybody touches two others, and one landmark for all is at no distance.
    still = jax.device_get(play(env, state, np.zeros((1, 3), np.int32)))
    assert still[2].tolist() == [-3.0]


def test_starts_cover_the_plane_and_all_goals():
    for game in GAMES:
        env = make(f"mpe/{game}")
        states, _ = jax.vmap(start, in_axes=(None, 0))(env, jnp.arange(4096))
        places = np.concatenate([states.position, states.landmark], axis=1)
        counts, *_ = np.histogram2d(*places.reshape(-1, 2).T, bins=4, range=[[-1, 1]] * 2)
        np.testing.assert_allclose(counts / counts.sum(), 1 / 16, atol=0.008)
        if states.goal.shape[1]:
            np.testing.assert_allclose(states.goal.mean(axis=0), 1 / 3, atol=0.03)


def test_a_speaker_that_says_what_is_illegal_says_nothing():
    env = make("mpe/speaker_listener")
    state, seen = start(env, 0)
    assert seen.legal.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    after = play(env, state, np.array([[4, 0]], np.int32))[0]
    assert not np.any(after.word)


def test_agents_of_spread_are_interchangeable():
    env = make("mpe/spread", n_agents=4)
    state, _ = start(env, 0)
    state = state._replace(position=0.3 * state.position)
    order = np.array([2, 0, 3, 1])
    actions = random_actions(env, 10, 0)
    swapped = state._replace(position=state.position[order])
    one = jax.device_get(play(env, state, actions, False))
    other = jax.device_get(play(env, swapped, actions[:, order], False))
    np.testing.assert_allclose(one[0].position[:, order], other[0].position, atol=1e-4)
    np.testing.assert_allclose(one[2], other[2], atol=1e-3)


def test_numbers_are_data_and_sizes_are_not(stack):
    light, heavy = make("mpe/spread", acceleration=6.0), make("mpe/spread", contact_force=50.0)
    assert light.spec == heavy.spec
    assert jax.tree.structure(light) == jax.tree.structure(heavy)
    both = stack(light, heavy)
    state, _ = light.reset(jax.random.key(0))
    action = jnp.array([1, 2, 3])
    step = jax.jit(jax.vmap(lambda env: env.step(jax.random.key(0), state, action)[0].velocity))
    velocity = step(both)
    np.testing.assert_allclose(velocity[0], 1.2 * velocity[1], atol=1e-6)
    other = make("mpe/spread", integrator="openai")
    assert jax.tree.structure(light) != jax.tree.structure(other)
    with pytest.raises(ValueError, match="local_ratio"):
        make("mpe/spread", local_ratio=2.0)
    with pytest.raises(ValueError, match="n_agents"):
        make("mpe/spread", n_agents=1)
