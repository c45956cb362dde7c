"""CTDS and COPA: students who learn with their teacher, and a coach who sends now and then."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conformance.probes import Skirmish

import jaxmarl_tad as jt
from jaxmarl_tad.networks.coach import Normal
from jaxmarl_tad.statistics import stratified_bootstrap

SMALL = {"envs": 8, "batch": 8, "capacity": 16, "hidden": (8,), "embed": 4, "hyper": 4, "watched": 4}
QUICK = {"total_steps": 128, "evaluations": 2, "episodes": 8, "progress": False}


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


# --- CTDS -----------------------------------------------------------------------------------------


@functools.cache
def pair(student_lr):
    """A teacher and its students, all with memory; every rate of the students is the same program."""
    return jt.run("ctds", "relay", memory="gru", student_lr=student_lr, **QUICK, **SMALL)


def test_the_teacher_is_what_it_would_be_without_students():
    alone, beside = (pair(rate).state for rate in (0.0, 0.02))
    for part in ("target", "replay"):
        assert same_bits(getattr(alone, part), getattr(beside, part))
    assert same_bits(alone.params.teacher, beside.params.teacher)
    assert same_bits(alone.optimiser.teacher, beside.optimiser.teacher)
    assert not same_bits(alone.params.students, beside.params.students)
    for name in ("loss", "teacher_q", "teacher_return"):
        np.testing.assert_array_equal(pair(0.0).curves[name], pair(0.02).curves[name])


def test_a_student_sees_its_own_history_alone():
    policy, env = pair(0.02).policy(), jt.make("relay")
    assert policy.execution == "decentralised"

    @jax.jit
    def play(keep):
        """Three steps; all rows but those to ``keep``, and the state, are another's."""
        state, seen = env.reset(jax.random.key(3))
        memory, told = policy.start(), []
        for t in range(3):
            rows = jnp.where(keep[:, None], seen.agents, jnp.roll(seen.agents, 1, axis=-1))
            shift = jnp.where(keep.all(), 0, 1)
            shown = seen._replace(agents=rows, state=jnp.roll(seen.state, shift), alive=keep)
            action, memory, extras = policy.act(jax.random.key(t), memory, shown)
            told.append((action, memory, extras))
            state, step = env.step(jax.random.key(0), state, action)
            seen = step.observation
        return told

    whole = jax.device_get(play(jnp.ones(2, bool)))
    for agent in range(2):
        changed = jax.device_get(play(jnp.arange(2) == agent))
        own = lambda tree, agent=agent: jax.tree.map(lambda x: x[agent], tree)  # noqa: E731
        assert same_bits(own(whole), own(changed))
        assert not same_bits(whole, changed)  # the other did see it


def test_students_learn_the_expectation_of_what_their_teacher_knows():
    """Tables: Qˢ_i(c, ·) is the mean of Qᵀ_i(s, ·) over the states that clue c leaves."""
    run = jt.run(
        "ctds",
        "relay/clue=0.5/n_targets=2/steps=2/names=1",
        seeds=4,
        evaluations=1,
        progress=False,
        watched=1,
    )
    params = jax.device_get(run.state.params)
    target = np.stack(np.unravel_index(np.arange(4), (2, 2)))  # of each agent in each state
    for seed, agent in np.ndindex(4, 2):
        taught = params.teacher.agents[seed, 0].reshape(2, 4, 2)[agent]
        learned = params.students[seed, 0].reshape(2, 3, 2)[agent]
        for clue in range(2):
            likely = np.where(target[agent] == clue, 0.75, 0.25) / 2
            np.testing.assert_allclose(learned[1 + clue], likely @ taught, atol=0.05)
        np.testing.assert_allclose(learned[0], taught.mean(0), atol=0.05)
        assert np.ptp(taught, axis=0).min() > 0.2  # which no row of the students' says


def test_students_of_what_they_see_lose_nothing():
    run = jt.run("ctds", "matrix/climbing", seeds=8, evaluations=2, progress=False, total_steps=3_200)
    np.testing.assert_array_equal(run.final["return"], run.final["teacher_return"])
    np.testing.assert_array_equal(run.final["agreement"], 1.0)


@pytest.mark.parametrize(
    ("method", "fields", "sentence"),
    [
        ("ctds", {"batch": 1024}, "batch=1024"),
        ("ctds", {"student_lr": -1.0}, "student_lr"),
        ("ctds", {"steps": 3}, "horizon"),
        ("copa", {"network": "table"}, "network='mlp'"),
        ("copa", {"beta": -1.0}, "beta"),
        ("copa", {"period": 0}, "positive"),
    ],
)
def test_impossible_settings_are_refused(method, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jt.prepare(method, "relay", **fields)


# --- COPA -----------------------------------------------------------------------------------------

FAR = 1e6
ENV = Skirmish(only=1.0)  # one action is legal: every episode has four steps


@functools.cache
def coached(beta):
    """A little learned, where agents die and what is seen changes; all thresholds are one program."""
    fields = {"period": 2, "beta": beta, "heads": 2, "z_size": 5}
    return jt.run("copa", ENV, **fields, **QUICK, **SMALL)


def parameters(run):
    return jax.tree.map(lambda x: np.asarray(x)[0], run.state.params.coach)


def slow_strategies(params, rows, state, alive):
    """Means of z by the equations, one pair of tokens at a time."""
    own = jax.tree.map(lambda x: np.asarray(x, float), params["coach"])
    lin = lambda name, x: x @ own[name]["kernel"] + own[name]["bias"]  # noqa: E731
    tokens = [np.maximum(lin("row", row), 0) for row in rows] + [np.maximum(lin("state", state), 0)]
    present, width, means = [*alive, True], len(tokens[0]), []
    for i in range(len(rows)):
        mixed = np.zeros(width)
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            query = lin("query", tokens[i])[part]
            scores = [query @ lin("key", token)[part] / np.sqrt(width) for token in tokens]
            weights = np.where(present, np.exp(scores), 0.0)
            for token, weight in zip(tokens, weights / weights.sum(), strict=True):
                mixed += weight * lin("value", token)[part] / 2
        h = np.maximum(lin("mixed", tokens[i] + mixed), 0)
        means.append(h @ own["z"]["mean"]["kernel"] + own["z"]["mean"]["bias"])
    return np.stack(means)


def played(run):
    """One greedy episode: ``(rows with indices, state, alive, what was told)`` of each step."""
    policy = run.policy()
    act = jax.jit(policy.act)
    state, seen = ENV.reset(jax.random.key(4))
    memory, shown = policy.start(), []
    for t in range(4):
        action, memory, told = act(jax.random.key(t), memory, seen)
        rows = np.concatenate([np.asarray(seen.agents), np.eye(3)], axis=1)
        shown.append((rows, np.asarray(seen.state), np.asarray(seen.alive), jax.device_get(told)))
        state, step = ENV.step(jax.random.key(0), state, action)
        seen = step.observation
    return shown


def test_held_strategies_equal_a_slow_loop():
    params = parameters(coached(0.0))
    fresh = [slow_strategies(params, *step[:3]) for step in played(coached(0.0))]
    nearer, farther = sorted(np.linalg.norm(fresh[2] - fresh[0], axis=-1)[1:])
    assert 0 < nearer < farther
    # Of the three agents two outlive the second step, and may be sent a second strategy.
    for beta, messages in ((0.0, 5), (0.5 * (nearer + farther), 4), (FAR, 3)):
        held, sent_in_all = np.zeros((3, 5)), 0
        for t, (_, _, alive, told) in enumerate(played(coached(float(beta)))):
            for i in range(3):
                due = t % 2 == 0 and alive[i]
                sent = due and (t == 0 or np.linalg.norm(fresh[t][i] - held[i]) >= beta)
                held[i] = fresh[t][i] if sent else held[i]
                assert (told["sent"][i], told["due"][i]) == (sent, due)
                sent_in_all += sent
            np.testing.assert_allclose(told["z"], held, rtol=1e-4, atol=1e-5)
        assert sent_in_all == messages


def test_the_share_of_messages():
    np.testing.assert_array_equal(coached(0.0).curves["messages"], 1.0)
    np.testing.assert_allclose(coached(FAR).curves["messages"], 3 / 5, rtol=1e-6)
    # The farther a strategy has to be from the last, the fewer are sent.
    fresh = [slow_strategies(parameters(coached(0.0)), *step[:3]) for step in played(coached(0.0))]
    far = np.linalg.norm(fresh[2] - fresh[0], axis=-1).max()
    betas = [0.0, *(float(far * share) for share in (0.25, 0.5, 0.75, 1.0)), FAR]
    share = np.stack([coached(beta).curves["messages"] for beta in betas])
    assert np.all(np.diff(share, axis=0) <= 0)
    assert len(np.unique(share[:, -1])) > 2
    # While learning everything is sent: the threshold changes nothing that is learned.
    assert same_bits(coached(0.0).state.params, coached(FAR).state.params)
    policy = coached(FAR).policy(greedy=False)
    act, memory, seen = jax.jit(policy.act), policy.start(), ENV.reset(jax.random.key(4))[1]
    for t in range(4):
        _, memory, told = act(jax.random.key(t), memory, seen)
        np.testing.assert_array_equal(told["sent"], float(t % 2 == 0))


def test_densities_and_entropies_equal_scipys():
    draw = np.random.default_rng(0)
    mean, log_variance, z = jnp.asarray(draw.normal(size=(3, 7, 4)), jnp.float32)
    normal = Normal(mean, log_variance)
    expected = scipy.stats.norm(mean, np.exp(log_variance / 2))
    np.testing.assert_allclose(normal.log_density(z), expected.logpdf(z).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal.entropy(), expected.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal.drawn(z), mean + np.exp(log_variance / 2) * z, rtol=1e-5)


def test_a_coach_hears_nothing_of_the_dead():
    policy, seen = coached(0.0).policy(), ENV.reset(jax.random.key(1))[1]
    act = jax.jit(policy.act)
    seen = seen._replace(alive=jnp.asarray([False, True, True]))
    ghost = seen._replace(agents=seen.agents.at[0].add(7.0))
    moved = seen._replace(agents=seen.agents.at[1].add(7.0))
    told = [act(jax.random.key(0), policy.start(), o)[2]["z"] for o in (seen, ghost, moved)]
    np.testing.assert_array_equal(told[0], told[1])
    assert np.all(np.any(told[0][1:] != told[2][1:], axis=-1))  # of the living everybody is told


# --- learning -------------------------------------------------------------------------------------

SEEDS = 8
RELAYS = ("relay/names=1", "relay/clue=0.5/names=1")
EQUAL = {
    "total_steps": 9_600,
    "memory": "gru",
    "lr": 2e-3,
    "lam": 0.6,
    "updates": 2,
    "epsilon_end": 0.05,
}


@functools.cache
def ends(method, name="return"):
    games = [jt.make(game) for game in RELAYS]
    fields = {"seeds": SEEDS, "evaluations": 2, "episodes": 512, "progress": False}
    run = jt.run(method, games, **fields, **EQUAL)
    return {game: run.final[name].reshape(2, SEEDS)[i] for i, game in enumerate(RELAYS)}


def interval(values):
    return stratified_bootstrap(values, np.mean)


@pytest.mark.slow
@pytest.mark.parametrize("game", RELAYS)
def test_students_reach_the_ceiling_and_no_more(game):
    ceiling, found = jt.make(game).decentralised_value(), interval(ends("ctds")[game])
    assert found[0] <= 1.02 * ceiling
    assert found[1] >= 0.9 * ceiling
    assert interval(ends("ctds", "teacher_return")[game])[1] >= 0.97 * 4


@pytest.mark.slow
def test_a_coach_earns_what_nobody_can_alone():
    game = "relay/clue=0.5/names=1"
    assert interval(ends("copa")[game])[0] > jt.make(game).decentralised_value()
