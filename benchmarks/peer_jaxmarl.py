"""One measurement of JaxMARL's published scripts, in a process of its own; prints one line of JSON.

    python peer_jaxmarl.py '{"task": "play", "batch": 64, "length": 1000}'

Started by ``throughput.py`` with the interpreter that has ``jaxmarl`` installed, and by nothing else
of this library. ``checkout`` is a checkout of FLAIROx/JaxMARL. The scripts and their configs are run as
they are, but for what is replaced here while they are imported:

* wandb and hydra are empty modules, and host callbacks do nothing;
* the value methods do not stop for tests, and their buffer admits samples as soon as it holds one
  batch of episodes (upstream: 256 episodes and 10,000 steps), so that both sides learn in every
  iteration from then on;
* the number of updates is cut.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any

SCRIPTS = {
    "ippo": ("IPPO/ippo_ff_mpe.py", "IPPO/config/ippo_ff_mpe.yaml"),
    "mappo": ("MAPPO/mappo_rnn_mpe.py", "MAPPO/config/mappo_homogenous_rnn_mpe.yaml"),
    "vdn": ("QLearning/vdn_rnn.py", "QLearning/config/alg/ql_rnn_mpe.yaml"),
    "qmix": ("QLearning/qmix_rnn.py", "QLearning/config/alg/ql_rnn_mpe.yaml"),
}
ENVIRONMENT = "MPE_simple_spread_v3"
HORIZON = 25
VALUE = ("vdn", "qmix")
CALLS = 3
"""How often a compiled program is run, if that is not too long."""
LONG = 20.0
"""Seconds after which it is not run again."""
BEGAN = time.perf_counter()


# --- what both sides measure with -----------------------------------------------------------------


def clock() -> Callable[[], float]:
    """CPU-seconds of this process (user and system, all threads); wall-clock on accelerators."""
    import jax

    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def timed(seconds: Callable[[], float], call: Callable[[int], Any]) -> list[float]:
    """Seconds of ``call(0)``, ``call(1)``, … each of which returns when it is done."""
    taken: list[float] = []
    while len(taken) < CALLS and sum(taken) < LONG:
        began = seconds()
        call(len(taken))
        taken.append(seconds() - began)
    return taken


def compiled(function: Any, *arguments: Any, **options: Any) -> tuple[Any, dict[str, float]]:
    """The compiled function and what tracing (with lowering) and compiling it took."""
    import jax

    seconds = clock()
    began = seconds()
    lowered = jax.jit(function, **options).lower(*arguments)
    traced = seconds()
    call = lowered.compile()
    return call, {"trace_s": traced - began, "compile_s": seconds() - traced}


def peak_mib() -> float:
    """Largest resident set of this process; on accelerators the most device memory in use."""
    import jax

    if jax.default_backend() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def about(*packages: str) -> dict[str, Any]:
    """Device and versions."""
    import jax

    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *packages)}
    device = jax.devices()[0].device_kind
    return {"backend": jax.default_backend(), "device": device, "versions": versions}


# --- the peer ---------------------------------------------------------------------------------------


def imported(checkout: str, method: str) -> Any:
    """The script of ``method`` as a module."""
    hydra, wandb, omegaconf = (types.ModuleType(name) for name in ("hydra", "wandb", "omegaconf"))
    hydra.main = lambda **_: lambda function: function  # type: ignore[attr-defined]
    wandb.log = lambda *_, **__: None  # type: ignore[attr-defined]
    omegaconf.OmegaConf = None  # type: ignore[attr-defined]
    sys.modules |= {"hydra": hydra, "wandb": wandb, "omegaconf": omegaconf}
    path = pathlib.Path(checkout, "baselines", SCRIPTS[method][0])
    spec = importlib.util.spec_from_file_location(f"peer_{method}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(checkout: str, method: str) -> dict[str, Any]:
    """The script's own config."""
    import yaml

    config = yaml.safe_load(pathlib.Path(checkout, "baselines", SCRIPTS[method][1]).read_text())
    return {name: _number(value) for name, value in config.items()} | {"ENV_KWARGS": {}}


def _number(value: Any) -> Any:
    """The number that a text like 1e7 means, which YAML 1.1 reads as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def prepared(module: Any, method: str, config: dict[str, Any], updates: int) -> Callable[..., Any]:
    """The script's ``train`` for so many learning updates; also sets the steps in ``config``."""
    if method not in VALUE:
        config["TOTAL_TIMESTEPS"] = updates * config["NUM_ENVS"] * config["NUM_STEPS"]
        return module.make_train(config)
    first = -(-config["BUFFER_BATCH_SIZE"] // config["NUM_ENVS"])  # collections that hold one batch
    iterations = updates + first - 1
    config["TOTAL_TIMESTEPS"] = iterations * config["NUM_ENVS"] * config["NUM_STEPS"]
    config["LEARNING_STARTS"] = 0
    buffers = module.fbx.make_trajectory_buffer
    early = lambda **settings: buffers(**settings | {"min_length_time_axis": first})  # noqa: E731
    module.fbx = types.SimpleNamespace(make_trajectory_buffer=early)
    env, _ = module.env_from_config(config)
    return module.make_train(config, env)


def train(checkout: str, method: str, seeds: int, updates: int) -> dict[str, Any]:
    module = imported(checkout, method)
    import jax

    seconds = clock()
    import_s = time.process_time() if seconds is time.process_time else time.perf_counter() - BEGAN
    jax.experimental.io_callback = lambda *_, **__: None
    config = published(checkout, method) | {"TEST_DURING_TRAINING": False, "WANDB_MODE": "disabled"}
    function = prepared(module, method, config, updates)
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    call, cost = compiled(jax.vmap(function), keys)

    def run(number: int) -> None:
        jax.block_until_ready(call(jax.random.split(jax.random.PRNGKey(number), seeds)))

    runs = timed(seconds, run)
    script = pathlib.Path(checkout, "baselines", SCRIPTS[method][0]).read_bytes()
    return {
        "import_s": import_s,
        **cost,
        "run_s": runs,
        "steps": seeds * config["TOTAL_TIMESTEPS"],
        "peak_MiB": peak_mib(),
        "script": hashlib.sha256(script).hexdigest()[:12],
        **about("jaxmarl", "flax", "optax"),
    }


def play(batch: int, length: int) -> dict[str, Any]:
    """Random play in ``batch`` environments, with the environment's own resets."""
    import jax
    import jax.numpy as jnp
    import jaxmarl

    env = jaxmarl.make(ENVIRONMENT)

    def function(key: Any) -> Any:
        def step(carry: Any, t: Any) -> Any:
            state, total = carry
            action_key, step_key = jax.random.split(jax.random.fold_in(key, t))
            uniform = jax.random.uniform(action_key, (env.num_agents, batch))
            moves = (uniform * env.action_space(env.agents[0]).n).astype(jnp.int32)
            actions = {agent: moves[i] for i, agent in enumerate(env.agents)}
            keys = jax.random.split(step_key, batch)
            _, state, rewards, _, _ = jax.vmap(env.step)(keys, state, actions)
            return (state, total + sum(rewards.values())), None

        _, state = jax.vmap(env.reset)(jax.random.split(key, batch))
        (_, total), _ = jax.lax.scan(step, (state, jnp.zeros(batch)), jnp.arange(length))
        return total

    call, cost = compiled(function, jax.random.key(0))
    runs = timed(clock(), lambda number: jax.block_until_ready(call(jax.random.key(number))))
    return {**cost, "run_s": runs, "steps": batch * length, "peak_MiB": peak_mib(), **about("jaxmarl")}


def curves(
    checkout: str, seeds: int, updates: int, evaluations: int, episodes: int, reward_scale: float = 1.0
) -> dict[str, Any]:
    """Returns of IPPO as it learns, of sampled actions in episodes of 25 steps, summed over agents.

    The learning rate stays constant, for so it does on the other side. What is learned from is
    multiplied by ``reward_scale``, what is returned is not.
    """
    module = imported(checkout, "ippo")
    import jax
    import jax.numpy as jnp
    import jaxmarl

    config = published(checkout, "ippo") | {
        "ANNEAL_LR": False,
        "ENV_KWARGS": {"max_steps": HORIZON - 1},
    }

    def keep(callback: Any, shape: Any, metric: dict[str, Any]) -> None:
        """In place of the callback to wandb: parameters join what the script reports."""
        metric["params"] = sys._getframe(1).f_locals["train_state"].params

    jax.experimental.io_callback = keep
    logged = module.LogWrapper

    def scaled(env: Any) -> Any:
        """The script's env, whose rewards are smaller."""
        wrapped = logged(env)
        step = wrapped.step

        def smaller(*given: Any) -> Any:
            views, state, rewards, ended, info = step(*given)
            return views, state, {k: reward_scale * r for k, r in rewards.items()}, ended, info

        wrapped.step = smaller
        return wrapped

    module.LogWrapper = scaled
    function = prepared(module, "ippo", config, updates)
    out = jax.jit(jax.vmap(function))(jax.random.split(jax.random.PRNGKey(0), seeds))
    points = [updates * (i + 1) // evaluations - 1 for i in range(evaluations)]
    params = jax.tree.map(lambda x: x[:, jnp.asarray(points)], out["metrics"]["params"])
    env = jaxmarl.make(ENVIRONMENT, max_steps=2 * HORIZON)
    network = module.ActorCritic(env.action_space(env.agents[0]).n, activation=config["ACTIVATION"])

    def score(params: Any, key: Any) -> Any:
        def step(carry: Any, t: Any) -> Any:
            views, state = carry
            draws = jax.random.split(jax.random.fold_in(key, t), env.num_agents)
            actions = {
                agent: network.apply(params, views[agent])[0].sample(seed=draws[i])
                for i, agent in enumerate(env.agents)
            }
            views, state, rewards, _, _ = env.step_env(key, state, actions)
            return (views, state), sum(rewards.values())

        _, rewards = jax.lax.scan(step, env.reset(key), jnp.arange(HORIZON))
        return rewards.sum()

    keys = jax.random.split(jax.random.key(1), episodes)
    mean = lambda params: jax.vmap(score, (None, 0))(params, keys).mean()  # noqa: E731
    returns = jax.jit(jax.vmap(jax.vmap(mean)))(params)
    each = config["NUM_ENVS"] * config["NUM_STEPS"]
    return {"steps": [(point + 1) * each for point in points], "returns": returns.tolist()}


def main() -> None:
    given = json.loads(sys.argv[1])
    task = {"train": train, "play": play, "curves": curves}[given.pop("task")]
    print(json.dumps(task(**given)))


if __name__ == "__main__":
    main()
