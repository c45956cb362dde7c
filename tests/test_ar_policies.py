"""Autoregressive policies: against slow loops and enumeration, MAGPO's clips, and where games end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.learners import Case

import jaxmarl_tad as jt
from jaxmarl_tad import distributions
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.algorithms.joint import magpo
from jaxmarl_tad.autoregressive import autoregressive, before
from jaxmarl_tad.evaluate import score

SEEDS = 16
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


# --- the joint distribution ---------------------------------------------------------------------------

KINDS = {
    "table": {"network": "table"},
    "table-none": {"network": "table", "sharing": "none"},
    "sum": {"network": "mlp"},
    "attention-sets": {"network": "mlp", "prefix": "attention", "sharing": (0, 1, 0)},
    "gru": {"memory": "gru", "network": "mlp"},
}


@functools.cache
def team_of(kind, seen="own"):
    """A team of three in a game of two actions, with parameters that are not small."""
    env = jt.make("colours", n=3, signals=2)
    method = METHODS["ar_ppo"]
    config = method.resolved(method.settings(order="random", hidden=(8,), **KINDS[kind]), env.spec)
    team = autoregressive(config, env.spec, seen)
    params = jax.tree.map(lambda x: 5 * x, team.init(jax.random.key(1)))
    return env, team, params


def replayed(kind, observation, actions, orders):
    """log π of each agent's choice for a batch of joint actions and orders ``[B, N]``."""
    env, team, params = team_of(kind)
    count = len(actions)
    seen = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, count, *x.shape)), observation)
    memory = jax.tree.map(lambda m: jnp.broadcast_to(m, (count, *m.shape)), team.start())
    told = (jnp.asarray(actions)[None], jnp.asarray(orders)[None], jnp.ones((1, count), bool))
    outputs, _ = jax.jit(team.replay)(params, memory, seen, *told)
    family = distributions.head("gaussian", env.spec)
    return np.asarray(family.judge(outputs, seen.legal, told[0])[0])[0]


@pytest.mark.parametrize(
    "kind", ["table", "attention-sets", slow("table-none"), slow("sum"), slow("gru")]
)
def test_joint_probabilities_sum_to_1_in_every_order(kind):
    env, _, _ = team_of(kind)
    observation = env.reset(jax.random.key(3))[1]
    actions = list(itertools.product(range(2), repeat=3))
    orders = list(itertools.permutations(range(3)))
    pairs = list(itertools.product(orders, actions))
    log_probs = replayed(kind, observation, [a for _, a in pairs], [o for o, _ in pairs])
    joint = np.exp(log_probs.sum(-1)).reshape(len(orders), len(actions))
    np.testing.assert_allclose(joint.sum(1), 1, rtol=1e-5)
    assert np.abs(joint - joint.mean()).max() > 0.01  # it does depend on what is chosen
    assert np.abs(joint[0] - joint[-1]).max() > 1e-3  # and on the order


@pytest.mark.parametrize("dead", [(), (1,)])
def test_a_table_is_read_as_a_slow_loop_reads_it(dead):
    """For random orders: one agent after the other, its row found from what the others chose."""
    env, _, params = team_of("table")
    observation = env.reset(jax.random.key(3))[1]
    alive = jnp.asarray([i not in dead for i in range(3)])
    observation = observation._replace(alive=alive)
    table = np.asarray(params["head"][0], np.float64)
    rows = len(table) // 3
    draw = np.random.default_rng(0)
    orders = [draw.permutation(3) for _ in range(12)]
    actions = draw.integers(0, 2, size=(12, 3))
    found = replayed("table", observation, actions, orders)
    signal = int(jnp.argmax(observation.agents[0]))
    for k, (order, action) in enumerate(zip(orders, actions, strict=True)):
        chosen = {}
        for agent in order:
            others = [j for j in range(3) if j != agent]
            code = sum((1 + chosen.get(j, -1)) * 3**place for place, j in enumerate(others))
            logits = table[agent * rows + signal * 9 + code]
            expected = logits[action[agent]] - np.log(np.exp(logits).sum())
            assert found[k, agent] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            if agent not in dead:
                chosen[agent] = action[agent]


@pytest.mark.parametrize("kind", ["table", slow("sum"), slow("attention-sets"), slow("gru")])
def test_acting_tells_the_log_probabilities_that_replay_finds(kind):
    env, team, params = team_of(kind)
    observation = env.reset(jax.random.key(3))[1]
    act = team.policy(params, greedy=False).act
    keys = jax.random.split(jax.random.key(0), 32)
    action, _, told = jax.jit(jax.vmap(act, (0, None, None)))(keys, team.start(), observation)
    np.testing.assert_allclose(
        replayed(kind, observation, action, told["order"]), told["log_prob"], rtol=1e-4, atol=1e-5
    )
    assert len({tuple(order) for order in np.asarray(told["order"])}) == 6


def test_before_is_who_stands_earlier_in_line():
    order = np.asarray([2, 0, 1])
    expected = [[False, False, True], [True, False, True], [False, False, False]]
    np.testing.assert_array_equal(before(jnp.asarray(order)), expected)


# --- MAGPO's objectives -------------------------------------------------------------------------------


def test_the_double_clip_is_its_definition():
    draw = np.random.default_rng(0)
    guider, learner, old = np.log(draw.uniform(0.02, 1, size=(3, 500)))
    advantage, clip, delta = draw.normal(size=500), 0.2, 1.5
    objective, outside = magpo.double_clipped(
        *map(jnp.float32, (guider, learner, old, advantage)), clip, delta
    )
    for k in range(500):
        g, p, o = np.exp([guider[k], learner[k], old[k]])
        quotient = min(max(g / p, 1 / delta), delta)
        held = min(max(quotient * p / o, 1 - clip), 1 + clip)
        expected = min(g / o * advantage[k], held * advantage[k])
        assert float(objective[k]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert float(outside[k]) == (g / p > delta or g / p < 1 / delta)


def test_beyond_delta_nothing_drives_the_guider_further():
    """A guider δ times as sure as the learner gains nothing by being surer, only by turning back."""
    log_old = jnp.log(0.4)

    def slope(learner, advantage):
        one = lambda g: magpo.double_clipped(  # noqa: E731
            g, jnp.log(learner), log_old, jnp.float32(advantage), 0.2, 1.5
        )[0]
        return float(jax.grad(one)(jnp.log(0.4)))

    assert slope(0.2, 1.0) == 0  # μ = 0.4 is twice π
    assert slope(0.2, -1.0) < 0
    assert slope(0.35, 1.0) > 0


@functools.cache
def gradients(**fields):
    """Movement of guider and learner in one iteration of one epoch, from separate parameters."""
    env = jt.make("matrix/climbing")
    method = METHODS["magpo"]
    given = {"envs": 64, "epochs": 1, "entropy_coef": 0.0, "max_grad_norm": 1e9} | fields
    config = method.resolved(method.settings(**given), env.spec)
    learner = method.make(config, env)
    state = learner.init(jax.random.key(0))
    apart = jax.tree.map(lambda x: x.at[..., 0].add(3.0), state.params.learner)
    state = state._replace(params=state.params._replace(learner=apart))
    after, report = jax.jit(learner.step)(jax.random.key(1), state, 0.0)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    return moved, report


def test_alignment_moves_whom_it_should():
    # Without its own objective the learner is moved by imitation alone: towards the guider.
    moved, report = gradients(alpha=0.0, delta=1e6)
    assert moved.learner > 0
    assert float(report["outside"]) == 0
    # The guider is moved in the same way by what follows it, whatever that learns for itself.
    other, _ = gradients(alpha=5.0, delta=1e6)
    assert other.guider == pytest.approx(moved.guider)
    held, report = gradients(alpha=0.0, delta=1.2)
    assert float(report["outside"]) == 1
    assert held.learner == pytest.approx(moved.learner)  # the mask is the guider's


def test_alignment_pulls_the_guider_to_the_learner():
    """Beyond δ, and with nothing to gain, the guider goes where the learner is."""
    env = jt.make("matrix/custom", payoff=np.zeros((3, 3)).tolist())
    method = METHODS["magpo"]
    settings = method.settings(delta=1.2, alpha=0.0, entropy_coef=0.0)
    learner = method.make(method.resolved(settings, env.spec), env)
    state = learner.init(jax.random.key(0))
    apart = jax.tree.map(lambda x: x.at[..., 2].add(3.0), state.params.learner)
    state = state._replace(params=state.params._replace(learner=apart))
    after, _ = jax.jit(learner.step)(jax.random.key(1), state, 0.0)
    risen = after.params.guider["head"] - state.params.guider["head"]
    first = risen[0, 0]  # of agent 0, where nobody has chosen
    assert first[2] > 0 > first[0]
    fallen = after.params.learner - apart
    assert fallen[0, 0, 2] < 0  # and the learner comes to meet it


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian"])
def test_the_divergence_of_gaussians_is_an_average(name):
    env = jt.make("matrix/product")
    family = distributions.head(name, env.spec)
    p, q = jnp.asarray([0.3, 0.5]), jnp.asarray([-0.2, 1.2])
    noise = jax.random.normal(jax.random.key(0), (400_000, 1))
    legal = jnp.ones(1, bool)
    _, told = jax.vmap(lambda e: family.decide(e, p, legal, False))(noise)
    other, _ = jax.vmap(lambda z: family.judge(q, legal, z))(told["chosen"])
    known = float(jnp.mean(told["log_prob"] - other))
    assert float(family.divergence(p, q, legal)) == pytest.approx(known, rel=0.01)
    assert float(family.divergence(p, p, legal)) == 0


def test_what_is_deployed_is_decentralised():
    env = learners.skirmish(Case("magpo", "none", "full_id"))
    learner = learners.algorithm(Case("magpo", "none", "full_id"), env)
    policy = learner.policy(learner.init(jax.random.key(0)), greedy=True)
    assert policy.execution == METHODS["magpo"].execution == "decentralised"
    assert METHODS["ar_ppo"].execution == "centralised"


# --- where games end ----------------------------------------------------------------------------------

LAST = {"seeds": SEEDS, "evaluations": 1, "episodes": 4, "progress": False}
THREE = ("matrix/climbing", "matrix/penalty/k=-100", "matrix/qtran")
ENDS = {
    "ar_ppo": (*THREE, "matrix/tad", "matrix/xor", "matrix/permutation"),
    "magpo": (*THREE, "matrix/tad", "matrix/xor"),
}


def ends(method, name, **fields):
    run = jt.run(method, name, **LAST, **fields)
    return run, int((np.abs(run.final["return"] - jt.solve(jt.make(name)).value) < 1e-3).sum())


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (slow if name not in ("matrix/climbing", "matrix/tad") else pytest.param)(method, name)
        for method, names in ENDS.items()
        for name in names
    ],
)
def test_every_seed_escapes(method, name):
    assert ends(method, name)[1] == SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matrix/climbing", "matrix/permutation/n=3"])
@pytest.mark.parametrize("fields", [{"order": "fixed"}, {"sharing": "none"}], ids=str)
def test_other_orders_and_sharing_escape_as_well(name, fields):
    assert ends("ar_ppo", name, **fields)[1] == SEEDS


@pytest.mark.slow
def test_a_tight_tie_to_the_learners_holds_the_guider_in_the_trap():
    """Climbing: with δ = 1.5 the guider itself ends at 7, with the default it does not."""

    def lead(member, state):
        policy = magpo.guider_of(member.config, member.env.spec).policy(
            state.params.guider, greedy=True
        )
        return score(member.env, policy, jax.random.key(0), 1)["return"]

    run = jt.run("magpo", "matrix/climbing", delta=[1.5, 5.0], **LAST)
    led = np.asarray(jax.jit(jax.vmap(lead))(run.stacked, run.state)).reshape(2, SEEDS)
    assert (led[0] == 7).sum() >= 15
    assert (led[1] == 11).sum() >= 15


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ar_ppo", "magpo"])
def test_continuous_games_are_learned(method):
    run = jt.run(method, "matrix/product", **LAST, lr=3e-3)
    assert (run.final["return"] > 3.8).sum() >= 15
