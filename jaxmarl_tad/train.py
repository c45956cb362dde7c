"""The loop, once, for every algorithm.

Every key derives from the run's key and the number of the iteration, so that a run cut into chunks,
or stopped and resumed, repeats the whole one bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxmarl_tad.optimise import scan_mean
from jaxmarl_tad.types import Algorithm, Key, Metrics, Policy, State
from tad_envs import require

Evaluate = Callable[[Policy, Key], dict[str, Array]]
"""``evaluate(policy, key)``: scalars that describe the greedy policy."""

_EVALUATION_KEY = 2**31 - 1


def init(algorithm: Algorithm, key: Key) -> State:
    """The state of a run before its first iteration."""
    return algorithm.init(jax.random.fold_in(key, 0))


def chunk(
    algorithm: Algorithm,
    evaluate: Evaluate,
    key: Key,
    state: State,
    number: int | Int[Array, ""],
    *,
    iterations: int,
    evaluations: int,
) -> tuple[State, Metrics]:
    """Chunk ``number`` (from 0) of ``evaluations`` equal ones: its iterations, then an evaluation.

    Returns the state and the means of the iterations' metrics together with the evaluation's.
    """
    length = iterations // evaluations

    def iteration(thin: State, i: Array) -> tuple[State, Metrics]:
        t = number * length + i
        now = _shaped_like(state, thin)
        now, report = algorithm.step(jax.random.fold_in(key, t + 1), now, t / iterations)
        return _thin(now), report

    thin, means = scan_mean(iteration, _thin(state), jnp.arange(length))
    state = _shaped_like(state, thin)
    evaluation_key = jax.random.fold_in(jax.random.fold_in(key, _EVALUATION_KEY), number)
    return state, means | evaluate(algorithm.policy(state, greedy=True), evaluation_key)


def _thin(state: State) -> State:
    """``state`` without axes of length 1, for a loop to carry.

    The compiler may lay such axes out in one way within a loop and in another around it, and then
    copies the array in every iteration, with a kernel for each.
    """
    return jax.tree.map(lambda x: x.reshape([n for n in x.shape if n != 1]), state)


def _shaped_like(state: State, thin: State) -> State:
    return jax.tree.map(lambda whole, x: x.reshape(whole.shape), state, thin)


def train(
    algorithm: Algorithm, evaluate: Evaluate, key: Key, *, iterations: int, evaluations: int
) -> tuple[State, dict[str, Any]]:
    """A whole run as one pure function of ``key``, to be jitted and vmapped by whoever owns it.

    Returns the last state and the curves ``{name: [evaluations]}``. ``evaluations`` must divide
    ``iterations``. Eight seeds of one learner::

        job = jt.prepare("ippo", "matrix/climbing")
        env = jt.make("matrix/climbing")
        learner = jt.algorithm("ippo").make(job.config, env)

        def whole_run(key):
            evaluate = lambda policy, key: jt.score(env, policy, key, 32)
            return jt.train(learner, evaluate, key, iterations=20, evaluations=2)

        keys = jax.random.split(jax.random.key(0), 8)
        state, curves = jax.jit(jax.vmap(whole_run))(keys)  # curves["return"]: [8, 2]
    """
    require(
        iterations % evaluations == 0,
        f"evaluations={evaluations} must divide iterations={iterations}.",
    )

    def one(state: State, number: Array) -> tuple[State, Metrics]:
        return chunk(
            algorithm,
            evaluate,
            key,
            state,
            number,
            iterations=iterations,
            evaluations=evaluations,
        )

    return jax.lax.scan(one, init(algorithm, key), jnp.arange(evaluations))
