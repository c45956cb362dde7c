"""Games of partial information: rules, known optima, and the search over decentralised policies."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarl_tad as jt
from tad_envs import make, optimal, solve, solve_decentralised

# --------------------------------------------------------------------------------------------------
# Dec-Tiger

# (actions, tiger's side) to reward, written out from Nair et al. 2003: 0 listens, 1 opens left,
# 2 opens right; the side is 0 left, 1 right.
TIGER = {
    (0, 0): (-2, -2),
    (1, 1): (-50, 20),
    (2, 2): (20, -50),
    (1, 2): (-100, -100),
    (2, 1): (-100, -100),
    (0, 1): (-101, 9),
    (1, 0): (-101, 9),
    (0, 2): (9, -101),
    (2, 0): (9, -101),
}


def test_the_tiger_pays_and_bites_as_published():
    env = make("dec_tiger")
    states, actions = env.starts()[1], jnp.array(list(TIGER))
    outcomes = jax.vmap(jax.vmap(env.outcomes, in_axes=(None, 0)), in_axes=(0, None))(states, actions)
    assert np.array_equal(outcomes[2][..., 0].T, list(TIGER.values()))


@pytest.mark.parametrize("accuracy", [0.85, 1.0])
def test_the_tiger_is_heard_only_while_all_listen(accuracy):
    env = make("dec_tiger", accuracy=accuracy, horizon=2)
    left = jax.tree.map(lambda x: x[0], env.starts()[1])
    for action in itertools.product(range(3), repeat=2):
        probability, following, _, ended = env.outcomes(left, jnp.array(action))
        table = collections.Counter()
        for p, tiger, heard in zip(probability, following.tiger, following.heard, strict=True):
            table[int(tiger), *heard.tolist()] += float(p)
        quiet = action == (0, 0)
        for (tiger, *heard), p in table.items():
            expected = (1.0 if tiger == 0 else 0.0) if quiet else 0.5
            for sound in heard:
                right = accuracy if quiet else 0.5
                expected *= right if sound == 1 + tiger else 1 - right
            assert p == pytest.approx(expected, abs=1e-6)
        assert not ended.any()


def tiger_value(policies, horizon, accuracy=0.85):
    """Value of two policies over histories of sounds (0 nothing, 1 left, 2 right), by recursion."""

    def value(tiger, one, other, left):
        if left == 0:
            return 0.0
        action = policies[0][one], policies[1][other]
        total = float(TIGER[action][tiger])
        quiet = action == (0, 0)
        for side, a, b in itertools.product(range(2), (1, 2), (1, 2)):
            p = float(side == tiger) if quiet else 0.5
            for sound in (a, b):
                right = accuracy if quiet else 0.5
                p *= right if sound == 1 + side else 1 - right
            if p > 0:
                total += p * value(side, (*one, a), (*other, b), left - 1)
        return total

    return sum(value(tiger, (0,), (0,), horizon) for tiger in (0, 1)) / 2


@pytest.mark.parametrize(("horizon", "value"), [(1, -2.0), (2, -4.0), (3, 5.1908)])
def test_the_best_decentralised_values_of_the_tiger_are_the_published_ones(horizon, value):
    env = make("dec_tiger", horizon=horizon)
    solution = solve_decentralised(env)
    assert solution.value == pytest.approx(value, abs=1e-4)
    assert solve(env).value == pytest.approx(20 * horizon)
    # Observations are numbered by content; the policies are those of an independent recursion.
    sound = [int(np.argmax(row)) for row in solution.observations]
    policies = [
        {tuple(sound[o] for o in history): action for history, action in policy.items()}
        for policy in solution.policies
    ]
    assert all(len(history) <= horizon for policy in policies for history in policy)
    assert tiger_value(policies, horizon) == pytest.approx(solution.value, abs=1e-5)


def test_a_tiger_that_is_heard_for_sure_costs_one_step_of_listening():
    assert solve_decentralised(make("dec_tiger", accuracy=1.0, horizon=2)).value == -2 + 20


def test_discounting_reaches_the_search():
    assert solve_decentralised(make("dec_tiger", horizon=2), gamma=0.5).value == pytest.approx(-3)


def test_a_search_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"dec_tiger/horizon=3: more than limit=100 "):
        solve_decentralised(make("dec_tiger", horizon=3), limit=100)
    with pytest.raises(ValueError, match="cannot be solved"):
        solve_decentralised(make("matrix/gaussian_squeeze", n_agents=2))


def brute_force(game, steps):
    """Best product of deterministic policies over (step, place) for agents that see the place."""
    joint = list(itertools.product(range(game.actions), repeat=game.agents))
    places = game.payoff.shape[0]
    own = list(itertools.product(range(game.actions), repeat=steps * places))
    best = -np.inf
    for policies in itertools.product(own, repeat=game.agents):
        value = np.zeros(places)
        for t in reversed(range(steps)):
            later, value = value, np.zeros(places)
            for s in range(places):
                j = joint.index(tuple(policy[t * places + s] for policy in policies))
                p = game.transition[s, j].astype(float)
                value[s] = game.payoff[s, j] + (1 - game.ending[s, j]) * (p / p.sum() @ later)
        best = max(best, value.mean())
    return best


@pytest.mark.parametrize("seed", range(3))
def test_where_everybody_sees_the_state_nothing_is_lost(random_game, seed):
    game = random_game(seed, states=2, agents=2, actions=2, horizon=2)
    value = solve_decentralised(game).value
    assert value == pytest.approx(solve(game).value, abs=1e-6)
    assert value == pytest.approx(brute_force(game, steps=2), abs=1e-6)


# --------------------------------------------------------------------------------------------------
# MACKRL's pair of payoffs


@pytest.mark.parametrize("common", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_common_knowledge_of_the_payoff_is_worth_what_is_known(common):
    env = make("mackrl_pair", common=common)
    assert solve(env).value == pytest.approx(1.0)
    best = solve_decentralised(env).value
    # The second agent switches where it sees the second payoff: 1, or 1 in half of the games.
    assert best == pytest.approx(common + 0.75 * (1 - common), abs=1e-6)
    # Published for MACKRL (learned), and for learners that use common knowledge alone.
    mackrl = dict(zip((0, 0.2, 0.4, 0.6, 0.8, 1), (0.661, 0.729, 0.797, 0.864, 0.932, 1), strict=True))
    assert mackrl[common] <= best + 1e-6
    blind = solve_decentralised(make("mackrl_pair", common=common, seen=0.0)).value
    assert blind == pytest.approx(0.5 + 0.5 * common, abs=1e-6)


def test_chance_decides_who_sees_the_payoff():
    env = make("mackrl_pair", common=0.4, seen=0.25)
    probability, cases = env.starts()
    agents = np.asarray(jax.vmap(env.observe)(cases).agents)
    codes = agents.argmax(-1)
    mass = collections.Counter()
    for p, (one, other) in zip(probability, codes, strict=True):
        mass[int(one), int(other)] += float(p)
    assert mass[0, 0] == pytest.approx(0.2, abs=1e-6)  # commonly known, first payoff
    assert mass[2, 2] == pytest.approx(0.6 * 0.75**2, abs=1e-6)  # nobody sees either payoff
    assert mass[3, 2] == pytest.approx(0.3 * 0.25 * 0.75, abs=1e-6)
    assert mass[2, 4] == pytest.approx(0.3 * 0.25 * 0.75, abs=1e-6)
    assert mass[4, 4] == pytest.approx(0.3 * 0.25**2, abs=1e-6)
    assert not {(0, 1), (3, 4), (0, 2), (0, 3)} & set(mass)


# --------------------------------------------------------------------------------------------------
# CoordSum


def slow_coordsum(agents, actions, targets, rounds, record=()):
    """Optimal expected return by recursion; ``record`` holds (target, first agent's action)."""
    if rounds == 0:
        return 0.0
    total = 0.0
    for target in range(targets):
        best = -np.inf
        for first in range(actions):
            chosen = [sum(r == (target, a) for r in record) for a in range(actions)]
            usual = chosen.index(max(chosen))
            reachable = any(
                first + sum(others) == target
                for others in itertools.product(range(actions), repeat=agents - 1)
            )
            paid = (1.0 if first == usual else 2.0) if reachable else 0.0
            later = slow_coordsum(agents, actions, targets, rounds - 1, (*record, (target, first)))
            best = max(best, paid + later)
        total += best / targets
    return total


@pytest.mark.parametrize(
    ("n_agents", "n_actions", "n_targets", "horizon"),
    [(2, 2, 3, 1), (2, 2, 3, 3), (3, 2, 2, 3), (2, 3, 6, 1)],
)
def test_coordsum_is_solved_as_by_recursion(n_agents, n_actions, n_targets, horizon):
    env = make("coordsum", n_agents=n_agents, n_actions=n_actions, n_targets=n_targets, horizon=horizon)
    value = solve(env).value
    assert value == pytest.approx(slow_coordsum(n_agents, n_actions, n_targets, horizon), abs=1e-6)
    assert value <= 2 * horizon


def test_coordsum_pays_less_for_what_was_to_be_expected():
    env = make("coordsum", n_agents=2, n_actions=3, n_targets=4)
    state = jax.tree.map(lambda x: x[3], env.starts()[1])
    paid = []
    # Target 3 as 2 + 1, the same again, as 1 + 2 twice (a tie goes to the lower action), and missed.
    for action in ((2, 1), (2, 1), (1, 2), (1, 2), (1, 2), (0, 0)):
        following, step = env.step(jax.random.key(0), state, jnp.array(action))
        paid.append(float(step.reward))
        state = following._replace(target=jnp.int32(3))
    assert paid == [2, 1, 2, 2, 1, 0]


# --------------------------------------------------------------------------------------------------
# The sequential games by their own names, and what value decomposition makes of them


@pytest.mark.parametrize(
    ("name", "alias"),
    [("two_step", "two_step"), ("m_step", "maven_mstep"), ("mmdp", "mmdp_qplex")],
)
def test_the_games_have_short_names(name, alias):
    one, other = make(name), make(f"matrix/{alias}")
    assert one.spec == other.spec
    assert solve(one).value == solve(other).value


def test_payoffs_of_the_sequential_games_are_parameters():
    assert solve(make("two_step", payoffs=[[[3, 3], [3, 3]], [[0, 1], [1, 2]]])).value == 3
    assert solve(make("m_step", steps=4, last=[[0, 0], [0, 6]])).value == 9
    assert solve(make("mmdp", horizon=7)).value == 7
    for name, table in (("two_step", {"payoffs": [[1, 2], [3, 4]]}), ("m_step", {"last": [1, 2]})):
        with pytest.raises(ValueError, match="payoffs have shape"):
            make(name, **table)
    with pytest.raises(ValueError, match="table of numbers"):
        make("m_step", last=[[1, "x"], [1, 2]])


def test_payoffs_are_leaves():
    games = [make("m_step", last=np.full((2, 2), x)) for x in (1.0, 4.0)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *games)
    assert stacked.last.shape == (2, 2, 2)
    assert {game.spec for game in games} == {games[0].spec}


def test_the_best_sum_of_utilities_prefers_the_safe_stage():
    # Least squares on uniform data: row mean + column mean - mean. 2B's best is then 6.5 < 7.
    env = make("two_step")
    worth = []
    for stage in np.asarray(env.payoffs, float):
        fit = stage.mean(1)[:, None] + stage.mean(0) - stage.mean()
        worth.append(fit.max())
        assert stage[np.unravel_index(fit.argmax(), fit.shape)] == stage.max()
    assert worth == [7.0, 6.5]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "end"), [("vdn", 7), ("qmix", 8)])
def test_the_two_step_game_tells_sums_from_monotone_mixers(method, end):
    trained = jt.run(method, "two_step", seeds=16, evaluations=1, episodes=1, total_steps=64_000)
    assert optimal(trained.final["return"], end).sum() >= 15


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("tad_ppo", 8), ("vdn", 8)])
def test_the_two_state_game_is_learned(method, least):
    horizon = 20
    fields = {"envs": 32, "total_steps": 100 * 32 * horizon} if method == "tad_ppo" else {}
    env = make("mmdp", horizon=horizon)
    trained = jt.run(method, env, seeds=8, evaluations=1, episodes=1, **fields)
    assert optimal(trained.final["return"], horizon).sum() >= least


def test_one_policy_for_four_agents_that_must_differ_is_bounded():
    # Of all products of one distribution the uniform one is best: 4! / 4^4.
    rng = np.random.default_rng(0)
    shared = np.concatenate([rng.dirichlet(np.ones(4), 1000), np.full((1, 4), 0.25)])
    payoff = np.asarray(make("matrix/permutation", n=4).payoff)
    value = np.einsum("ma,mb,mc,md,abcd->m", shared, shared, shared, shared, payoff)
    assert value.max() == value[-1] == pytest.approx(24 / 256)
