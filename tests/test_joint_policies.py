"""Annealed joint policy, MACKRL and TAD-DQN against enumeration, dynamic programming, known tables."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt
from experiments import common_knowledge as mackrl_table
from experiments import factorisation as note
from jaxmarl_tad import distributions, factorisation
from jaxmarl_tad.algorithms.joint import annealed, mackrl
from jaxmarl_tad.networks.prefix import head
from tad_envs import common_knowledge, solve

N, A = 3, 3
ACTIONS = list(itertools.product(range(A), repeat=N))
LEGAL = np.asarray([[True, True, True], [True, True, False], [True, False, True]])
SAFE = {"initial_logits": (float(np.log(9)), 0.0, 0.0)}


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def log_softmax(x):
    return jax.nn.log_softmax(x, axis=-1)


# --- the divergence -------------------------------------------------------------------------------


def test_divergence_is_that_of_a_loop():
    joint = np.asarray(log_softmax(drawn(0, 4, A**N)), np.float64)
    own = np.asarray(log_softmax(drawn(1, 4, N, A)), np.float64)
    expected = np.zeros(4)
    for k in range(4):
        for u, actions in enumerate(ACTIONS):
            product = sum(own[k, i, a] for i, a in enumerate(actions))
            expected[k] += np.exp(joint[k, u]) * (joint[k, u] - product)
    found = factorisation.kl_joint_product(jnp.asarray(joint), jnp.asarray(own))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_divergence_from_its_own_marginals_is_the_mutual_information():
    joint = log_softmax(2 * drawn(2, A**2))
    table = np.exp(np.asarray(joint, np.float64)).reshape(A, A)
    rows, columns = table.sum(1), table.sum(0)
    information = np.sum(table * np.log(table / np.outer(rows, columns)))
    marginals = factorisation.marginal_log_probs(joint, 2)
    np.testing.assert_allclose(np.exp(marginals), [rows, columns], rtol=1e-5)
    np.testing.assert_allclose(factorisation.total_correlation(joint, 2), information, rtol=1e-4)


def test_dead_agents_and_illegal_actions_add_nothing():
    alive = jnp.asarray([True, False, True])
    plans = factorisation.joint_actions(
        jt.make("matrix/custom", payoff=np.zeros((3, 3, 3)).tolist()).spec
    )
    possible = np.asarray(factorisation.possible_plans(plans, jnp.asarray(LEGAL), alive))
    allowed = [LEGAL[0, a] and b == 0 and LEGAL[2, c] for a, b, c in ACTIONS]
    assert possible.tolist() == allowed
    joint = distributions.log_probabilities(drawn(3, A**N), jnp.asarray(possible))
    own = distributions.log_probabilities(drawn(4, N, A), jnp.asarray(LEGAL))
    living = factorisation.certain_if_dead(own, alive)

    def divergence(own, joint):
        return factorisation.kl_joint_product(joint, factorisation.certain_if_dead(own, alive))

    pairs = [(u, a, c) for u, (a, _, c) in enumerate(ACTIONS) if allowed[u]]
    expected = sum(np.exp(joint[u]) * (joint[u] - own[0, a] - own[2, c]) for u, a, c in pairs)
    np.testing.assert_allclose(factorisation.kl_joint_product(joint, living), expected, rtol=1e-5)
    for slope in jax.grad(divergence, (0, 1))(own, joint):
        assert np.isfinite(slope).all()


def test_the_sampled_gradient_is_the_exact_one_in_expectation():
    """Draws of an older joint policy, so that the weights matter."""
    old, joint, own = drawn(5, A**2), drawn(5, A**2) + 0.3 * drawn(6, A**2), drawn(7, 2, A)
    plans = np.asarray(list(itertools.product(range(A), repeat=2)))

    def exact(joint, own):
        return factorisation.kl_joint_product(log_softmax(joint), log_softmax(own))

    count = 200_000
    u = jax.random.categorical(jax.random.key(0), old, shape=(count,))

    def estimate(joint, own):
        log_own = log_softmax(own)
        product = sum(log_own[i, plans[u, i]] for i in range(2))
        return factorisation.sampled_kl(
            log_softmax(joint)[u], product, log_softmax(old)[u], jnp.ones(count, bool)
        )

    (_, value), found = jax.jit(jax.value_and_grad(estimate, (0, 1), has_aux=True))(joint, own)
    known = jax.grad(exact, (0, 1))(joint, own)
    np.testing.assert_allclose(value, exact(joint, own), atol=0.02)
    for slope, expected in zip(found, known, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(slope, expected, atol=0.01)


# --- the annealed joint policy --------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_the_mixture_is_a_distribution(mixture):
    joint, own = log_softmax(drawn(8, A**2)), log_softmax(drawn(9, 2, A))
    product = factorisation.product_log_probs(own)
    found = np.exp(factorisation.mixture_log_prob(mixture, joint, product))
    expected = mixture * np.exp(joint) + (1 - mixture) * np.exp(product)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-5)


SCHEDULES = {
    # c and λ (of 2) at f = 0, .3, .5, .75, .9, .99
    "hold": ((1, 1, 1, 0.5, 0, 0), (0, 0, 1, 2, 0, 0)),
    "linear": ((1, 0.7, 0.5, 0.25, 0.1, 0.01), (0, 0.6, 1, 1.5, 1.8, 1.98)),
    "kl_only": ((1,) * 6, (0, 0.6, 1, 1.5, 1.8, 1.98)),
    "mixture_only": ((1, 0.7, 0.5, 0.25, 0.1, 0.01), (0,) * 6),
    "constant": ((1,) * 6, (2,) * 6),
    "none": ((0,) * 6, (0,) * 6),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule):
    config = annealed.Config(schedule=schedule, kl_end=2.0)
    found = [annealed.weights(config, f) for f in (0.0, 0.3, 0.5, 0.75, 0.9, 0.99)]
    np.testing.assert_allclose(np.transpose(found), SCHEDULES[schedule], atol=1e-5)


def test_exact_gradients_follow_the_known_table():
    """Spec of schedules: which of them leave [[0, -5], [-5, 10]] from p = q = .9."""
    rows, course = note.schedules()
    assert all(row["as expected"] for row in rows)
    assert len(rows) == 17
    names = [(s.schedule, s.weight, s.mixture) for s in note.SETTINGS]
    mixture_only = names.index(("mixture_only", 0.0, 1.0))
    np.testing.assert_allclose(course.joint[mixture_only, -1], 10, atol=0.05)
    np.testing.assert_allclose(course.kl[mixture_only, -1], 17.0, atol=0.2)
    np.testing.assert_allclose(course.product[names.index(("kl_only", 1.0, 1.0)), -1], 9.97, atol=0.01)
    # At a quarter of the run of the held schedule nothing has reached the product yet.
    quarter = course.product[names.index(("hold", 5.0, 1.0)), note.STEPS // 4]
    np.testing.assert_allclose(quarter, -0.8, atol=0.01)


def test_the_separatrix_is_at_three_quarters():
    payoff = np.asarray(jt.make("matrix/note001").payoff)
    p = np.asarray([0.74, 0.75, 0.76])
    logits = np.stack([np.log(p), np.log1p(-p)], axis=-1)[:, None].repeat(2, axis=1)
    nothing = jnp.zeros(4_000)
    ascend = jax.vmap(note.ascend, (None, 0, None, None, None, None))
    start = (payoff, jnp.asarray(logits, jnp.float32), jnp.zeros(4))
    payoffs = np.asarray(ascend(*start, nothing, nothing, 0.5).product)
    np.testing.assert_allclose(payoffs[[0, 2], -1], [10, 0], atol=0.1)
    # On the separatrix the gradient is 0, and J = -10 (3/4) (1/4) + 10 / 16.
    np.testing.assert_allclose(payoffs[1, 0], -1.25, atol=1e-4)


@functools.cache
def spread_game():
    """Three agents, three actions, some illegal: what π_jt may be asked of."""
    env = jt.make("matrix/custom", payoff=np.zeros((3, 3, 3)).tolist())
    observation = env.reset(jax.random.key(0))[1]
    return env, observation._replace(legal=jnp.asarray(LEGAL))


@pytest.mark.parametrize(("form", "kind"), [("listed", "table"), ("sequential", "mlp")])
def test_the_joint_policy_is_a_distribution_and_is_drawn_from(form, kind):
    env, observation = spread_game()
    config = annealed.Config(joint=form, network=kind, initial_logits=0.0)
    build = annealed._listed if form == "listed" else annealed._sequential
    together = build(config, env.spec)
    params = jax.tree.map(lambda p: p + 0.5 * drawn(1, *p.shape), together.init(jax.random.key(1)))
    view = jnp.zeros((), jnp.int32) if kind == "table" else observation.state
    each = jax.jit(jax.vmap(lambda u: together.judge(params, view, observation, u).log_prob))
    chance = np.exp(each(jnp.asarray(ACTIONS, jnp.int32)))
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-5)
    allowed = [all(LEGAL[i, a] for i, a in enumerate(u)) for u in ACTIONS]
    assert (chance[~np.asarray(allowed)] == 0).all()
    noise = jax.random.uniform(jax.random.key(2), (20_000, N))
    plans = jax.jit(jax.vmap(lambda x: together.draw(params, x, view, observation)))(noise)
    counts = np.bincount(np.ravel_multi_index(np.asarray(plans).T, (A,) * N), minlength=A**N)
    np.testing.assert_allclose(counts / 20_000, chance, atol=0.015)


GAMES = ("note001", "climbing", "penalty", "qtran", "tad", "t2", "t3")
BEST = (10, 11, 10, 8, 10, 10, 10)


def games():
    made = []
    for name in GAMES:
        given = {"pad_to": 3} if name == "note001" else {"k": -100} if name == "penalty" else {}
        own = SAFE if name == "note001" else {}
        made.append((jt.make(f"matrix/{name}", **given), own))
    return made


def hits(run, wanted):
    returns = run.final["return"].reshape(len(wanted), -1)
    return [int(np.sum(np.abs(row - end) < 1e-3)) for row, end in zip(returns, wanted, strict=True)]


LAST = {"seeds": 16, "evaluations": 1, "episodes": 1}


@pytest.mark.slow
def test_annealing_leaves_every_trap():
    assert min(hits(jt.run("annealed_joint", games(), **LAST), BEST)) >= 15


@pytest.mark.slow
def test_a_sequential_joint_policy_leaves_every_trap():
    run = jt.run("annealed_joint", games(), joint="sequential", **LAST)
    assert min(hits(run, BEST)) >= 14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "kl_end", "end"),
    [
        ("none", 1.0, 0),
        ("mixture_only", 1.0, 0),
        ("constant", 5.0, 0),
        ("linear", 1.0, 10),
        ("kl_only", 1.0, 10),
    ],
)
def test_schedules_from_samples(schedule, kl_end, end):
    run = jt.run("annealed_joint", games()[:1], schedule=schedule, kl_end=kl_end, **LAST)
    assert hits(run, [end])[0] >= 15


# --- MACKRL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agents", "count"), [(2, 1), (3, 3), (4, 3), (5, 15), (6, 15), (8, 105)])
def test_partitions_pair_everybody_but_one_of_an_odd_team(agents, count):
    ways = mackrl.pairing(agents)
    assert len(ways.formed) == count
    assert (ways.alone.sum(1) == agents % 2).all()
    assert len(np.unique(ways.formed, axis=0)) == count
    for formed, alone, of in zip(ways.formed, ways.alone, ways.pair_of, strict=True):
        members = ways.pairs[formed].ravel().tolist() + np.flatnonzero(alone).tolist()
        assert sorted(members) == list(range(agents))
        assert all(formed[of[i]] and i in ways.pairs[of[i]] for i in np.flatnonzero(~alone))


def by_hand(ways, levels, own, alive):
    """p(u) of every joint action of the living by enumerating all that may be decided."""
    chance = dict.fromkeys(ACTIONS, 0.0)
    partition, pair = np.exp(levels.partition), np.exp(levels.pair)
    for z, formed in enumerate(ways.formed):
        named = np.flatnonzero(formed)
        for choice in itertools.product(range(1 + A * A), repeat=len(named)):
            weight = partition[z] * np.prod([pair[p, x] for p, x in zip(named, choice, strict=True)])
            says = [None] * N
            for p, x in zip(named, choice, strict=True):
                if x > 0:
                    for agent, part in zip(ways.pairs[p], divmod(x - 1, A), strict=True):
                        says[agent] = part if LEGAL[agent, part] else None
            for u in ACTIONS:
                steps = [
                    1.0
                    if not alive[i]
                    else float(u[i] == says[i])
                    if says[i] is not None
                    else own[i, u[i]]
                    for i in range(N)
                ]
                chance[u] += weight * np.prod(steps)
    return np.asarray(list(chance.values()))


@pytest.mark.parametrize("alive", [(True, True, True), (True, False, True)])
def test_the_joint_probability_is_that_of_enumeration(alive):
    ways = mackrl.pairing(N)
    levels = mackrl.Levels(log_softmax(drawn(0, 3)), log_softmax(drawn(1, 3, 1 + A * A)))
    own = distributions.log_probabilities(drawn(2, N, A), jnp.asarray(LEGAL))
    told = (jnp.asarray(LEGAL), jnp.asarray(alive))
    found = np.exp(
        jax.vmap(lambda u: mackrl.log_probability(ways, levels, own, *told, u))(
            jnp.asarray(ACTIONS, jnp.int32)
        )
    )
    np.testing.assert_allclose(found, by_hand(ways, levels, np.exp(own), alive), rtol=1e-4, atol=1e-7)
    if all(alive):
        np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-5)

        # What agents do, each by itself with a common seed, has this distribution.
        def act(key):
            one, other = jax.random.split(key)
            noise = jax.random.uniform(one, (4,))
            mine = distributions.sample(jax.random.uniform(other, (N,)), own)
            decide = lambda legal, mine, i: mackrl.told(ways, levels, noise, legal, mine, i, False)  # noqa: E731
            return jax.vmap(decide)(told[0], mine, jnp.arange(N))

        actions = jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(3), 20_000))
        index = np.ravel_multi_index(np.asarray(actions).T, (A,) * N)
        counts = np.bincount(index, minlength=A**N)
        np.testing.assert_allclose(counts / 20_000, found, atol=0.015)


def test_who_is_alive_is_heard():
    levels = mackrl.Levels(drawn(0, N, 3), drawn(1, N, 3, 1 + A * A))
    heard = mackrl.heard(mackrl.pairing(N), levels, jnp.asarray([False, True, True]))
    np.testing.assert_array_equal(heard.partition, levels.partition[1])
    speakers = [1, 2, 1]  # of the pairs 01, 02 and 12
    for pair, speaker in enumerate(speakers):
        np.testing.assert_array_equal(heard.pair[pair], levels.pair[speaker, pair])


@pytest.mark.parametrize(
    "which", [(0, 3), pytest.param((0, 1, 2, 3, 4, 5), marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_exact_gradients_follow_mackrls_table(which):
    """40 seeds against the means of 40 others; each is within 0.01, or within the error of both."""
    shares = np.asarray(mackrl_table.SHARES)[list(which)]
    payoffs = mackrl_table.learned(40, tuple(shares.tolist()))
    mean = {name: values.mean(1) for name, values in payoffs.items()}
    known = {name: np.asarray(mackrl_table.KNOWN[name])[list(which)] for name in payoffs}
    for name, values in payoffs.items():
        assert all(mackrl_table.holds(x, k) for x, k in zip(values, known[name], strict=True)), name
    np.testing.assert_allclose(mean["jal"], (1 + shares) / 2, atol=2e-3)
    np.testing.assert_allclose(mean["iac"], known["iac"], atol=0.01)
    much = shares >= 0.4  # where single seeds differ little
    np.testing.assert_allclose(mean["mackrl"][much], known["mackrl"][much], atol=0.01)
    # Where all is common knowledge the pair acts on it; elsewhere the share of it does not matter.
    line = mean["mackrl"][0] * (1 - shares) + shares
    np.testing.assert_allclose(mean["mackrl"], line, atol=2e-3)


@pytest.mark.parametrize(
    "name", ["mackrl_pair", "matrix/climbing", "hallway", "two_step", "mpe/spread"]
)
def test_common_knowledge_is_common(name):
    env = jt.make(name)
    common, size = common_knowledge(env)
    _, seen = env.reset(jax.random.key(1))
    known = jax.vmap(common)(seen.agents, jnp.arange(env.spec.n_agents))
    assert known.shape == (env.spec.n_agents, size)
    np.testing.assert_allclose(known, jnp.broadcast_to(known[0], known.shape), atol=1e-5)
    if env.spec.one_hot:
        assert (np.sort(known, axis=1)[:, -1] == 1).all()
        assert (known.sum(1) == 1).all()
    if name == "mpe/spread":  # positions and landmarks of the state, without velocities
        np.testing.assert_allclose(known[0], np.r_[seen.state[:6], seen.state[12:18]], atol=1e-5)


def test_all_of_the_pairs_cases_are_told_apart_in_common_only_where_they_are():
    env = jt.make("mackrl_pair")
    common, size = common_knowledge(env)
    rows = jax.vmap(env.observe)(env.starts()[1]).agents
    codes = [
        np.argmax(jax.vmap(common)(rows[:, i], jnp.full(10, i)), axis=-1).tolist() for i in range(2)
    ]
    assert size == 3
    assert codes[0] == codes[1] == [0, 2, 2, 2, 2, 1, 2, 2, 2, 2]
    assert common_knowledge(jt.make("relay"))[1] == 1


@pytest.mark.parametrize("name", ["annealed_joint", "mackrl"])
def test_an_agents_action_depends_on_its_own_row_and_the_seed(name):
    env = jt.make("mackrl_pair")
    method = jt.algorithm(name)
    learner = method.make(method.resolved(method.settings(), env.spec), env)
    policy = learner.policy(learner.init(jax.random.key(0)), greedy=False)
    assert policy.execution == "decentralised"
    cases = jax.vmap(env.observe)(env.starts()[1])
    act = jax.jit(jax.vmap(lambda key, seen: policy.act(key, policy.start(), seen)[0], (None, 0)))
    for seed in range(20):
        actions = np.asarray(act(jax.random.key(seed), cases))
        for agent in range(2):
            rows = np.asarray(cases.agents[:, agent]).argmax(1)
            assert all(len(set(actions[rows == row, agent])) == 1 for row in set(rows))


def test_delegating_begins_as_likely_as_asked_and_one_step_has_one_return():
    # Of 1 + 3² choices, and 2 log 3 is what makes one of them as likely as nine.
    run = jt.run(
        "mackrl",
        "matrix/climbing",
        seeds=2,
        envs=16,
        total_steps=32,
        evaluations=2,
        epsilon_start=0.0,
        epsilon_end=0.0,
        delegation=[0.0, 2 * math.log(3)],
        advantage_lam=[0.0, 1.0],
    )
    named = {key: np.asarray([member[key] for member in run.members]) for key in run.members[0]}
    asked = np.where(named["delegation"] > 0, 0.5, 0.1)
    np.testing.assert_allclose(run.curves["delegates"][:, 0], asked, atol=0.01)
    near, far = (run.curves["policy_loss"][named["advantage_lam"] == lam] for lam in (0.0, 1.0))
    np.testing.assert_array_equal(near, far)


@pytest.mark.slow
def test_mackrl_leaves_every_trap():
    run = jt.run("mackrl", [game for game, _ in games()], **LAST)
    assert min(hits(run, BEST)) >= 15


# --- TAD-DQN --------------------------------------------------------------------------------------


def test_sequential_q_learning_solves_every_didactic_matrix_game():
    run = jt.run("tad_dqn", [game for game, _ in games()], **LAST)
    assert hits(run, BEST) == [16] * len(BEST)

    # Q(∅, a_1) is the best of a row and Q(a_1, a_2) the payoff itself.
    table = head("table", "sum", inputs=1, outputs=3, agents=2, actions=3, identity=True)
    zero = jnp.zeros((), jnp.int32)

    def values(params):
        first = table.read(params, zero, zero, table.empty())
        second = [
            table.read(params, zero, zero + 1, table.token(params, zero, zero, zero + a))
            for a in range(3)
        ]
        return first, jnp.stack(second)

    first, second = jax.vmap(values)(run.state.params[:, 0])
    for i, (game, _) in enumerate(games()):
        rows, columns = np.asarray(game.actions)
        payoff, mine = np.asarray(game.payoff)[:rows, :columns], slice(16 * i, 16 * i + 16)
        most = np.abs(payoff).max()
        np.testing.assert_allclose(
            second[mine, :rows, :columns], np.tile(payoff, (16, 1, 1)), atol=0.1 * most
        )
        np.testing.assert_allclose(
            first[mine, :rows], np.tile(payoff.max(1), (16, 1)), atol=0.02 * most
        )


@pytest.mark.parametrize("discount", ["block", pytest.param("fractional", marks=pytest.mark.slow)])
def test_sequential_q_learning_agrees_with_dynamic_programming(discount):
    """Hallway of two cells: V_M = V_Γ, or γ^((1 − N) / N) V_Γ where each virtual step is discounted."""
    env, gamma = jt.make("hallway", length=2, max_length=2), 0.7
    run = jt.run("tad_dqn", env, gamma=gamma, discount=discount, **LAST)
    known = solve(env, gamma)
    scale = 1.0 if discount == "block" else gamma ** ((1 - env.spec.n_agents) / env.spec.n_agents)
    seen = env.reset(jax.random.key(0))[1]

    @jax.vmap
    def first_value(member, state):
        policy = run.plan.make(member.config, member.source).policy(state, greedy=True)
        return policy.act(jax.random.key(0), policy.start(), seen)[2]["q"][0].max()

    found = np.asarray(first_value(run.stacked, run.state))
    np.testing.assert_allclose(scale * found, known.value, rtol=0.01)


@pytest.mark.slow
def test_sequential_q_learning_distils():
    teacher = jt.run("tad_dqn", [game for game, _ in games()], **LAST)
    student = jt.distill(teacher, evaluations=1, episodes=1)
    assert min(hits(student, BEST)) >= 15
    assert student.policy().execution == "decentralised"
