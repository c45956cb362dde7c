"""Prefix heads: teacher forcing equals acting one by one, and nobody sees a later choice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarl_tad.networks import prefix
from jaxmarl_tad.sharing import init_sets, of_agent, sharing

N, A, STATES, OUT = 4, 3, 2, 3
CASES = [
    *(("table", mode) for mode in ("full", "full_id", "none")),
    *(("sum", mode) for mode in ("full_id", "none")),
    *(("attention", mode) for mode in ("full", "full_id")),
]


class Joint:
    """One head for four agents, and its two ways to be read."""

    def __init__(self, kind, mode):
        self.share = sharing(mode, N)
        read = "attention" if kind == "attention" else "sum"
        self.head = prefix.head(
            "table" if kind == "table" else "mlp",
            read,
            inputs=STATES,
            outputs=OUT,
            agents=N,
            actions=A,
            identity=self.share.identity,
            hidden=(16, 16),
        )
        self.params = init_sets(self.head.init, jax.random.key(0), self.share)
        self.features = [jnp.int32(s) for s in range(STATES)]
        if kind != "table":
            self.features = list(jax.random.normal(jax.random.key(1), (STATES, STATES)))
        self.teacher = jax.jit(self._teacher_forced)
        self.one = jax.jit(self._one_by_one)

    def own(self, agent):
        return of_agent(self.params, self.share, agent)

    def _teacher_forced(self, x, action, order, alive):
        """All outputs in one pass."""
        agents, position = jnp.arange(N), jnp.argsort(order)
        before = (position[None, :] < position[:, None]) & alive[None, :]
        tokens = jax.vmap(lambda i, a: self.head.token(self.own(i), x, i, a))(agents, action)
        sums = prefix.prefixes(tokens, before)
        return jax.vmap(lambda i, p: self.head.read(self.own(i), x, i, p))(agents, sums)

    def _one_by_one(self, x, action, order, alive):
        """Outputs as they come about while acting; the prefix grows by each living agent's token."""

        def move(grown, agent):
            output = self.head.read(self.own(agent), x, agent, grown)
            token = self.head.token(self.own(agent), x, agent, action[agent])
            return jax.tree.map(lambda g, t: g + jnp.where(alive[agent], t, 0), grown, token), output

        _, outputs = jax.lax.scan(move, self.head.empty(), order)
        return jnp.zeros((N, OUT)).at[order].set(outputs)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def joint(request):
    return Joint(*request.param)


def draws(count):
    rng = np.random.default_rng(2)
    for _ in range(count):
        yield (
            rng.integers(A, size=N).astype(np.int32),
            rng.permutation(N).astype(np.int32),
            rng.random(N) < 0.7,
        )


def test_teacher_forcing_equals_acting_one_by_one(joint):
    for action, order, alive in draws(20):
        for x in joint.features:
            np.testing.assert_allclose(
                joint.teacher(x, action, order, alive),
                joint.one(x, action, order, alive),
                rtol=1e-5,
                atol=1e-5,
            )


def test_strictly_causal(joint):
    """A choice changes the outputs of those behind it in line, and of nobody else, itself included."""
    x, everybody = joint.features[0], np.ones(N, bool)
    for action, order, _ in draws(10):
        before = np.asarray(joint.teacher(x, action, order, everybody))
        for place, agent in enumerate(order):
            other = action.copy()
            other[agent] = (action[agent] + 1) % A
            after = np.asarray(joint.teacher(x, other, order, everybody))
            differs = np.any(before != after, axis=-1)
            np.testing.assert_array_equal(differs[order], np.arange(N) > place)


def test_the_dead_leave_no_token(joint):
    x = joint.features[0]
    for action, order, alive in draws(10):
        before = joint.teacher(x, action, order, alive)
        other = np.where(alive, action, (action + 1) % A).astype(np.int32)
        np.testing.assert_array_equal(before, joint.teacher(x, other, order, alive))


def test_who_chose_is_told(joint):
    """Agent 3 can tell that agent 0 took action 1 from agent 2 having taken it."""
    x, action = joint.features[0], np.ones(N, np.int32)
    order = np.arange(N, dtype=np.int32)
    by_0, by_2 = (
        joint.teacher(x, action, order, np.isin(np.arange(N), (chooser, 3))) for chooser in (0, 2)
    )
    assert np.any(np.asarray(by_0)[3] != np.asarray(by_2)[3])


def test_state_is_told(joint):
    everybody, order = np.ones(N, bool), np.arange(N, dtype=np.int32)
    outputs = [
        np.asarray(joint.teacher(x, np.ones(N, np.int32), order, everybody)) for x in joint.features
    ]
    assert np.all(np.any(outputs[0] != outputs[1], axis=-1))


def situations(reader, agents, actions):
    """Everything the reader may be told: who of the others has chosen, and what; -1 for not yet."""
    others = [range(-1, actions) if i != reader else (-1,) for i in range(agents)]
    return itertools.product(*others)


@pytest.mark.parametrize(("agents", "actions", "states"), [(2, 3, 2), (3, 2, 2), (4, 2, 1), (2, 5, 3)])
def test_rows_of_the_table_are_a_numbering_of_states_and_situations(agents, actions, states):
    # Σ over states of Π_{j ≠ reader} (A + 1): every row is met exactly once by every reader.
    count = states * (actions + 1) ** (agents - 1)
    assert prefix.table_rows(states, agents, actions, identity=True) == agents * count
    row = jax.jit(jax.vmap(lambda s, i, c: prefix.table_row(s, i, c, agents, actions, True)))
    for reader in range(agents):
        told = list(itertools.product(range(states), situations(reader, agents, actions)))
        code = [sum((a + 1) * (actions + 1) ** j for j, a in enumerate(who)) for _, who in told]
        rows = row(
            jnp.asarray([s for s, _ in told]),
            jnp.full(len(told), reader),
            jnp.asarray(code, jnp.int32),
        )
        assert sorted(np.asarray(rows).tolist()) == list(range(count))


def test_readers_without_an_identity_are_told_who_chose_what():
    # All (A + 1)^N codes differ, so "0 chose a" and "1 chose a" never share a row.
    count = prefix.table_rows(STATES, N, A, identity=False)
    assert count == STATES * (A + 1) ** N
    rows = {
        int(prefix.table_row(jnp.asarray(s), jnp.asarray(0), jnp.asarray(c), N, A, False))
        for s in range(STATES)
        for c in range((A + 1) ** N)
    }
    assert rows == set(range(count))


def test_readers_with_an_identity_have_rows_of_their_own():
    joint = Joint("table", "full_id")
    rows = prefix.table_rows(STATES, N, A, identity=True)
    joint.params = jnp.arange(rows, dtype=jnp.float32)[None, :, None]
    read = jax.jit(jax.vmap(lambda s, i, c: joint.head.read(joint.own(i), s, i, c)[0]))
    seen = []
    for reader in range(N):
        told = list(itertools.product(range(STATES), situations(reader, N, A)))
        code = [sum((a + 1) * (A + 1) ** j for j, a in enumerate(who)) for _, who in told]
        states = jnp.asarray([s for s, _ in told])
        seen += np.asarray(read(states, jnp.full(len(told), reader), jnp.asarray(code))).tolist()
    assert sorted(seen) == list(range(rows))
