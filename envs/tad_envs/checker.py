"""The environment checker: what every environment promises, tried on random episodes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tad_envs import finite
from tad_envs.reference import random_action
from tad_envs.struct import AnyArray, require
from tad_envs.types import Environment, Observation, Spec, TimeStep

_EPISODES = 8
_TOLERANCE = 1e-5
_COMPARED = 16
"""Steps on which vmap and a loop are compared, each by itself: rounding grows from step to step."""
_HALF_THE_DIGITS = float(np.sqrt(np.finfo(np.float32).eps))
"""How far they may be apart: so much is lost where an angle is found by its cosine."""


class _Trace(NamedTuple):
    """Random episodes that run on after their end; axes ``[E]`` episodes, then ``[T]`` steps."""

    first_state: Any
    first: Observation
    state: Any
    """State in which each step was taken."""
    action: Any
    following: Any
    """State that each step led to."""
    step: TimeStep


def check(env: Environment, key: jax.Array | None = None, steps: int | None = None) -> None:
    """Raise a ``ValueError`` of one sentence for the first promise that ``env`` breaks.

    Checked: sizes, dtypes and weak types against ``env.spec`` and between steps; the claim of
    one-hot features; a legal action for every agent alive; finite numbers, also past the end;
    ``terminated`` and ``truncated`` exclusive, and one of them within the horizon; no step that
    begins anew by itself; no call back to the host; determinism in the key; ``vmap`` equal to a loop;
    and for finite games ``starts``, ``outcomes`` and ``observe`` consistent with ``reset`` and
    ``step``.

    Args:
        env: the environment, a pytree.
        key: consumed; of a fixed seed by default.
        steps: length of the random episodes; three horizons by default. All is held in memory: give
            fewer for large views, and no less than a horizon if ends are to be checked.
    """
    who = env.name or type(env).__name__
    key = jax.random.key(0) if key is None else key
    steps = 3 * env.spec.horizon if steps is None else steps
    require(steps >= 1, f"steps={steps} must be at least 1.")
    _check_spec(who, env.spec)
    _check_shapes(who, env)
    keys = jax.random.split(key, _EPISODES)
    played = _episodes(env, keys, steps)
    trace = _host(played)
    _check_observation(who, env.spec, trace.first)
    _check_observation(who, env.spec, trace.step.observation)
    _check_ends(who, env.spec, trace.step, steps)
    again = _host(_episodes(env, keys, steps))
    require(_equal(trace, again, tolerance=0.0), f"{who}: the same key gave two different episodes.")
    begun = jax.tree.map(lambda x: x[:, :_COMPARED], (played.state, played.action))
    loop = [
        _host(_alone(env, k, *jax.tree.map(lambda x, i=i: x[i], begun))) for i, k in enumerate(keys)
    ]
    alone = jax.tree.map(lambda *x: np.stack(x), *loop)
    require(
        _equal(_beginning(trace), alone, _HALF_THE_DIGITS),
        f"{who}: vmap and a loop give different episodes.",
    )
    if finite.enumerable(env):
        _check_model(who, env, trace)


def _episode(env: Environment, key: jax.Array, steps: int) -> _Trace:
    """Random legal actions for ``steps`` steps, without any reset."""
    reset_key, step_key = jax.random.split(key)
    first_state, first = env.reset(reset_key)

    def advance(carry: tuple, t: jax.Array) -> tuple[tuple, tuple]:
        state, observation = carry
        action_key, env_key = jax.random.split(jax.random.fold_in(step_key, t))
        action = random_action(env.spec, action_key, observation)
        following, step = env.step(env_key, state, action)
        return (following, step.observation), (state, action, following, step)

    _, (state, action, following, step) = jax.lax.scan(advance, (first_state, first), jnp.arange(steps))
    return _Trace(first_state, first, state, action, following, step)


@functools.partial(jax.jit, static_argnums=2)
def _episodes(env: Environment, keys: jax.Array, steps: int) -> _Trace:
    return jax.vmap(_episode, in_axes=(None, 0, None))(env, keys, steps)


@jax.jit
def _alone(env: Environment, key: jax.Array, state: Any, action: Any) -> tuple:
    """The start of one episode, and its first steps, each from the state it was taken in."""
    reset_key, step_key = jax.random.split(key)

    def again(_: None, step: tuple) -> tuple[None, tuple]:
        t, state, action = step
        env_key = jax.random.split(jax.random.fold_in(step_key, t))[1]
        return None, env.step(env_key, state, action)

    times = jnp.arange(len(action))
    return *env.reset(reset_key), *jax.lax.scan(again, None, (times, state, action))[1]


def _host(tree: Any) -> Any:
    """As numpy arrays; PRNG keys as their data."""

    def plain(x: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.device_get(jax.tree.map(plain, tree))


def _beginning(trace: _Trace) -> tuple:
    """The start and the first few steps."""
    steps = jax.tree.map(lambda x: x[:, :_COMPARED], (trace.following, trace.step))
    return trace.first_state, trace.first, *steps


# --------------------------------------------------------------------------------------------------
# Static promises


def _check_spec(who: str, spec: Spec) -> None:
    for name in ("n_agents", "obs_dim", "state_dim", "horizon"):
        size = getattr(spec, name)
        require(
            isinstance(size, int) and size >= 1, f"{who}: spec.{name}={size!r} must be an int >= 1."
        )
    count = "n_actions" if spec.discrete else "action_dim"
    size = getattr(spec, count)
    require(isinstance(size, int) and size >= 1, f"{who}: spec.{count}={size!r} must be >= 1.")
    require(
        spec.discrete or spec.bounds is not None,
        f"{who}: spec.bounds is needed for continuous actions.",
    )


def _check_shapes(who: str, env: Environment) -> None:
    """Abstract evaluation: sizes and kinds of what ``reset`` and ``step`` return."""
    spec, key = env.spec, jax.eval_shape(jax.random.key, 0)
    state, observation = _traced(who, "reset", lambda e, k: e.reset(k), env, key)
    _check_observation_shapes(who, spec, observation)
    action = (
        jax.ShapeDtypeStruct((spec.n_agents,), jnp.int32)
        if spec.discrete
        else jax.ShapeDtypeStruct((spec.n_agents, spec.action_dim), jnp.float32)
    )
    following, step = _traced(who, "step", lambda e, *rest: e.step(*rest), env, key, state, action)
    _check_observation_shapes(who, spec, step.observation)
    _check_same_type(who, state, following)
    _check_leaf(who, "reward", step.reward, (), jnp.float32)
    _check_leaf(who, "terminated", step.terminated, (), jnp.bool_)
    _check_leaf(who, "truncated", step.truncated, (), jnp.bool_)
    for name, value in step.info.items():
        require(value.shape == (), f"{who}: info[{name!r}] has shape {value.shape}, expected ().")


def _traced(who: str, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shapes of what ``function`` returns, once its program is known to stay on the device."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    called = next((p for p in _primitives(program.jaxpr) if "callback" in p), None)
    require(called is None, f"{who}: {name} calls back to the host ({called}).")
    return shapes


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _primitives(getattr(inner, "jaxpr", inner))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _check_observation_shapes(who: str, spec: Spec, seen: Observation) -> None:
    actions = spec.n_actions if spec.discrete else spec.action_dim
    _check_leaf(who, "observation.agents", seen.agents, (spec.n_agents, spec.obs_dim), jnp.float32)
    _check_leaf(who, "observation.state", seen.state, (spec.state_dim,), jnp.float32)
    _check_leaf(who, "observation.legal", seen.legal, (spec.n_agents, actions), jnp.bool_)
    _check_leaf(who, "observation.alive", seen.alive, (spec.n_agents,), jnp.bool_)


def _check_leaf(who: str, name: str, leaf: Any, shape: tuple[int, ...], dtype: Any) -> None:
    require(leaf.shape == shape, f"{who}: {name} has shape {leaf.shape}, expected {shape}.")
    require(leaf.dtype == dtype, f"{who}: {name} is {leaf.dtype}, expected {jnp.dtype(dtype).name}.")
    require(not leaf.weak_type, f"{who}: {name} has a weak type; give it an explicit dtype.")


def _check_same_type(who: str, before: Any, after: Any) -> None:
    kinds = [jax.tree.structure(tree) for tree in (before, after)]
    require(kinds[0] == kinds[1], f"{who}: step returns another state structure than reset.")
    paths = jax.tree_util.tree_leaves_with_path(before)
    for (path, one), other in zip(paths, jax.tree.leaves(after), strict=True):
        name = "state" + jax.tree_util.keystr(path)
        require(not one.weak_type, f"{who}: {name} has a weak type; give it an explicit dtype.")
        require(
            (one.shape, one.dtype, one.weak_type) == (other.shape, other.dtype, other.weak_type),
            f"{who}: {name} is {one} after reset and {other} after step.",
        )


# --------------------------------------------------------------------------------------------------
# Promises about values


def _check_observation(who: str, spec: Spec, seen: Observation) -> None:
    for name in ("agents", "state"):
        value = getattr(seen, name)
        require(bool(np.isfinite(value).all()), f"{who}: observation.{name} is not finite.")
        if spec.one_hot:
            ones = ((value == 1).sum(axis=-1) == 1) & ((value != 0).sum(axis=-1) == 1)
            require(bool(ones.all()), f"{who}: observation.{name} is not one-hot as spec.one_hot says.")
    if spec.one_hot:  # tables of policies know one set of legal actions for each agent
        every = seen.legal.reshape(-1, *seen.legal.shape[-2:])
        require(
            bool((every == every[0]).all()),
            f"{who}: what is legal differs between states, which spec.one_hot rules out.",
        )
    able = seen.legal.any(axis=-1) | ~seen.alive
    require(bool(able.all()), f"{who}: an agent that is alive has no legal action.")


def _check_ends(who: str, spec: Spec, step: TimeStep, steps: int) -> None:
    require(bool(np.isfinite(step.reward).all()), f"{who}: the reward is not finite.")
    both = step.terminated & step.truncated
    require(not both.any(), f"{who}: a step is both terminated and truncated.")
    require(
        spec.terminates or not step.terminated.any(),
        f"{who}: a step is terminated although spec.terminates is False.",
    )
    over = step.terminated | step.truncated
    _check_stays_over(who, over, step.truncated, spec.horizon)
    if steps >= spec.horizon:
        ended = over[:, : spec.horizon].any(axis=1)
        require(bool(ended.all()), f"{who}: an episode is longer than spec.horizon={spec.horizon}.")
        early = step.truncated[:, : spec.horizon - 1].any()
        require(
            not early,
            f"{who}: the clock ran out before spec.horizon={spec.horizon} steps.",
        )


def _check_stays_over(who: str, over: AnyArray, truncated: AnyArray, horizon: int) -> None:
    """What resets itself is over again only a horizon later; agents in turn end by the last one's."""
    for t in range(over.shape[1] - horizon + 1):
        following = over[truncated[:, t], t + 1 : t + horizon]
        again = following.any(axis=1).all() or horizon == 1
        require(bool(again), f"{who}: it goes on after the clock ran out, as if it began anew.")


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        np.allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
        )
        for a, b in pairs
    )


@jax.jit
def _model(env: Any, state: Any, action: Any, following: Any) -> tuple:
    return env.starts(), jax.vmap(env.outcomes)(state, action), jax.vmap(env.observe)(following)


def _check_model(who: str, env: Environment, trace: _Trace) -> None:
    """``reset`` and ``step`` draw from ``starts`` and ``outcomes``."""
    flat = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]),
        (trace.state, trace.action, trace.following, trace.step),
    )
    state, action, following, step = flat
    starts, outcomes, seen = _host(_model(env, state, action, following))
    episodes = len(jax.tree.leaves(trace.first_state)[0])
    repeated = jax.tree.map(lambda x: np.broadcast_to(x, (episodes, *x.shape)), starts)
    _check_distribution(who, "starts", repeated[0])
    require(_is_among(trace.first_state, *repeated), f"{who}: reset led to a state not in starts.")
    probability, states, rewards, terminated = outcomes
    _check_distribution(who, "outcomes", probability)
    reached = (following, step.reward, step.terminated)
    require(
        _is_among(reached, probability, (states, rewards, terminated)),
        f"{who}: step led to a state, reward or end that is not in outcomes.",
    )
    require(
        _equal(seen, step.observation, _TOLERANCE),
        f"{who}: observe of a state differs from what step showed there.",
    )


def _check_distribution(who: str, name: str, probability: np.ndarray) -> None:
    total = probability.sum(axis=-1)
    require(
        bool((probability >= 0).all() and np.allclose(total, 1.0, atol=_TOLERANCE)),
        f"{who}: the probabilities of {name} are not a distribution.",
    )


def _is_among(value: Any, probability: np.ndarray, alternatives: Any) -> bool:
    """Whether each ``value [B, ...]`` is a possible one of its ``alternatives [B, K, ...]``."""
    same = probability > 0
    for one, many in zip(jax.tree.leaves(value), jax.tree.leaves(alternatives), strict=True):
        one, many = np.asarray(one, np.float64)[:, None], np.asarray(many, np.float64)
        close = np.isclose(one, many, _TOLERANCE, _TOLERANCE)
        same = same & close.reshape(*same.shape, -1).all(axis=2)
    return bool(same.any(axis=1).all())
