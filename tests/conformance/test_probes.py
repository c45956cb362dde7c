"""Every method finds the value or the policy that is known, in 16 seeds of one program.

A table learns all probes at once: they have one shape, and are told apart by leaves. What fails says
where to look; :mod:`conformance.probes` has the list.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import learners
from conformance.probes import PROBES

import jaxmarl_tad as jt
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.algorithms.deterministic import ddpg
from jaxmarl_tad.config import leaf_fields, static_fields
from jaxmarl_tad.critics import critic as critic_of
from jaxmarl_tad.networks import attention, retention, sequence
from tad_envs import check, solve

LEARNERS = [row.name for row in METHODS.values() if row.family != "offline"]
"""Methods that learn by playing; what data teach is compared with closed forms where these are."""
SEEDS, GAMMA = 16, 0.8
ENOUGH = 15
"""Seeds that must succeed: one in sixteen may have been unlucky."""

BUDGET = {
    # 300 iterations, with fewer environments than by default; bonuses for entropy explore nothing here.
    "policy": {"total_steps": 19_200, "envs": 32, "entropy_coef": 0.0},
    "joint": {"total_steps": 19_200, "envs": 32, "entropy_coef": 0.0},
    # The default is for games of one step; values of what goes on for ever take longer.
    "value": {"total_steps": 19_200},
    "deterministic": {"total_steps": 19_200},
    # 200 iterations; no table, so that a third of the data costs more than all of the others'.
    "sequence": {"total_steps": 6_400, "envs": 32, "entropy_coef": 0.0},
}
"""Settings beyond the defaults, per family: didactic budgets are for 128 environments."""


@functools.cache
def learned(name):
    config = METHODS[name].config
    known = {*leaf_fields(config), *static_fields(config)}
    budget = BUDGET.get(METHODS[name].family, {})
    fields = {field: value for field, value in budget.items() if field in known}
    games = list(PROBES.values())
    return jt.run(name, games, seeds=SEEDS, evaluations=2, gamma=GAMMA, **fields)


def members_of(probe):
    first = list(PROBES).index(probe) * SEEDS
    return slice(first, first + SEEDS)


def state_at(probe, bits, clock):
    env = PROBES[probe]
    start = env.starts()[1]
    place = start._replace(bits=jnp.full(3, bits, jnp.int32), clock=jnp.asarray(clock, jnp.int32))
    return env.observe(place)


def values_at(name, probe, bits=0, clock=0):
    """What each seed holds the value to be, ``[seeds, K]``; K values where agents have their own."""
    run = learned(name)
    mine = members_of(probe)
    seen = state_at(probe, bits, clock)
    if METHODS[name].family == "value":

        @jax.jit
        @jax.vmap
        def values(member, state):
            policy = run.plan.make(member.config, member.source).policy(state, greedy=True)
            action, _, extras = policy.act(jax.random.key(0), policy.start(), seen)
            spec = PROBES[probe].spec
            return learners.team_value(name, state.params, run.config, spec, extras, action, seen)

        return np.asarray(values(*jax.tree.map(lambda x: x[mine], (run.stacked, run.state)))).reshape(
            SEEDS, -1
        )

    if METHODS[name].family == "deterministic":
        critic, spec = ddpg.critic_of(run.config, PROBES[probe].spec), PROBES[probe].spec

        @jax.jit
        @jax.vmap
        def critics(member, state):
            policy = run.plan.make(member.config, member.source).policy(state, greedy=True)
            action, _, _ = policy.act(jax.random.key(0), policy.start(), seen)
            told = jax.tree.map(lambda x: x[None, None], (seen, jax.nn.one_hot(action, spec.n_actions)))
            return critic.values(state.params.critic, *told)

        own = jax.tree.map(lambda x: x[mine], (run.stacked, run.state))
        return np.asarray(critics(*own)).reshape(SEEDS, -1)

    if METHODS[name].family == "sequence":
        return restored(run.state, mine, values_encoded(name, seen, mine))

    if METHODS[name].fixed.get("information", "local") != "local":  # who is told has no table
        judge = critic_of(run.config, PROBES[probe].spec, run.config.critic)
        state, first = seen.state[None, None, None], jnp.ones((1, 1), bool)

        @jax.jit
        @jax.vmap
        def valued(params):
            return judge.values(params, judge.start(1), state, first)[0]

        own = jax.tree.map(lambda x: x[mine], run.state.params.critic)
        return restored(run.state, mine, np.asarray(valued(own)).reshape(SEEDS, -1))

    assert run.config.network == "table"
    state, rows = run.state, int(jnp.argmax(seen.state))
    table = state.params.critic
    if hasattr(sys.modules[METHODS[name].make.__module__], "entry_played"):
        assert run.config.sharing == "full_id"
        return values_played(name, seen, mine)
    sees = getattr(run.config, "critic", "state")
    assert sees == "state" or run.config.sharing == "full_id"
    if isinstance(table, dict):  # of who chooses in turn
        assert run.config.sharing == "full_id"
        table, rows = table["head"], rows * 3 ** (3 - 1)  # agent 0's row where nobody has chosen yet
    elif sees == "local":
        rows = [4 * agent + int(jnp.argmax(seen.agents[agent])) for agent in range(3)]
    predicted = np.asarray(table)[mine, 0, rows, 0].reshape(SEEDS, -1)
    return restored(state, mine, predicted)


def restored(state, mine, predicted):
    """In units of return, where the critic's are others."""
    if not hasattr(state, "scale"):
        return predicted
    weight = np.asarray(state.scale.weight)[mine, None]
    mean = np.asarray(state.scale.mean)[mine, None] / weight
    square = np.asarray(state.scale.square)[mine, None] / weight
    return mean + predicted * np.sqrt(np.maximum(square - mean**2, 1e-2))


def values_encoded(name, seen, mine):
    """The values ``[seeds, N]`` that the encoder gives to what agents see in a first step."""
    run = learned(name)
    heads, told = run.config.heads, run.config.sharing != "full"
    if hasattr(run.config, "decay"):
        mix = retention.one_step(seen.alive, retention.decays(heads, run.config.decay))
    else:
        mix = attention.among(seen.alive, heads)
    rows = sequence.seen(seen.agents, seen.alive, told)
    encoders = jax.tree.map(lambda x: x[mine], run.state.params.network["encoder"])
    return np.asarray(jax.jit(jax.vmap(lambda p: sequence.encode(p, mix, (), rows)[1]))(encoders))


def values_played(name, seen, mine):
    """The critic's value of the greedy joint action, where it values actions and not observations."""
    run = learned(name)
    module = sys.modules[METHODS[name].make.__module__]
    spec = PROBES["constant"].spec

    @jax.jit
    @jax.vmap
    def values(member, state):
        policy = run.plan.make(member.config, member.source).policy(state, greedy=True)
        action, _, _ = policy.act(jax.random.key(0), policy.start(), seen)
        critic = state.params.critic
        table = critic.reshape(-1, critic.shape[-1])  # one set for all agents
        return table[module.entry_played(spec, seen.state, action)]

    return np.asarray(values(*jax.tree.map(lambda x: x[mine], (run.stacked, run.state))))


KNOWN = [
    ("constant", 0, 0, 1.0),
    ("seen", 0, 0, -1.0),
    ("seen", 1, 0, 1.0),
    ("delayed", 0, 0, GAMMA),
    ("delayed", 0, 1, 1.0),
    ("endless", 0, 0, 1 / (1 - GAMMA)),
]


@pytest.mark.parametrize(("probe", "bits", "clock", "known"), KNOWN)
@pytest.mark.parametrize("name", LEARNERS)
def test_the_value_is_found(name, probe, bits, clock, known):
    error = np.abs(values_at(name, probe, bits, clock) - known).max(axis=1)
    assert (error <= 0.05 * max(1, abs(known))).sum() >= ENOUGH, error


@pytest.mark.parametrize("probe", ["constant", "delayed", "action", "both"])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_policy_is_found(name, probe):
    """The greedy policy earns what the oracle says, in every episode of its evaluation."""
    best = solve(PROBES[probe]).value
    found = np.abs(learned(name).final["return"][members_of(probe)] - best) <= 1e-3
    assert found.sum() >= ENOUGH


@pytest.mark.parametrize("probe", PROBES)
def test_the_probes_are_environments_with_these_optima(probe):
    check(PROBES[probe])
    known = {"seen": 0.0, "delayed": GAMMA, "endless": 1 + GAMMA}.get(probe, 1.0)
    assert solve(PROBES[probe], gamma=GAMMA).value == pytest.approx(known)
