"""Acting in many environments at once and recording what happened.

Episodes are reset here and nowhere else. The transition keeps both what an action led to (``next``)
and, in the following row, the observation that was acted on, so that a truncated step can bootstrap
from its true final observation.

A reset is drawn in every step of every environment, and used where an episode ended: exact, and cheap
while a reset costs about as much as a step. Where it costs more (``spec.reset_pool > 0``), a call of
:func:`rollout` first draws a pool of fresh episodes, one for every ``reset_pool`` steps of each
environment, and hands them out in turn. Each is then used once, and resets are as independent as exact
ones, unless more episodes end within the call than the pool holds: then it starts over, and some
episodes of the call begin alike. Environments that end in the same step never share an entry, and
calls with different keys share nothing.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmarl_tad.types import Key, Memory, Policy, State, Transition
from tad_envs import Environment, Observation

ENVS = "envs"
"""The axis of a device mesh over which the environments of one run are spread."""


class Actors(NamedTuple):
    """Where ``E`` environments and their policy's memories stand; all leaves ``[E, ...]``."""

    env_state: State
    observation: Observation
    memory: Memory
    first: Bool[Array, "E"]
    """Whether the next step begins an episode."""


def begin(env: Environment, policy: Policy, key: Key, envs: int) -> Actors:
    """``envs`` fresh episodes."""
    env_state, observation = over_devices(jax.vmap(env.reset)(keys(key, envs)))
    return Actors(env_state, observation, _fresh(policy, envs), jnp.ones(envs, bool))


def rollout(
    env: Environment, policy: Policy, key: Key, actors: Actors, steps: int
) -> tuple[Actors, Transition]:
    """``steps`` steps in every environment, with resets; transitions are ``[T, E, ...]``."""
    envs = actors.first.shape[0]
    pool = None
    if env.spec.reset_pool:
        # A key that no step has: theirs are those of 0 to steps - 1.
        pool_keys = keys(jax.random.fold_in(key, steps), pool_size(env, envs, steps))
        pool = jax.vmap(env.reset)(pool_keys)

    def step(carry: tuple[Actors, Array], words: Array) -> tuple[tuple[Actors, Array], Transition]:
        actors, used = carry
        now = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
        act_keys, step_keys, reset_keys = keys(now, 3, envs)
        memory = select(actors.first, _fresh(policy, envs), actors.memory)
        actors, transition, _ = _advance(
            env, policy, act_keys, step_keys, actors._replace(memory=memory)
        )
        ended = transition.terminated | transition.truncated
        if pool is None:
            fresh = jax.vmap(env.reset)(reset_keys)
        else:
            fresh, used = _handed_out(pool, ended, used)
        env_state, observation = select(ended, fresh, (actors.env_state, actors.observation))
        return (over_devices(Actors(env_state, observation, actors.memory, ended)), used), transition

    begun = (over_devices(actors), jnp.zeros((), jnp.int32))
    (actors, _), transitions = jax.lax.scan(step, begun, _key_words(key, steps))
    return actors, transitions


def pool_size(env: Environment, envs: int, steps: int) -> int:
    """How many fresh episodes a rollout draws in advance where ``spec.reset_pool > 0``."""
    return envs * math.ceil(steps / env.spec.reset_pool)


def _handed_out(
    pool: tuple[State, Observation], ended: Bool[Array, "E"], used: Int[Array, ""]
) -> tuple[tuple[State, Observation], Int[Array, ""]]:
    """The next entries of the pool, one for each environment that ended; and how many are used.

    ``used`` counts up to the size of the pool. What the other environments are given does not matter.
    """
    size = pool[1].alive.shape[0]
    upto = used + jnp.cumsum(ended.astype(jnp.int32))
    entry = (upto - 1) % size
    return jax.tree.map(lambda x: x[entry], pool), upto[-1] % size


def over_devices(tree: State) -> State:
    """Leaves ``[E, ...]`` spread over the ``envs`` axis of the device mesh, where there is one.

    What is computed from them stays spread; the compiler adds what a sum over environments needs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(ENVS, 1) == 1:
        return tree
    spread = jax.sharding.PartitionSpec(ENVS)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spread), tree)


def taken(tree: State, rows: Int[Array, "C E"]) -> State:
    """Of leaves ``[T, E, ...]``, in each environment the given rows: ``[C, E, ...]``."""

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=0)

    return jax.tree.map(take, tree)


class Episodes(NamedTuple):
    """Whole episodes, padded to the horizon: ``transition`` is ``[T, E, ...]``."""

    transition: Transition
    valid: Bool[Array, "T E"]
    """Whether the step belongs to the episode, i.e. lies at or before its end."""
    info: dict[str, Array]
    """The environment's ``info`` at each step, ``[T, E]``."""


def episodes(env: Environment, policy: Policy, key: Key, envs: int, horizon: int) -> Episodes:
    """One whole episode in each of ``envs`` environments; nothing after its end counts."""

    def step(carry: tuple[Actors, Array], words: Array) -> tuple[tuple[Actors, Array], Episodes]:
        actors, running = carry
        now = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
        act_keys, step_keys = keys(now, 2, envs)
        after, transition, info = _advance(env, policy, act_keys, step_keys, actors)
        ended = transition.terminated | transition.truncated
        after = after._replace(first=jnp.zeros(envs, bool))
        return (after, running & ~ended), Episodes(transition, running, info)

    start = begin(env, policy, jax.random.fold_in(key, horizon), envs)
    begun = (start, jnp.ones(envs, bool))
    _, recorded = jax.lax.scan(step, begun, _key_words(key, horizon))
    return recorded


def _advance(
    env: Environment, policy: Policy, act_keys: Key, step_keys: Key, actors: Actors
) -> tuple[Actors, Transition, dict[str, Array]]:
    """One step in every environment, without resets; also what the environments tell."""
    action, memory, extras = jax.vmap(policy.act)(act_keys, actors.memory, actors.observation)
    env_state, timestep = jax.vmap(env.step)(step_keys, actors.env_state, action)
    transition = Transition(
        observation=actors.observation,
        action=action,
        reward=timestep.reward,
        terminated=timestep.terminated,
        truncated=timestep.truncated,
        first=actors.first,
        next=timestep.observation,
        extras=extras,
    )
    after = Actors(env_state, timestep.observation, memory, actors.first)
    return after, transition, timestep.info


def select(condition: Bool[Array, "E"], yes: State, no: State) -> State:
    """Per environment ``yes`` where ``condition`` holds, else ``no``; any pytree of ``[E, ...]``."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)


def _fresh(policy: Policy, envs: int) -> Memory:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (envs, *x.shape)), policy.start())


def _key_words(key: Key, steps: int) -> Array:
    """The words of a key per step, hashed at once: a hash within the loop is kernels within it."""
    return jax.random.key_data(jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(steps)))


def keys(key: Key, *shape: int) -> Key:
    """Keys of this shape, all used in one step: ``key`` with a running index put into its last word.

    ``jax.random.split`` would hash once more per key, a third of the cost of collecting from a small
    game, and each hash is compiled. A counter-based generator needs keys that differ, not keys that
    look random. What comes out must be hashed (``fold_in``) before it is put in again: keys derived
    twice in a row could be equal.
    """
    words = jax.random.key_data(key)
    index = jnp.arange(math.prod(shape), dtype=words.dtype).reshape(shape)
    spread = [jnp.broadcast_to(word, shape) for word in words[:-1]] + [words[-1] ^ index]
    return jax.random.wrap_key_data(jnp.stack(spread, axis=-1), impl=jax.random.key_impl(key))
