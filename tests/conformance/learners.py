"""What the conformance tests share: every registered method, small, in shapes that are compiled once.

A method that is registered is covered by its row: by what it declares of memory and sharing, and by
the names of its config's fields. Distillation is one more learner, with a teacher that TAD-PPO made.
Methods of the offline family learn from episodes of random legal play in the same environments.
"""

import contextlib
import functools
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from conformance.probes import Skirmish

import jaxmarl_tad as jt
from jaxmarl_tad import dataset, distributions
from jaxmarl_tad import distill as distillation
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.config import leaf_fields, static_fields
from jaxmarl_tad.distill import Config as DistillConfig
from jaxmarl_tad.distill import make as make_student
from jaxmarl_tad.distill import resolve as resolve_student
from jaxmarl_tad.rollout import episodes
from jaxmarl_tad.types import Policy

DISTILL = "distill"
REPRESENTATIVES = {row.make: row.name for row in METHODS.values()}
LEARN_FROM_DATA = {row.name for row in METHODS.values() if row.family == "offline"}
FAST = {*REPRESENTATIVES.values(), DISTILL} - LEARN_FROM_DATA | {"omiga"}
"""One method per file, which the fast tier examines closely; its presets differ in a term. Methods that
learn from data are one gradient step around the same data and networks: one of them stands for all."""
ITERATIONS = 4

# Small sizes that still wrap a replay, split a batch and run past the end of an episode.
SMALL = {
    "envs": 8,
    "steps": 6,
    "epochs": 2,
    "minibatches": 2,
    "updates": 2,
    "batch": 8,
    "capacity": 16,
    "hidden": (8,),
    "embed": 4,
    "hyper": 4,
    "heads": 2,
    "layers": 2,
    "central": (8,),
    "lr": 0.01,
    "window": 3,
    "mix_hidden": 4,
    "samples": 2,
    "rounds": 2,
    "draws": 3,
    "elites": 2,
}
LENGTHS = (4, 2, 3, 4, 2, 4, 3, 2)
"""Of the episodes that offline methods learn from, as far as they go on for so long."""


class Case(NamedTuple):
    """A method with one choice of memory and sharing, and the kind of actions."""

    method: str
    memory: str
    sharing: str
    actions: str = "discrete"

    def __str__(self):
        kind = "" if self.actions == "discrete" else f"-{self.actions}"
        return f"{self.method}-{self.memory}-{self.sharing}{kind}"

    @property
    def config(self):
        return DistillConfig if self.method == DISTILL else METHODS[self.method].config

    @property
    def offline(self):
        return self.method in LEARN_FROM_DATA

    @property
    def decentralised(self):
        return self.method == DISTILL or METHODS[self.method].execution == "decentralised"

    def fields(self, spec, **given):
        """Small settings, as far as the method has them; ``given`` wins."""
        known = {*leaf_fields(self.config), *static_fields(self.config)}
        found = tuple(2 * i // spec.n_agents for i in range(spec.n_agents))  # as a search might find
        sharing = found if self.sharing == "selective" else self.sharing
        fields = {**SMALL, "memory": self.memory, "sharing": sharing}
        if hasattr(self.config, "first_episodes"):  # it collects whole episodes
            fields["steps"] = spec.horizon
        each = fields["envs"] * fields["steps"] if "envs" in known else 1  # else gradient steps
        fields["total_steps"] = ITERATIONS * each
        if self.method != DISTILL:
            known -= METHODS[self.method].fixed.keys()
        fields = {name: value for name, value in fields.items() if name in known}
        return fields | given


def default_case(name):
    """A method's own memory and sharing, and the first kind of actions that it declares."""
    row = METHODS[name]
    return Case(name, row.config().memory, row.config().sharing, row.actions[0])


def every_case():
    """Every combination of memory and sharing that a row declares, and the student's."""
    cases = [
        Case(row.name, memory, sharing, row.actions[0])
        for row in METHODS.values()
        for memory, sharing in itertools.product(row.memory, row.sharing)
    ]
    students = itertools.product(("none", "gru"), ("full", "full_id", "none"))
    return cases + [Case(DISTILL, *pair) for pair in students]


def two_cases():
    """Per method its defaults for each kind of actions, and one other pair of memory and sharing."""
    cases = []
    for row in METHODS.values():
        default = row.config()
        cases += [Case(row.name, default.memory, default.sharing, kind) for kind in row.actions]
        other = "gru" if "gru" in row.memory else row.memory[-1]
        alone = "none" if "none" in row.sharing else row.sharing[-1]
        cases.append(Case(row.name, other, alone, row.actions[0]))
    cases += [Case(DISTILL, "none", "full_id"), Case(DISTILL, "gru", "none")]
    return list(dict.fromkeys(cases))


def team_value(name, params, config, spec, extras, action, observation):
    """What a method of the value family holds joint actions to be worth, ``[*batch, K]``.

    Each such method's module has ``team_value(config, spec)``; ``extras`` are those of its policy.
    """
    told, total = sys.modules[METHODS[name].make.__module__].team_value(config, spec)
    view = told.view
    for _ in range(action.ndim - 1):
        view = jax.vmap(view)
    seen = observation._replace(state=view(observation.state))
    return total(params, extras.get("told", extras["q"]), action, seen)


def skirmish(case, **leaves):
    """The skirmish in the form that gives ``case`` its default network."""
    continuous = case.actions == "continuous"
    return Skirmish(one_hot=case.memory == "none", continuous=continuous, **leaves)


def at_random(spec):
    """Every legal action is as likely; numbers are uniform in their range."""

    def act(key, memory, observation):
        if spec.discrete:
            legal = observation.legal
            log_probs = distributions.log_probabilities(jnp.zeros(legal.shape), legal)
            return distributions.sample(jax.random.uniform(key, (spec.n_agents,)), log_probs), (), {}
        low, high = spec.bounds or (-1.0, 1.0)
        shape = (spec.n_agents, spec.action_dim)
        return jax.random.uniform(key, shape, minval=low, maxval=high), (), {}

    return Policy(start=lambda: (), act=act, execution="decentralised")


@jax.jit
def played(env, key):
    return episodes(env, at_random(env.spec), key, 64, env.spec.horizon)


@functools.cache
def _recorded(env):
    seen = jax.device_get(played(env.value, jax.random.key(0)))
    step, length = seen.transition, seen.valid.sum(0)
    left, chosen = list(range(len(length))), []
    for wanted in (min(wanted, length.max()) for wanted in LENGTHS):
        # One that ended by itself if there is one, else the first that goes on, cut off there.
        i = min((i for i in left if length[i] >= wanted), key=lambda i: length[i] != wanted)
        left.remove(i)
        rows = np.arange(wanted)
        shown = jax.tree.map(
            lambda now, then, i=i, rows=rows: np.concatenate([now[rows, i], then[rows[-1:], i]]),
            step.observation,
            step.next,
        )
        terminated = step.terminated[rows, i]
        truncated = (rows == wanted - 1) & ~terminated
        chosen.append(
            dataset.Episode(shown, step.action[rows, i], step.reward[rows, i], terminated, truncated)
        )
    return dataset.from_episodes(chosen, env.value.spec)


class _ByText(NamedTuple):
    """An environment as the key of a cache: equal if it is written alike."""

    value: object

    def __hash__(self):
        return hash(repr(self.value))

    def __eq__(self, other):
        return repr(self.value) == repr(other.value)


def recorded(env):
    """A few episodes of random legal play, as many rows whatever the environment's leaves are."""
    return _recorded(_ByText(env))


def algorithm(case, env, **given):
    """The learner alone, on the pure layer."""
    fields = case.fields(env.spec, **given)
    if case.method != DISTILL:
        method, source = METHODS[case.method], recorded(env) if case.offline else env
        return method.make(method.resolved(method.settings(**fields), env.spec), source)
    teacher = algorithm(Case("tad_ppo", "none", "full_id"), env)
    policy = teacher.policy(teacher.init(jax.random.key(7)), greedy=True)
    config = DistillConfig(**fields)
    settings = {**fields, **resolve_student(config, env.spec)}
    return make_student(DistillConfig(**settings), env, policy)


@functools.cache
def teacher(one_hot, only=0.0):
    """What the students are taught by: a run of TAD-PPO on the skirmish."""
    case = Case("tad_ppo", "none", "full_id")
    env = Skirmish(one_hot=one_hot, only=only)
    return jt.run("tad_ppo", env, evaluations=ITERATIONS, episodes=8, **case.fields(env.spec))


def learn(case, env, *, seeds=1, after_chunk=None, data=None, **given):
    """A run of ``case`` in as many chunks as iterations; lists in ``given`` are swept.

    Offline methods learn from ``data``, what is recorded in ``env`` by default.
    """
    fields = case.fields((env[0] if isinstance(env, list) else env).spec, **given)
    options = {"evaluations": ITERATIONS, "episodes": 8, "after_chunk": after_chunk}
    if case.offline:
        data = recorded(env) if data is None else data
        return jt.run(case.method, data, eval_env=env, seeds=seeds, **options, **fields)
    if case.method == DISTILL:
        return distillation(teacher(env.one_hot, env.only), env, **options, **fields)
    return jt.run(case.method, env, seeds=seeds, **options, **fields)


class Watched(NamedTuple):
    """A run, and the state after each of its iterations on the host."""

    trained: jt.Trained
    states: list


def watch(case, env, **options):
    """:func:`learn`, keeping every state."""
    states = []
    keep = lambda number, state, metrics: states.append(jax.device_get(state))  # noqa: E731
    return Watched(learn(case, env, after_chunk=keep, **options), states)


@functools.cache
def watched(case, **leaves):
    """One member on the skirmish with these leaves: one program per case serves all of them."""
    return watch(case, skirmish(case, **leaves))


@contextlib.contextmanager
def compilations():
    """A list that grows by the name of each program that is compiled inside."""
    names = []

    def listen(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            names.append(about.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_same_bits(one, other):
    """Equal structure and equal bits, leaf by leaf."""
    one, other = jax.device_get((one, other))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), f"{name} differs"


def assert_close(one, other, **tolerance):
    """Equal structure and nearly equal numbers, leaf by leaf."""
    one, other = jax.device_get((one, other))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)
