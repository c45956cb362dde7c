"""What is learned from data, compared with closed forms, brute force and slow loops.

The game of two agents and two actions with payoffs 0, 1, 1 and -2 has data sets whose answers can be
written down, among them one from which OMIGA leaves what the data support.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.probes import Skirmish

import jaxmarl_tad as jt
from jaxmarl_tad import dataset
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.algorithms.offline import conservative, omiga
from jaxmarl_tad.offline import actor, lesson, relative
from jaxmarl_tad.train import train

PAYOFF = np.array([[0.0, 1.0], [1.0, -2.0]])
DATA = {
    "without 11": [(0, 0), (0, 1), (1, 0)] * 4,
    "all": [(0, 0), (0, 1), (1, 0), (1, 1)] * 3,
    "apart": [(0, 1), (1, 0)] * 6,
    "skewed": [(0, 0)] * 6 + [(0, 1)] * 3 + [(1, 0)] * 2 + [(1, 1)],
}
ALPHAS = (0.2, 0.5, 1.0, 2.0, 10.0, 1e6)


def recorded(payoff, actions):
    """Episodes of one step in a game of one state."""
    env = jt.make("matrix/custom", payoff=np.asarray(payoff).tolist())
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    ends = np.array([True]), np.array([False])
    return env, dataset.from_episodes(
        [
            dataset.Episode(shown, np.array([a]), np.array([np.asarray(payoff)[tuple(a)]]), *ends)
            for a in actions
        ],
        env.spec,
    )


GAME = recorded(PAYOFF, DATA["all"])[0]


def learner(name, data, **fields):
    method = METHODS[name]
    return method.make(method.resolved(method.settings(**fields), data.spec), data)


def probabilities(made, state):
    """π_i(a) in the only state, ``[N, A]``."""
    seen = GAME.reset(jax.random.key(0))[1]
    policy = made.policy(jax.tree.map(jnp.asarray, state), greedy=False)
    _, _, told = policy.act(jax.random.key(0), policy.start(), seen)
    return jnp.exp(told["log_probs"])


# --- OMIGA ----------------------------------------------------------------------------------------


@functools.cache
def solved():
    """OMIGA on every data set with every α, one program: π, parameters and the mean of exp z."""

    @jax.jit
    def learned(data):
        def one(alpha):
            made = learner("omiga", data, alpha=alpha)
            state, curves = train(
                made, lambda p, k: {}, jax.random.key(0), iterations=2_000, evaluations=1
            )
            return probabilities(made, state), state, curves["exp_z"][-1]

        return jax.vmap(one)(jnp.asarray(ALPHAS))

    return {name: jax.device_get(learned(recorded(PAYOFF, DATA[name])[1])) for name in DATA}


def exponential_rows(gap):
    """π_i(1) where Q_i(1) − Q_i(0) is ``gap`` / w_i and the data have action 1 with this chance."""
    return lambda p, alpha: p * np.exp(gap / alpha) / (1 - p + p * np.exp(gap / alpha))


EXACT = {
    "without 11": lambda alpha: exponential_rows(1.0)(1 / 3, alpha),
    "all": lambda alpha: exponential_rows(-1.0)(1 / 2, alpha),
    "apart": lambda alpha: 0.5,
}


@pytest.mark.parametrize("name", EXACT)
def test_omiga_is_the_closed_form(name):
    policy, _, _ = solved()[name]
    for alpha, p in zip(ALPHAS, policy[..., 1], strict=True):
        np.testing.assert_allclose(p, EXACT[name](alpha), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "alpha", "p", "value"),
    [
        ("without 11", 0.2, 0.9867, -1.9209),
        ("without 11", 0.5, 0.7870, -0.9034),
        ("without 11", 1.0, 0.5761, -0.1754),
        ("without 11", 2.0, 0.4519, 0.0870),
        ("without 11", 10.0, 0.3559, 0.2051),
        ("all", 0.5, 0.1192, None),
        ("all", 1.0, 0.2689, None),
        ("all", 10.0, 0.4750, None),
    ],
)
def test_omiga_is_the_published_table(name, alpha, p, value):
    """The first data set shows it leaving them: the smaller α, the surer of (1, 1), never taken."""
    found = solved()[name][0][ALPHAS.index(alpha), :, 1]
    np.testing.assert_allclose(found, p, atol=1e-3)
    if value is not None:
        joint = np.multiply.outer([1 - found[0], found[0]], [1 - found[1], found[1]])
        assert np.sum(joint * PAYOFF) == pytest.approx(value, abs=5e-3)


@pytest.mark.parametrize("name", DATA)
def test_values_of_omiga_are_soft_maxima(name):
    """E exp z = 1, and V_i = α / w_i log E exp(w_i Q_i / α) under the data."""
    _, state, exp_z = solved()[name]
    np.testing.assert_allclose(exp_z, 1.0, atol=0.02)
    taken = np.asarray(DATA[name])
    share = np.stack([(taken == a).mean(0) for a in (0, 1)], axis=-1)  # [N, A]
    params = state.params
    q, v = params.q["own"][:, 0].reshape(-1, 2, 2), params.v[:, 0].reshape(-1, 2)
    w = np.abs(1 + params.q["mixer"][:, 0, :2])
    for i, alpha in enumerate(ALPHAS[:-1]):  # V's slope falls as 1 / α and then vanishes
        scale = w[i, :, None] / alpha
        soft = np.log(np.sum(share * np.exp(scale * q[i]), axis=-1)) / scale[:, 0]
        np.testing.assert_allclose(v[i], soft, atol=5e-3)


def test_omiga_with_a_large_alpha_imitates():
    np.testing.assert_allclose(solved()["skewed"][0][-1, :, 1], [3 / 12, 4 / 12], atol=2e-3)


def test_beyond_its_end_the_exponential_is_its_tangent():
    """Where z is too large V must rise; the clamp lets w V / α pull it down instead."""

    def slope(extrapolation, v):
        config = omiga.Config(extrapolation=extrapolation)
        return jax.grad(lambda v: omiga.exponential(config, 12.0 - v) + v)(v)

    assert slope("linear", 0.0) < 0 < slope("clamp", 0.0)
    assert slope("linear", 5.0) == slope("clamp", 5.0) == pytest.approx(1 - np.exp(7), rel=1e-5)
    config = omiga.Config()
    points = jnp.asarray([10 - 1e-3, 10.0, 10 + 1e-3])
    below, at, above = np.asarray(omiga.exponential(config, points), np.float64)
    assert above - at == pytest.approx(at - below, rel=0.05)


def test_targets_are_those_of_a_slow_loop():
    """Ends, cuts and dead agents: one more gradient step, whose errors are summed one by one."""
    env = Skirmish(one_hot=True)
    data = learners.recorded(env)
    assert data.terminated.sum() >= 1
    assert data.truncated.sum() >= 1
    assert not data.alive[data.valid].all()
    made = learner("omiga", data, batch=64, window=1, gamma=0.9)
    step, key = jax.jit(made.step), jax.random.key(3)
    state = made.init(jax.random.key(0))
    for i in range(30):
        state, _ = step(jax.random.key(i), state, 0.0)
    _, told = step(key, state, 0.0)
    params, target = jax.device_get((state.params, state.target))

    def weighed(mixer, row):
        out = mixer[np.argmax(data.state[row])]
        return np.where(data.alive[row], np.abs(1 + out[:3]), 0.0), out[3]

    errors, terms = [], []
    for row in data.rows:
        here = np.arange(3) * 10 + data.agents[row].argmax(-1)
        there = np.arange(3) * 10 + data.agents[row + 1].argmax(-1)
        w, b = weighed(params.q["mixer"], row)
        total = np.sum(w * params.q["own"][0, here, data.action[row]]) + b
        w, b = weighed(target.q["mixer"], row + 1)
        beyond = np.sum(w * target.v[0, there, 0]) + b
        goal = data.reward[row] + (0.0 if data.terminated[row] else 0.9 * beyond)
        errors.append(0.5 * (goal - total) ** 2)
        w, _ = weighed(target.q["mixer"], row)
        z = w * (target.q["own"][0, here, data.action[row]] - params.v[0, here, 0])
        terms.extend(np.exp(z)[data.alive[row]])
    assert told["q_loss"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert told["exp_z"] == pytest.approx(np.mean(terms), rel=1e-4)


# --- data -----------------------------------------------------------------------------------------


def test_windows_with_memory_are_episodes_acted_through():
    """A network with memory says of every recorded row what it says when it acts up to there."""
    env = Skirmish(one_hot=False)
    data = learners.recorded(env)
    config = METHODS["bc"].config(memory="gru", hidden=(6,), network="mlp")
    policies = actor(config, env.spec)
    params = policies.init(jax.random.key(1))
    seen = lesson(data, jax.random.key(2), 12, 7)
    out = np.asarray(policies.outputs(params, seen))
    log_prob = np.asarray(policies.log_prob(params, seen))
    policy = policies.policy(params, greedy=True)
    act = jax.jit(policy.act)
    valid, first = np.asarray(seen.valid), np.asarray(seen.first)
    assert first[0].all()
    assert first[1:].sum() >= 5
    for b in range(12):
        for t in range(7):
            if first[t, b]:
                memory = policy.start()
            shown = jax.tree.map(lambda x, t=t, b=b: x[t, b], seen.seen)
            _, memory, told = act(jax.random.key(0), memory, shown)
            if valid[t, b]:
                chosen = np.asarray(seen.action[t, b])
                expected = np.asarray(told["log_probs"])[np.arange(3), chosen]
                np.testing.assert_allclose(log_prob[t, b], expected, rtol=1e-4, atol=1e-5)
    assert out.shape == (8, 12, 3, 3)


def test_a_stretch_is_rows_of_the_data_in_their_order():
    data = learners.recorded(Skirmish())
    drawn, valid = dataset.draw_windows(data, jax.random.key(0), 200, 6)
    drawn, valid = jax.device_get((drawn, valid))
    starts = {tuple(data.reward[r : r + 1]) + tuple(data.state[r]) for r in data.rows}
    rows = len(data.reward)
    for b in range(200):
        assert valid[0, b]
        assert (*drawn.reward[:1, b], *drawn.observation.state[0, b]) in starts
        fits = [
            r
            for r in data.rows
            if all(
                not valid[t, b]
                or (
                    r + t < rows
                    and data.valid[r + t]
                    and data.reward[r + t] == drawn.reward[t, b]
                    and (data.action[r + t] == drawn.action[t, b]).all()
                    and (data.agents[r + t] == drawn.observation.agents[t, b]).all()
                    and (data.agents[r + t + 1] == drawn.next.agents[t, b]).all()
                )
                for t in range(6)
            )
        ]
        assert fits


def test_members_share_the_data():
    """Fifteen more members take less than two more copies of what they learn from."""
    env, small = recorded(PAYOFF, DATA["all"])
    many = {
        field.name: np.concatenate([getattr(small, field.name)] * 4_000)
        for field in dataclasses.fields(small)
        if isinstance(getattr(small, field.name), np.ndarray) and field.name != "rows"
    }
    data = dataclasses.replace(small, **many, rows=np.flatnonzero(many["valid"]).astype(np.int32))
    size = sum(x.nbytes for x in jax.tree.leaves(data))
    runs = [
        jt.run("bc", data, eval_env=env, seeds=seeds, total_steps=2, batch=4, evaluations=1)
        for seeds in (1, 16)
    ]
    assert runs[1].stacked.source.reward.shape == data.reward.shape
    alone, all_together = (run.timing["peak_bytes"] for run in runs)
    assert alone >= size / 2  # what nobody asks for is left out
    assert all_together - alone < 2 * size


def test_two_weights_are_two_members_of_one_program():
    env, data = recorded(PAYOFF, DATA["without 11"])
    run = jt.run("omiga", data, eval_env=env, alpha=[0.2, 1e6], evaluations=1)
    assert [row["alpha"] for row in run.members] == [0.2, 1e6]
    np.testing.assert_array_equal(run.final["return"], [-2.0, 0.0])


# --- other methods, in the same game --------------------------------------------------------------


def settled(name, data, iterations=1_500, **fields):
    """Learner and state after so many gradient steps, compiled as a whole."""

    @jax.jit
    def run(data):
        made = learner(name, data, **fields)
        return train(made, lambda p, k: {}, jax.random.key(0), iterations=iterations, evaluations=1)

    return learner(name, data, **fields), *run(data)


SHARE = np.array([[9 / 12, 3 / 12], [8 / 12, 4 / 12]])


@pytest.mark.parametrize(("name", "fields"), [("bc", {}), ("icq", {"policy_temperature": 1e6})])
def test_imitation_is_the_share_of_each_action(name, fields):
    _, data = recorded(PAYOFF, DATA["skewed"])
    made, state, _ = settled(name, data, **fields)
    np.testing.assert_allclose(probabilities(made, state), SHARE, atol=2e-3)


def test_relative_weights_are_the_soft_max_of_the_batch():
    x, counts = np.array([1.0, 2.0, 900.0, -3.0], np.float32), np.array([True, True, False, True])
    expected = np.exp(x[counts]) / np.exp(x[counts]).mean()
    found = np.asarray(relative(jnp.asarray(x), jnp.asarray(counts)))
    np.testing.assert_allclose(found[counts], expected, rtol=1e-5)
    assert found[2] == 0


def test_icq_is_its_fixed_point():
    """π_i(a) ∝ share(a) exp(A_i(a) / β): the baseline falls out of one state's soft-max."""
    _, data = recorded(PAYOFF, DATA["all"])
    made, state, _ = settled("icq", data, policy_temperature=1.0)
    q = state.params.q["own"][0].reshape(2, 2)
    soft = np.exp(q) / np.exp(q).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities(made, state), soft, atol=5e-3)


def test_independent_conservative_learning_is_its_fixed_point():
    """share (Q − mean reward) + c (softmax Q − share) = 0, by slow gradient descent in NumPy."""
    _, data = recorded(PAYOFF, DATA["skewed"])
    _, state, _ = settled("iql_cql", data, conservative=0.5)
    taken = np.asarray(DATA["skewed"])
    reward = PAYOFF[taken[:, 0], taken[:, 1]]
    means = np.array([[reward[taken[:, i] == a].mean() for a in (0, 1)] for i in (0, 1)])
    q = np.zeros((2, 2))
    for _ in range(20_000):
        soft = np.exp(q) / np.exp(q).sum(-1, keepdims=True)
        q -= 0.1 * (SHARE * (q - means) + 0.5 * (soft - SHARE))
    np.testing.assert_allclose(state.params.q["own"][0].reshape(2, 2), q, atol=5e-3)


def penalties(name, data, state, **fields):
    """The penalty that one more gradient step reports, and Q_tot of every joint action."""
    made = learner(name, data, **fields)
    _, told = jax.jit(made.step)(jax.random.key(9), state, 0.0)
    method = METHODS[name]
    config = method.resolved(method.settings(**fields), data.spec)
    n, actions = data.spec.n_agents, data.spec.n_actions
    q = jnp.asarray(state.params.q["own"][0].reshape(n, actions))
    seen = jax.tree.map(
        lambda x: jnp.asarray(x)[None, :1], dataset.at(data, jnp.asarray(data.rows)).observation
    )
    total = conservative.team(config, data.spec).total
    joint = np.zeros((actions,) * n)
    for action in itertools.product(range(actions), repeat=n):
        chosen = q[np.arange(n), np.asarray(action)][None, None]
        joint[action] = float(total(state.params.q["mixer"], chosen, seen)[0, 0, 0])
    return float(told["penalty"]), joint


def lse(x, axis=None):
    return np.log(np.sum(np.exp(x), axis=axis))


def test_with_a_linear_mixer_the_penalty_is_that_of_joint_actions():
    _, data = recorded(PAYOFF, DATA["skewed"])
    _, state, _ = settled("cql_ma", data, iterations=50)
    told, joint = penalties("cql_ma", data, state)
    taken = np.asarray(DATA["skewed"])
    assert told == pytest.approx(lse(joint) - joint[taken[:, 0], taken[:, 1]].mean(), rel=1e-4)


def test_the_counterfactual_penalty_is_a_sum_over_agents():
    _, data = recorded(PAYOFF, DATA["skewed"])
    fields = {"embed": 4, "mix_hidden": 4, "focus": 2.0}
    _, state, _ = settled("cfcql", data, iterations=50, **fields)
    told, joint = penalties("cfcql", data, state, **fields)
    logits = np.asarray(state.params.behaviour)[0].reshape(2, 2)
    behaviour = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = []
    for a, b in DATA["skewed"]:
        rows = np.stack([joint[:, b], joint[a]])
        model = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
        apart = np.sum(model * np.log(model / behaviour), axis=-1)
        share = np.exp(2 * apart) / np.exp(2 * apart).sum()
        expected.append(np.sum(share * lse(rows, axis=1)) - joint[a, b])
    assert told == pytest.approx(np.mean(expected), rel=1e-4)


def test_of_one_agent_the_counterfactual_penalty_is_the_usual_one():
    _, data = recorded(PAYOFF, DATA["skewed"])
    first = {name: getattr(data, name)[:, :1] for name in ("agents", "legal", "alive", "action")}
    data = dataclasses.replace(data, **first, spec=data.spec._replace(n_agents=1))
    fields = {"embed": 4, "mix_hidden": 4, "focus": 2.0}
    _, state, _ = settled("cfcql", data, iterations=50, **fields)
    told, joint = penalties("cfcql", data, state, **fields)
    assert told == pytest.approx(lse(joint) - joint[first["action"][data.rows]].mean(), rel=1e-4)


def test_only_what_was_likely_is_chosen_from():
    """Action 1 is half as likely as action 0, and the better one by the additive fit."""
    env, data = recorded(PAYOFF, DATA["without 11"])
    run = jt.run("bcq_ma", data, eval_env=env, threshold=[0.4, 0.6], evaluations=1)
    np.testing.assert_array_equal(run.final["return"], [-2.0, 0.0])
    np.testing.assert_allclose(run.final["choices"], [2.0, 1.0], atol=0.05)  # of the whole run


# --- numbers --------------------------------------------------------------------------------------


def numbers(reward):
    """Actions uniform in a game of one state and numbers, paid by ``reward`` of all of them."""
    env = jt.make("matrix/product")
    _, seen = env.reset(jax.random.key(0))
    shown = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), seen)
    actions = np.random.default_rng(0).uniform(-2, 2, size=(64, 1, *np.shape(shown.agents)[1:2], 1))
    ends = np.array([True]), np.array([False])
    made = [dataset.Episode(shown, a, np.array([reward(a)]), *ends) for a in actions]
    return env, dataset.from_episodes(made, env.spec)


def mean_action(name, data, **fields):
    made, state, curves = settled(name, data, iterations=200, **fields)
    seen = jt.make("matrix/product").reset(jax.random.key(0))[1]
    policy = made.policy(state, greedy=True)
    return np.asarray(policy.act(jax.random.key(0), policy.start(), seen)[0]).mean(), state, curves


def test_the_scale_of_q_is_held_still():
    """All Q have one sign: as published its gradient is 0 exactly there, and the policy stays."""
    _, data = numbers(lambda a: 5 + a.mean())
    fields = {"imitation": 0.0, "action_coef": 0.0, "batch": 64}
    moved, state, _ = mean_action("iddpg_bc", data, **fields)
    assert moved > 1.0
    gradient = {}
    for scaling in ("stopped", "published"):
        # No step of Adam's would be small; what one step leaves of the first moment is the gradient.
        made = learner("iddpg_bc", data, scaling=scaling, **fields)
        fresh = state._replace(optimiser=made.init(jax.random.key(0)).optimiser)
        after = jax.jit(made.step)(jax.random.key(1), fresh, 0.0)[0]
        gradient[scaling] = float(np.abs(jax.tree.leaves(after.optimiser.policy)[1]).max())
    assert gradient["published"] < 1e-6 < 1e-4 < gradient["stopped"]


@pytest.mark.slow
def test_without_its_search_omar_is_conservative():
    _, data = numbers(lambda a: float(np.prod(a)))
    _, one, _ = mean_action("omar", data, search=0.0)
    _, other, _ = mean_action("iddpg_cql", data)
    learners.assert_close(one.params, other.params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["omar", "iddpg_cql", "maddpg_cql", "iddpg_bc"])
def test_numbers_that_pay_are_found(name):
    """r = Σ a: everything says to go up, and the data hold actions up to the end."""
    _, data = numbers(lambda a: float(a.sum()))
    moved, _, _ = mean_action(name, data, **({"imitation": 0.1} if name == "iddpg_bc" else {}))
    assert moved > 1.0


# --- what is good in the data is kept ---------------------------------------------------------------

EXPERT = list(itertools.product([0] * 18 + [1, 2], repeat=2))
"""Both agents of climbing take the best action, and each errs one time in ten by itself."""
DISCRETE = [
    row.name for row in METHODS.values() if row.family == "offline" and "discrete" in row.actions
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_an_expert_is_not_unlearned(name):
    env = jt.make("matrix/climbing")
    payoff = np.asarray(env.payoff)
    _, data = recorded(payoff, EXPERT)
    run = jt.run(name, data, eval_env=env, seeds=8, evaluations=1)
    behaviour = data.reward.sum() / data.episodes
    assert (run.final["return"] >= behaviour - 0.05 * abs(behaviour)).all()


def test_evaluation_is_where_it_is_said():
    env, data = recorded(PAYOFF, DATA["apart"])
    with pytest.raises(ValueError, match="eval_env"):
        jt.run("bc", data)
    with pytest.raises(ValueError, match="learns from a dataset"):
        jt.run("bc", env)
    with pytest.raises(ValueError, match="not from the dataset"):
        jt.run("vdn", data)
    with pytest.raises(ValueError, match="recorded in"):
        jt.run("bc", data, eval_env="matrix/climbing")


NUMBERS = [
    row.name for row in METHODS.values() if row.family == "offline" and "continuous" in row.actions
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_an_expert_with_numbers_is_not_unlearned(name):
    """Both agents of r = x y stay near 1.7, of at most 2."""
    env, data = numbers(lambda a: float(np.prod(a)))
    close = np.clip(1.7 + 0.05 * data.action, -2, 2)
    reward = np.where(data.valid, np.prod(close[..., 0], axis=-1), 0.0).astype(np.float32)
    data = dataclasses.replace(data, action=close, reward=reward)
    run = jt.run(name, data, eval_env=env, seeds=4, evaluations=1)
    behaviour = reward.sum() / data.episodes
    assert (run.final["return"] >= 0.95 * behaviour).all(), run.final["return"]
