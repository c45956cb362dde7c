"""Speed of environments, and of jumanji's own where it has the game, in one run.

    python benchmarks/environments.py [NAME ...]

Each of 64 environments takes random actions, drawn outside of what is timed; a step gives all that an
environment returns. Seconds are CPU-seconds of the process, all threads; compilation is from a cold
cache. ``reset/step`` above 1.5 asks for ``spec.reset_pool``. jumanji's steps are those of its ``step``
with the same kind of actions, without its own resets; ``ratio`` is our speed over that.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tad_envs import make

NAMES = (
    "traffic/grid3x3",
    "mpe/spread",
    "mpe/speaker_listener",
    "hallway/meet",
    "relay",
    "lbf/8x8-2p-2f-coop",
    "lbf/15x15-4p-5f",
    "rware/tiny-2ag",
    "rware/small-4ag",
    "football/3_vs_1_with_keeper",
    "football/counterattack_easy",
    "predator_prey/stag_hunt",
)
ENVS, STEPS, REPEATS = 64, 1000, 5


def timed(function: Callable, *arguments: Any) -> tuple[float, float]:
    """CPU-seconds of compiling, and of the fastest call."""
    began = time.process_time()
    compiled = jax.jit(function).lower(*arguments).compile()
    compiling = time.process_time() - began
    calls = []
    for _ in range(REPEATS):
        began = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        calls.append(time.process_time() - began)
    return compiling, min(calls)


def played(step: Callable, state: Any, keys: jax.Array, actions: jax.Array) -> tuple[float, float]:
    """Seconds of compiling one step of all environments, and of one step of one."""

    def once(state: Any, key: jax.Array, action: jax.Array) -> Any:
        return jax.vmap(step)(jax.random.split(key, ENVS), state, action)

    def run(state: Any, keys: jax.Array, actions: jax.Array) -> Any:
        return jax.lax.scan(lambda s, x: once(s, *x), state, (keys, actions))

    compiling, _ = timed(once, state, keys[0], actions[0])
    return compiling, timed(run, state, keys, actions)[1] / (ENVS * STEPS)


def ours(name: str) -> tuple[float, float, float, float]:
    """Seconds: compiling reset and step, one reset, one step."""
    env = make(name)

    def fresh(key: jax.Array) -> Any:
        return jax.vmap(env.reset)(jax.random.split(key, ENVS))

    def many(keys: jax.Array) -> Any:
        return jax.lax.scan(lambda _, key: (None, fresh(key)), None, keys)[1]

    key = jax.random.key(0)
    reset_compile, _ = timed(fresh, key)
    state, seen = jax.jit(fresh)(key)
    keys = jax.random.split(key, STEPS)
    noise = jax.random.uniform(key, (STEPS, *seen.legal.shape))
    actions = jnp.argmax(jnp.where(seen.legal.any(0), noise, -1), axis=-1).astype(jnp.int32)
    _, resets = timed(many, keys[:100])
    step_compile, step = played(env.step, state, keys, actions)
    return reset_compile, step_compile, resets / (ENVS * 100), step


def upstream(name: str) -> float | None:
    """Seconds of one step of jumanji's environment of the same size."""
    game = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("lbf/"):
            from jumanji.environments.routing import lbf as module

            sizes: Any = (game.size, game.n_agents, game.foods, game.sight)
            made = module.generator.RandomGenerator(*sizes, force_coop=game.coop)
            env: Any = module.env.LevelBasedForaging(made, time_limit=game.horizon)
        elif name.startswith("rware/"):
            from jumanji.environments.routing import robot_warehouse as module

            sizes = (game.rows, game.columns, game.height, game.n_agents, 1, game.requests)
            made = module.generator.RandomGenerator(*sizes)
            env = module.env.RobotWarehouse(made, time_limit=game.horizon)
        else:
            return None
    key = jax.random.key(0)
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), ENVS))
    spec = game.spec
    actions = jax.random.randint(key, (STEPS, ENVS, spec.n_agents), 0, spec.n_actions)
    step = lambda _, state, action: env.step(state, action)  # noqa: E731
    return played(step, state, jax.random.split(key, STEPS), actions)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", default=NAMES)
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{'':28}{'M steps/s':>10}{'compile s: reset':>18}{'step':>7}{'reset/step':>12}", end="")
    print(f"{'pool':>6}{'jumanji':>9}{'ratio':>7}")
    for name in parser.parse_args().names:
        reset_compile, step_compile, reset, step = ours(name)
        line = (
            f"{name:28}{1e-6 / step:10.3f}{reset_compile:18.2f}{step_compile:7.2f}{reset / step:12.1f}"
        )
        line += f"{make(name).spec.reset_pool:6}"
        theirs = upstream(name)
        print(line + (f"{1e-6 / theirs:9.3f}{theirs / step:7.1f}" if theirs else ""), flush=True)


if __name__ == "__main__":
    main()
