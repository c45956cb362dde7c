"""Members: everything that differs between the runs of one compiled program, stacked.

A member is a config, a source to learn from, an environment to be evaluated in, and a seed. Members
of one program have equal static parts; their leaves are stacked on axis ``M`` and the run is
``vmap``-ed over it. One member is vmapped as well, so that there is one program and not two.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxmarl_tad import devices
from jaxmarl_tad.config import as_dict, differences
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.prng import Generator, implementation
from jaxmarl_tad.programs import compiler_options
from jaxmarl_tad.train import chunk, init
from jaxmarl_tad.types import Algorithm, Metrics, State
from tad_envs import Environment

_Result = TypeVar("_Result")

Make = Callable[[Any, Any], Algorithm]
"""``make(config, source)``: the factory of an algorithm; hashable, since it names a program."""


class Member(NamedTuple):
    """One run, or with leaves ``[M, ...]`` all runs of a program."""

    config: Any
    source: Any
    """What is learned from: an environment, a dataset, or a teacher in an environment."""
    env: Environment
    """What the policy is evaluated in."""
    seed: Any


class Plan(NamedTuple):
    """The static part of a program: whatever changes here compiles anew."""

    make: Make
    iterations: int
    evaluations: int
    episodes: int
    prng: Generator = "threefry"


def sweep(one: Callable[[Member], _Result], members: Member) -> _Result:
    """``one(member)`` for every member, in one compiled program, spread over all devices.

    The pure layer of :func:`jaxmarl_tad.run`, for those who own their loop::

        job = jt.prepare("ippo", "matrix/climbing", seeds=8, lr=[0.01, 0.02])

        def whole_run(member):
            learner = jt.algorithm("ippo").make(member.config, member.source)
            evaluate = lambda policy, key: jt.score(member.env, policy, key, 32)
            key = jax.random.key(member.seed)
            return jt.train(learner, evaluate, key, iterations=20, evaluations=2)

        state, curves = jt.sweep(whole_run, job.stacked)  # curves["return"]: [16, 2]

    Args:
        one: A pure function of one member, whose leaves it may use in arithmetic only.
        members: Leaves ``[M, ...]``, as :func:`jaxmarl_tad.prepare` or :func:`stack` makes them.

    Returns:
        What ``one`` returns, with leaves ``[M, ...]``.
    """
    mesh = devices.layout(len(members.seed), 1)
    program = jax.jit(over_members(one), compiler_options=compiler_options())
    return program(devices.place(members, mesh))


def over_members(one: Callable[..., _Result]) -> Callable[..., _Result]:
    """``one(member, ...)`` mapped over members and the leading axes of what follows them.

    What is :func:`~tad_envs.struct.held_once` is the same for every member.
    """

    def mapped(members: Member, *rest: Any) -> _Result:
        return jax.vmap(one, in_axes=(devices.axes(members), *(0 for _ in rest)))(members, *rest)

    return mapped


def product(fields: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of swept values, the last keyword varying fastest."""
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


def stack(members: Sequence[Member]) -> Member:
    """Stack members' leaves on axis ``M`` as numpy arrays of 32 bits.

    Raises ``ValueError`` where static parts differ, because those are different programs.
    """
    structure = jax.tree.structure(members[0])
    for member in members[1:]:
        same = jax.tree.structure(member) == structure and member.env.spec == members[0].env.spec
        if not same:
            raise ValueError(_difference(members[0], member))

    def stacked(*parts: Any) -> Any:
        columns = zip(*map(jax.tree.leaves, parts), strict=True)
        return jax.tree.unflatten(jax.tree.structure(parts[0]), [_column(c) for c in columns])

    return devices.parts(stacked, _the_same, *members)


def _the_same(*parts: Any) -> Any:
    """What all members share."""
    if any(part is not parts[0] for part in parts):
        name = getattr(parts[0], "name", "") or type(parts[0]).__name__
        raise ValueError(f"{name!r} is held once for all members: a run has one such table, not more.")
    return parts[0]


def _column(values: tuple[Any, ...]) -> Any:
    if any(isinstance(value, jax.Array) for value in values):
        return jax.numpy.stack(values)
    arrays = [np.asarray(value) for value in values]
    kind = np.result_type(*arrays)
    if kind == np.float64:
        kind = np.dtype(np.float32)
    if kind == np.int64:
        kind = np.dtype(np.int32)
    shape = max((array.shape for array in arrays), key=len)  # numbers broadcast to arrays
    return np.stack([np.broadcast_to(array, shape) for array in arrays]).astype(kind)


def _difference(a: Member, b: Member) -> str:
    """A sentence saying why two members cannot share a program."""
    here, there = as_dict(a.config), as_dict(b.config)
    fields = [name for name in here if here[name] != there.get(name)]
    if a.env.spec != b.env.spec or type(a.env) is not type(b.env):
        return (
            "environments of one run must have the same kind and sizes; "
            f"{b.env.name!r} has {differences(b.env.spec, a.env.spec)} as {a.env.name!r} has."
        )
    return f"members of one run must have equal static fields; these differ: {', '.join(fields)}."


def run_chunk(plan: Plan, members: Member, state: State, number: Any) -> tuple[State, Metrics]:
    """One chunk of every member, from the state before it."""

    def one(member: Member, state: State) -> tuple[State, Metrics]:
        algorithm = plan.make(member.config, member.source)
        return chunk(
            algorithm,
            lambda policy, key: score(member.env, policy, key, plan.episodes),
            jax.random.key(member.seed, impl=implementation(plan.prng)),
            state,
            number,
            iterations=plan.iterations,
            evaluations=plan.evaluations,
        )

    return over_members(one)(members, state)


def init_members(plan: Plan, members: Member) -> State:
    """The first state of every member; traced once per program, however often it is called."""
    return _init_members(plan, members)


@jax.jit(static_argnums=0)
def _init_members(plan: Plan, members: Member) -> State:
    def one(member: Member) -> State:
        algorithm = plan.make(member.config, member.source)
        return init(algorithm, jax.random.key(member.seed, impl=implementation(plan.prng)))

    return over_members(one)(members)
