"""What every method promises about its compiled runs: its defaults, and one other memory and sharing.

Most of it compares two runs of one program whose leaves differ in something that must not matter.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.learners import Case, assert_close, assert_same_bits, watched
from conformance.probes import PROBES

import jaxmarl_tad as jt
from jaxmarl_tad import programs
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.rollout import begin, rollout
from jaxmarl_tad.sweep import over_members, run_chunk
from jaxmarl_tad.train import train

CASES = learners.two_cases()
METHOD_CASES = [case for case in CASES if case.method != learners.DISTILL]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


# --- one program per sweep ------------------------------------------------------------------------


def a_game(case):
    return jt.make("matrix/climbing" if case.actions == "discrete" else "matrix/product")


@functools.cache
def swept(name):
    """A sweep on a game with a payoff, and how many programs it made."""
    case = learners.default_case(name)
    other = "entropy_coef" if hasattr(case.config, "entropy_coef") else "gamma"
    other = other if hasattr(case.config, other) else "lr_end"
    before = set(programs._COMPILED)
    fields = {"lr": [0.001, 0.003, 0.01, 0.0], other: [0.0, 0.1, 0.2, 0.3]}
    run = learners.watch(case, a_game(case), seeds=[0, 3], **fields)
    return case, other, run, len(set(programs._COMPILED) - before)


@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_is_one_program_and_payoffs_are_data(name):
    case, other, (run, _), made = swept(name)
    assert len(run.members) == 32
    assert made == 2  # the first state, and a chunk

    # Other values, other seeds and 32 other games (or other data): nothing is compiled at all.
    tables = np.random.default_rng(0).normal(size=(32, 3, 3))
    games = [jt.make("matrix/custom", payoff=table.tolist()) for table in tables]
    fields = {"lr": [0.2, 0.02, 0.002, 0.5], other: [0.4, 0.5, 0.6, 0.7]}
    before, game = set(programs._COMPILED), a_game(case)
    data = learners.recorded(game) if case.offline else None
    with learners.compilations() as compiled:
        learners.learn(case, game, seeds=[5, 7], **fields)
        if data is None:
            learners.learn(case, games)
        else:
            other_data = dataclasses.replace(data, reward=np.flip(data.reward))
            learners.learn(case, game, data=other_data, seeds=[5, 7], **fields)
    assert compiled == []
    assert set(programs._COMPILED) <= before


def test_the_count_of_compilations_would_notice():
    with learners.compilations() as compiled:
        jax.jit(lambda x: x + np.random.default_rng().normal())(1.0)
    assert compiled


# --- the same run, cut, batched and repeated ------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_member_of_a_batch_agrees_with_the_member_alone(name):
    case, other, batch, _ = swept(name)
    for i in (0, 13, 22):
        row = batch.trained.members[i]
        alone = learners.watch(
            case,
            a_game(case),
            seeds=[row["seed"]],
            **{field: row[field] for field in ("lr", other)},
        )
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], batch.states[0].params)
        assert_close(own, alone.states[0].params, rtol=1e-4, atol=1e-5)


def mostly_slow(cases, fast):
    """Cases of which only some run by default: what is tested hardly depends on the method."""
    return [pytest.param(c, marks=[] if str(c) in fast else pytest.mark.slow) for c in cases]


@pytest.mark.parametrize("case", mostly_slow(CASES, ("ippo-none-full_id", "iql-none-full_id")), ids=str)
def test_chunked_equals_whole(case):
    """Four chunks driven from outside, and one scan over two chunks of twice the length."""
    run, states = watched(case)
    plan = run.plan

    def whole(member):
        return train(
            plan.make(member.config, member.source),
            lambda policy, key: score(member.env, policy, key, plan.episodes),
            jax.random.key(member.seed),
            iterations=plan.iterations,
            evaluations=2,
        )

    jitted = jax.jit(over_members(whole), compiler_options=programs.compiler_options())
    state, _ = jitted(run.stacked)
    # Another program may round otherwise, but it draws the same numbers and learns the same.
    assert_close(state, states[-1], rtol=1e-4, atol=1e-5)


@EVERY
def test_resumed_equals_uninterrupted(case):
    """The state is all there is: the third chunk, begun from a copy of the state on the host."""
    run, states = watched(case)
    program, new = programs.compiled(run_chunk, run.plan, run.stacked, donate=(1,))
    assert not new
    state = jax.tree.map(jnp.array, states[1])
    for i in (2, 3):
        state, _ = program.call(run.stacked, state, np.asarray(i, np.int32))
        assert_same_bits(state, states[i])


@EVERY
def test_a_run_repeats_itself(case):
    run, states = watched(case)
    again = learners.watch(case, learners.skirmish(case))
    assert_same_bits(states, again.states)
    assert_same_bits(run.curves, again.trained.curves)


# --- what must have no influence ------------------------------------------------------------------


INFLUENCES = {
    "after": {"after": 100.0},
    "forbidden": {"forbidden": -100.0},
    "ghost": {"ghost": 3.0},
    "ghost_action": {"ghost_action": 1.0},
}


@pytest.mark.parametrize("leaves", INFLUENCES.values(), ids=list(INFLUENCES))
@EVERY
def test_without_influence(case, leaves):
    """Rewards after the end, those of illegal actions, and what dead agents see and do."""
    run, states = watched(case)
    other, changed = watched(case, **leaves)
    for before, after in zip(states, changed, strict=True):
        assert_same_bits(before.params, after.params)
    assert_same_bits(run.curves["return"], other.curves["return"])


@pytest.mark.parametrize("case", [case for case in CASES if case.offline], ids=str)
def test_the_rows_behind_the_last_step_are_no_steps(case):
    """What the data hold there as an action, a reward or an end is nothing."""
    (_, states), env = watched(case), learners.skirmish(case)
    data = learners.recorded(env)
    behind = ~data.valid
    numbers = behind.reshape(-1, *(1,) * (data.action.ndim - 1))
    changed = dataclasses.replace(
        data,
        action=np.where(numbers, np.ones_like(data.action), data.action),
        reward=np.where(behind, np.float32(50), data.reward),
        terminated=data.terminated | behind,
        truncated=data.truncated | behind,
    )
    other = learners.watch(case, env, data=changed)
    for before, after in zip(states, other.states, strict=True):
        assert_same_bits(before.params, after.params)


@EVERY
def test_the_skirmish_would_notice(case):
    """The same comparison fails where there is an influence: every decision is forced."""
    _, states = watched(case)
    _, changed = watched(case, only=1.0)
    with pytest.raises(AssertionError):
        assert_same_bits(states[0].params, changed[0].params)


@EVERY
def test_one_legal_action_leaves_everything_finite(case):
    run, states = watched(case, only=1.0)
    for leaf in jax.tree.leaves((states, run.curves)):
        assert np.isfinite(leaf).all()
    policy = run.policy(greedy=False)
    env = learners.skirmish(case, only=1.0)
    action, _, _ = jax.jit(policy.act)(
        jax.random.key(0), policy.start(), env.reset(jax.random.key(1))[1]
    )
    if env.spec.discrete:
        assert action.tolist() == [0, 0, 0]


@pytest.mark.parametrize("case", [c for c in CASES if c.decentralised], ids=str)
def test_an_agent_sees_nothing_of_the_others(case):
    run, _ = watched(case)
    policy = run.policy(greedy=False)
    assert policy.execution == "decentralised"
    env = learners.skirmish(case)
    seen = env.reset(jax.random.key(1))[1]
    key = jax.random.key(2)

    @jax.jit
    @jax.vmap
    def act(seen):
        _, memory, _ = policy.act(key, policy.start(), seen)
        return policy.act(key, memory, seen)

    def seen_with(agent):
        """All but one agent's rows, and the state, are another's; first the change, then none."""
        other = jnp.arange(3) != agent
        changed = seen._replace(
            agents=jnp.where(other[:, None], jnp.roll(seen.agents, 1, axis=-1), seen.agents),
            state=jnp.roll(seen.state, 1),
            legal=jnp.where(other[:, None], ~seen.legal | (jnp.arange(3) == 0), seen.legal),
            alive=jnp.where(other, ~seen.alive, seen.alive),
        )
        return changed

    options = [seen_with(agent) for agent in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), seen, *options)
    action, memory, extras = jax.device_get(act(stacked))
    for agent in range(3):
        own = lambda x, agent=agent: (x[0, agent], x[1 + agent, agent])  # noqa: E731
        for leaf in jax.tree.leaves((action, memory, extras)):
            assert_same_bits(*own(leaf))
    several = [leaf for leaf in jax.tree.leaves(extras) if not (leaf[0] == leaf[1]).all()]
    assert several  # the others did see the change


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.execution == "decentralised"])
def test_agents_that_share_everything_may_change_places(name, memory):
    row = METHODS[name]
    if "full" not in row.sharing or memory not in row.memory or "discrete" not in row.actions:
        pytest.skip("not declared")
    case, env = Case(name, memory, "full"), PROBES["both"]
    algorithm = learners.algorithm(case, env)
    order = jnp.asarray([2, 0, 1])

    @jax.jit
    def act(key, reset_key):
        seen = env.reset(reset_key)[1]
        moved = seen._replace(agents=seen.agents[order])
        policy = algorithm.policy(algorithm.init(key), greedy=True)
        return [policy.act(key, policy.start(), o)[::2] for o in (seen, moved)], seen.agents

    for seed in range(3):
        (here, there), rows = act(jax.random.key(0), jax.random.key(seed))
        here = jax.tree.map(lambda x: x[order], here)
        assert_close(here, there, rtol=1e-6, atol=1e-6)
        assert rows.shape == (3, 4)


# --- acting and learning see the same -------------------------------------------------------------

with_ratio = [c for c in METHOD_CASES if METHODS[c.method].family in ("policy", "joint", "sequence")]


@pytest.mark.parametrize("case", with_ratio, ids=str)
def test_the_ratio_is_one_before_anything_is_learned(case):
    """Six steps of episodes of at most four, and memories carried from one rollout to the next."""
    run, _ = watched(case)
    row = METHODS[case.method]
    passes = row.fixed.get("epochs", getattr(run.config, "epochs", 1))  # over one batch
    assert np.allclose(run.curves["ratio"], 1.0, atol=2e-6) == (passes == 1)
    sizes = [name for name in ("lr", "max_kl") if hasattr(run.config, name)]  # of a step
    still = learners.watch(case, learners.skirmish(case), **dict.fromkeys(sizes, 0.0))
    np.testing.assert_allclose(still.trained.curves["ratio"], 1.0, rtol=0, atol=2e-6)
    assert_same_bits(still.states[0].params, still.states[-1].params)


def stepwise(policy, observations, first):
    """Extras of acting one step after the other in each environment on what was recorded."""
    act = jax.jit(jax.vmap(policy.act))
    steps, envs = first.shape
    fresh = jax.tree.map(lambda x: jnp.broadcast_to(x, (envs, *x.shape)), policy.start())
    memory, told = fresh, []
    for t in range(steps):
        reset = lambda m, f, t=t: jnp.where(first[t].reshape(-1, *[1] * (m.ndim - 1)), f, m)  # noqa: E731
        memory = jax.tree.map(reset, memory, fresh)
        keys = jax.random.split(jax.random.key(t), envs)
        seen = jax.tree.map(lambda x, t=t: x[t], observations)
        action, memory, extras = act(keys, memory, seen)
        told.append((action, extras))
    return jax.tree.map(lambda *x: jnp.stack(x), *told)


@pytest.mark.parametrize(
    "case",
    mostly_slow([c for c in CASES if c.memory != "none"], ("ippo-gru-none", "iql-gru-none")),
    ids=str,
)
def test_a_rollout_equals_stepwise_acting(case):
    run, _ = watched(case)
    policy, env = run.policy(greedy=True), learners.skirmish(case)

    @jax.jit
    def collect(key):
        actors = begin(env, policy, key, 2)
        actors, one = rollout(env, policy, key, actors, 7)
        _, two = rollout(env, policy, jax.random.fold_in(key, 1), actors, 6)
        return jax.tree.map(lambda *x: jnp.concatenate(x), one, two)

    seen = collect(jax.random.key(3))
    ended = seen.terminated | seen.truncated
    assert seen.first[1:].sum() >= 4
    assert (seen.first[1:] == ended[:-1]).all()
    assert seen.first[0].all()
    assert_close(
        (seen.action, seen.extras), stepwise(policy, seen.observation, seen.first), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "case", [c for c in METHOD_CASES if METHODS[c.method].family == "value"], ids=str
)
def test_learned_values_are_those_acted_on(case):
    """Forced actions make all episodes equal: the learner's mean of Q is the actor's.

    Where learning draws what agents are told the greedy actor takes its mean; so does the learner.
    """
    leaves = {"only": 1.0, "still": 1.0}
    env = learners.skirmish(case, **leaves)
    mean = {"z_noise": 0.0} if hasattr(case.config, "z_noise") else {}
    mean = mean if METHODS[case.method].execution == "centralised" else {}  # others are told nothing
    run = learners.watch(case, env, lr=0.0, steps=env.spec.horizon, **mean).trained
    policy = run.policy(greedy=True)
    seen = [env.reset(jax.random.key(0))]
    for _ in range(3):
        state, step = env.step(jax.random.key(0), seen[-1][0], jnp.zeros(3, jnp.int32))
        seen.append((state, step.observation))
    observations = jax.tree.map(lambda *x: jnp.stack(x)[:, None], *(o for _, o in seen))
    _, extras = stepwise(policy, observations, jnp.arange(4)[:, None] == 0)
    params = jax.tree.map(lambda x: x[0], run.state.params)
    nothing = jnp.zeros((4, 1, 3), jnp.int32)
    values = np.asarray(
        learners.team_value(case.method, params, run.config, env.spec, extras, nothing, observations)
    )
    # Agents that have values of their own have none once they are dead.
    counts = observations.alive if values.shape[-1] > 1 else np.ones(values.shape, bool)
    expected = values[np.asarray(counts)].mean()
    np.testing.assert_allclose(run.curves["q"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.method == learners.DISTILL], ids=str)
def test_students_learn_from_what_they_act_on(case):
    """A still skirmish and a teacher that decides always alike: one episode, again and again."""
    env = learners.skirmish(case, still=1.0)
    teacher = learners.teacher(env.one_hot, env.only).policy()
    run = learners.watch(case, env, lr=0.0).trained
    student = run.policy()
    state, seen = env.reset(jax.random.key(0))
    memories, first, errors = None, True, []
    act = [jax.jit(policy.act) for policy in (teacher, student)]
    for _ in range(24):
        if first:
            memories = [policy.start() for policy in (teacher, student)]
        label, memories[0], _ = act[0](jax.random.key(0), memories[0], seen)
        _, memories[1], told = act[1](jax.random.key(0), memories[1], seen)
        chosen = np.take_along_axis(np.asarray(told["log_probs"]), np.asarray(label)[:, None], 1)[:, 0]
        errors.append((-chosen, np.asarray(seen.alive)))
        state, step = env.step(jax.random.key(0), state, label)
        seen, first = step.observation, bool(step.terminated | step.truncated)
        if first:
            state, seen = env.reset(jax.random.key(0))
    for i, value in enumerate(run.curves["cross_entropy"][0]):
        error, alive = (np.stack(x) for x in zip(*errors[6 * i : 6 * i + 6], strict=True))
        np.testing.assert_allclose(value, 3 * error[alive].mean(), rtol=1e-5)
