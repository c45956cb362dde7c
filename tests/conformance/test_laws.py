"""Laws that need no compilation: what a program is made of, for all that a method declares."""

import functools

import jax
import jax.numpy as jnp
import pytest
from conformance import learners
from jax.experimental.key_reuse._core import check_key_reuse_jaxpr
from jax.extend import core as jax_core

import jaxmarl_tad as jt
from jaxmarl_tad.algorithms import METHODS

CASES = learners.every_case()
GAMES = ("matrix/climbing", "hallway", "matrix/product")


def says_something(case, game):
    """The hallway adds time, the product numbers; with one sharing they have said what they can."""
    if case.actions == "continuous":  # of nothing else
        return game == GAMES[2]
    if game == GAMES[2] and case.method != learners.DISTILL:
        return case.sharing == "full_id" and "continuous" in METHODS[case.method].actions
    return game == GAMES[0] or case.sharing == "full_id"


def rarely(case, game):
    """Presets away from their defaults; and an assignment, which one method tells from no sharing.

    Data of a game with time are rows as those of one without.
    """
    default = None if case.method == learners.DISTILL else METHODS[case.method].config()
    usual = default is None or (case.memory, case.sharing) == (default.memory, default.sharing)
    preset = case.method not in learners.FAST and not usual
    selective = case.sharing == "selective" and case.method != "mappo"
    again = case.offline and case.method not in learners.FAST and game == "hallway"
    return [pytest.mark.slow] if preset or selective or again else []


PAIRS = [
    pytest.param((case, game), marks=rarely(case, game))
    for case in CASES
    for game in GAMES
    if says_something(case, game)
]
MEMBERS = 2


@functools.cache
def traced(case, game):
    """Jaxprs and result shapes of init, step and act, with an axis of members as in every run."""
    env = jt.make(game)
    algorithm = learners.algorithm(case, env, lr=jnp.float32(0.01))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), MEMBERS))
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    observation = jax.eval_shape(lambda k: jax.vmap(env.reset)(k)[1], keys)

    def step(keys, state, progress):
        return jax.vmap(algorithm.step, in_axes=(0, 0, None))(keys, state, progress)

    def act(keys, state, observation):
        def one(key, state, observation):
            policy = algorithm.policy(state, greedy=False)
            return policy.act(key, policy.start(), observation)

        return jax.vmap(one)(keys, state, observation)

    made = {"init": jax.make_jaxpr(jax.vmap(algorithm.init), return_shape=True)(keys)}
    state = made["init"][1]
    made["step"] = jax.make_jaxpr(step, return_shape=True)(keys, state, progress)
    made["act"] = jax.make_jaxpr(act, return_shape=True)(keys, state, observation)
    return env, made


def equations(jaxpr):
    """All equations, also of the programs inside loops, branches and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax_core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def named(pair):
    case, game = pair
    return f"{case}-{'product' if game == GAMES[2] else game.partition('/')[0]}"


@pytest.fixture(params=PAIRS, ids=named, scope="module")
def program(request):
    return traced(*request.param)


def kinds(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), tree)


def test_a_step_keeps_the_kind_of_the_state(program):
    _, made = program
    before, (after, _) = made["init"][1], made["step"][1]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert kinds(before) == kinds(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(before))


def test_metrics_are_scalars(program):
    _, made = program
    _, metrics = made["step"][1]
    assert metrics
    assert all(x.shape == (MEMBERS,) for x in metrics.values())
    assert all(x.dtype == jnp.float32 for x in metrics.values())


def test_actions_have_the_shape_of_the_spec(program):
    env, made = program
    action, _, _ = made["act"][1]
    numbers = () if env.spec.discrete else (env.spec.action_dim,)
    assert action.shape == (MEMBERS, env.spec.n_agents, *numbers)
    assert action.dtype == (jnp.int32 if env.spec.discrete else jnp.float32)


def test_the_state_holds_no_key(program):
    _, made = program
    held = jax.tree.leaves(made["init"][1])
    assert not any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in held)


@pytest.mark.parametrize("part", ["init", "step", "act"])
def test_no_callback_no_qr_and_no_key_used_twice(program, part):
    _, made = program
    jaxpr = made[part][0].jaxpr
    used = {equation.primitive.name for equation in equations(jaxpr)}
    assert len(used) > (0 if part == "init" else 3)  # tables may begin at 0
    # A batched QR decomposition can hang for ever on machines with two cores.
    assert not {name for name in used if "callback" in name or name in ("qr", "householder_product")}
    check_key_reuse_jaxpr(jaxpr)


def test_the_laws_would_notice():
    def twice(key):
        return jax.random.normal(key) + jax.random.normal(key)

    with pytest.raises(jax.errors.KeyReuseError):
        check_key_reuse_jaxpr(
            jax.make_jaxpr(jax.vmap(twice))(jax.random.split(jax.random.key(0))).jaxpr
        )

    def inner(x):
        jax.debug.callback(lambda x: None, x)
        return jnp.linalg.qr(x)[0]

    looped = lambda x: jax.lax.scan(lambda c, _: (jax.jit(inner)(c), None), x, length=2)  # noqa: E731
    found = {e.primitive.name for e in equations(jax.make_jaxpr(looped)(jnp.eye(2)).jaxpr)}
    assert any("callback" in name for name in found)
    assert {"qr", "householder_product"} & found
