"""The driver: compiles one chunk of a whole sweep and runs it again and again.

Between chunks, and only there, results come to the host: a progress line, the curves, whatever
``after_chunk`` does. One result is always in flight while the next chunk runs.
"""

import csv
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmarl_tad import programs, sweep
from jaxmarl_tad.algorithms import algorithm as lookup_algorithm
from jaxmarl_tad.config import as_dict, differences, leaf_fields
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.sweep import Member, Plan
from jaxmarl_tad.types import Policy, State
from tad_envs import Environment, Spec, make, require

Game = str | Environment | tuple[str | Environment, dict[str, Any]]
"""An environment, by name or made, or a pair of one and config fields that hold in it alone."""
AfterChunk = Callable[[int, State, dict[str, np.ndarray]], None]
"""``after_chunk(number, state, metrics)``: called on the host; the state is read-only and stacked."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """All members of a run: what they were, what they became, and how they got there."""

    name: str
    """The method, or ``distill(method)``."""
    members: list[dict[str, Any]]
    """One dict per member: ``env``, ``seed`` and each swept field."""
    config: Any
    """The resolved config of member 0; swept fields differ between members."""
    stacked: Member
    state: State
    """The last state of every member, stacked on axis ``M``."""
    plan: Plan
    steps: np.ndarray
    """Environment steps of one member at each evaluation, ``[evaluations]``."""
    curves: dict[str, np.ndarray]
    """``{name: [members, evaluations]}``: evaluations, and means of learning metrics."""
    timing: dict[str, float]
    """``trace_s``, ``compile_s`` and ``run_s`` in CPU-seconds, ``wall_s``, ``peak_bytes``."""

    @property
    def spec(self) -> Spec:
        """Sizes and kinds of the environments, which all members share."""
        return jax.tree.map(lambda x: x[0], self.stacked.env).spec

    @property
    def final(self) -> dict[str, np.ndarray]:
        """The last evaluation of the deployed policy acting greedily, ``{name: [members]}``."""
        return {name: values[:, -1] for name, values in self.curves.items()}

    def policy(self, member: int = 0, *, greedy: bool = True) -> Policy:
        """One member's policy, for your own loop."""
        require(
            isinstance(member, int) and -len(self.members) <= member < len(self.members),
            f"member={member!r} does not exist; this run has members 0..{len(self.members) - 1}.",
        )
        own, state = jax.tree.map(lambda x: x[member], (self.stacked, self.state))
        return self.plan.make(own.config, own.source).policy(state, greedy=greedy)

    def best(self, *, greedy: bool = True) -> Policy:
        """The policy of the member with the highest final return, ties to the lowest index."""
        return self.policy(int(np.argmax(self.final["return"])), greedy=greedy)

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write config.json, members.csv, metrics.npz and curves.csv into the folder ``path``."""
        folder = pathlib.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "algorithm": self.name,
            "config": as_dict(self.config),
            "iterations": self.plan.iterations,
            "evaluations": self.plan.evaluations,
            "episodes": self.plan.episodes,
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "device": jax.devices()[0].device_kind,
            "timing": self.timing,
        }
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
        np.savez_compressed(folder / "metrics.npz", steps=self.steps, **self.curves)  # type: ignore[arg-type]
        with open(folder / "members.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["member", *self.members[0]])
            writer.writeheader()
            writer.writerows({"member": i, **row} for i, row in enumerate(self.members))
        with open(folder / "curves.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["member", "step", "metric", "value"])
            for metric, values in self.curves.items():
                for member, row in enumerate(values):
                    for step, value in zip(self.steps, row, strict=True):
                        writer.writerow([member, step, metric, f"{value:.6g}"])
        return folder


def run(
    algorithm: str,
    env: Game | list[Game],
    *,
    seeds: int | Sequence[int] = 1,
    config: Any = None,
    evaluations: int = 10,
    episodes: int = 32,
    progress: bool | None = None,
    after_chunk: AfterChunk | None = None,
    **fields: Any,
) -> Trained:
    """Train ``algorithm`` on ``env`` for every combination of games, swept fields and seeds.

    Args:
        algorithm: A name from :func:`jaxmarl_tad.algorithms`.
        env: A game or a list of games of equal sizes: they run in one program.
        seeds: ``64`` means 0..63; a list gives the values.
        config: A config to start from; the method's defaults unless given.
        evaluations: How often the greedy policy is evaluated, at equal distances, ending at the end.
        episodes: Episodes of each evaluation.
        progress: Print a progress line on the terminal; by default where there is one.
        after_chunk: Called on the host after each evaluation.
        **fields: Config fields. A list of values for a ``Real`` field is a sweep; a tuple is one value.

    Returns:
        All members: environments outermost, then fields in keyword order, seeds innermost.

    Raises:
        ValueError: A name, field or size is not valid; raised before anything is compiled.
    """
    method = lookup_algorithm(algorithm)
    given: Any = env if isinstance(env, list) else [env]
    games = [as_game(game) for game in given]
    require(bool(games), "env=[] holds no environment; give at least one.")
    sweeps = {name: value for name, value in fields.items() if isinstance(value, list)}
    for name, values in sweeps.items():
        require(
            name in leaf_fields(method.config) or not hasattr(method.config, name),
            f"{name}={values!r} is a list, and {name} is a part of the program: run once per value.",
        )
        require(len(values) > 0, f"{name}=[] sweeps over nothing; give at least one value.")
    common = {name: value for name, value in fields.items() if name not in sweeps}
    if config is not None:
        require(
            isinstance(config, method.config),
            f"config must come from config({algorithm!r}), not be a {type(config).__name__}.",
        )
        common = {**_given(config), **common}

    members, rows = [], []
    for game, own in games:
        for combination in sweep.product(sweeps):
            both = sorted(set(combination) & set(own))
            require(not both, f"{', '.join(both)} cannot be swept and also be given by {game.name!r}.")
            settings = {**common, **combination, **own}
            resolved = method.resolved(method.settings(**_arrays(settings)), game.spec)
            for seed in seed_list(seeds):
                members.append(Member(resolved, game, game, seed))
                rows.append({"env": game.name, "seed": seed, **combination})
    return execute(
        algorithm,
        method.make,
        sweep.stack(members),
        rows,
        members[0].config,
        evaluations=evaluations,
        episodes=episodes,
        progress=progress,
        after_chunk=after_chunk,
    )


def execute(
    name: str,
    make_algorithm: sweep.Make,
    stacked: Member,
    rows: list[dict[str, Any]],
    config: Any,
    *,
    evaluations: int,
    episodes: int,
    progress: bool | None = None,
    after_chunk: AfterChunk | None = None,
) -> Trained:
    """Run stacked members to the end; ``config.total_steps`` is rounded to whole chunks."""
    for key, value in {"evaluations": evaluations, "episodes": episodes}.items():
        require(isinstance(value, int) and value >= 1, f"{key}={value!r} must be a positive integer.")
    require(config.total_steps >= 1, f"total_steps={config.total_steps} must be positive.")
    steps_per_iteration = config.envs * config.steps
    iterations = max(1, round(config.total_steps / steps_per_iteration))
    evaluations = min(evaluations, iterations)
    iterations = math.ceil(iterations / evaluations) * evaluations
    plan = Plan(make_algorithm, iterations, evaluations, episodes)

    def complete(members: Member) -> tuple[Any, ...]:
        shapes = jax.eval_shape(lambda m: sweep.init_members(make_algorithm, m), members)
        return members, shapes, np.zeros((), np.int32)

    program, new = programs.compiled(sweep.run_chunk, plan, stacked, complete=complete, donate=(1,))
    began, wall = time.process_time(), time.perf_counter()
    chunk_steps = iterations // evaluations * steps_per_iteration
    first_steps = getattr(config, "first_steps", 0)  # taken before the first iteration
    line = _Progress(name, len(rows), chunk_steps, evaluations, program, new, progress)
    state = jax.tree.map(_zeros, program.shapes[1])
    collected: list[dict[str, np.ndarray]] = []
    in_flight: dict[str, jax.Array] | None = None
    stacked = jax.device_put(stacked)
    for i in range(evaluations):
        state, metrics = program.call(stacked, state, np.asarray(i, np.int32))
        if after_chunk is not None:
            after_chunk(i, state, jax.device_get(metrics))
        if in_flight is not None:
            collected.append(jax.device_get(in_flight))
            line.show(collected)
        in_flight = metrics
    collected.append(jax.device_get(in_flight))
    line.show(collected)
    return Trained(
        name=name,
        members=rows,
        config=config,
        stacked=stacked,
        state=state,
        plan=plan,
        steps=first_steps + chunk_steps * np.arange(1, evaluations + 1),
        curves={k: np.stack([c[k] for c in collected], axis=1) for k in collected[0]},
        timing={
            "trace_s": program.trace_s if new else 0.0,
            "compile_s": program.compile_s if new else 0.0,
            "run_s": time.process_time() - began,
            "wall_s": time.perf_counter() - wall,
            "peak_bytes": program.peak_bytes,
        },
    )


def evaluate(
    policy: Trained | Policy, env: Game, *, episodes: int = 256, seed: int = 0
) -> dict[str, np.ndarray]:
    """Evaluate every member of a run, or one policy, on ``episodes`` whole episodes of ``env``.

    Returns ``{"return": [members], "length": …}``; members is 1 for a policy. A run's members act
    greedily.
    """
    game, _ = as_game(env)
    require(
        isinstance(episodes, int) and episodes >= 1,
        f"episodes={episodes!r} must be a positive integer.",
    )
    key_data = np.asarray(seed, np.int32)
    if isinstance(policy, Policy):
        alone = policy
        values = jax.jit(lambda e, s: score(e, alone, jax.random.key(s), episodes))(game, key_data)
        return {name: np.asarray(value)[None] for name, value in values.items()}
    require(
        isinstance(policy, Trained),
        f"policy must be what run() returned or a Policy, not a {type(policy).__name__}.",
    )
    _same_sizes(policy, game)
    scored = programs.compiled(
        _score_members,
        (policy.plan.make, episodes),
        policy.stacked,
        policy.state,
        game,
        key_data,
    )[0]
    return jax.device_get(scored.call(policy.stacked, policy.state, game, key_data))


def _score_members(static: Any, members: Member, state: State, env: Any, seed: Any) -> Any:
    make_algorithm, episodes = static

    def one(member: Member, state: State) -> Any:
        policy = make_algorithm(member.config, member.source).policy(state, greedy=True)
        return score(env, policy, jax.random.key(seed), episodes)

    return jax.vmap(one)(members, state)


def _same_sizes(trained: Trained, env: Environment) -> None:
    expected = trained.spec
    require(
        env.spec == expected,
        f"the policy was made for other sizes; {env.name!r} has {differences(env.spec, expected)}.",
    )


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """``4`` as 0..3, a sequence as it is."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        require(seeds >= 1, f"seeds={seeds} must be positive, or a list of seeds.")
        return list(range(seeds))
    whole = isinstance(seeds, Sequence) and all(isinstance(s, int) for s in seeds) and len(seeds)
    require(bool(whole), f"seeds={seeds!r} must be a positive int or a list of ints.")
    bad = [s for s in seeds if not 0 <= s < 2**31]  # type: ignore[union-attr]
    require(not bad, f"seeds holds {bad[:1]}; seeds must lie in 0..{2**31 - 1}.")
    return list(seeds)  # type: ignore[arg-type]


def as_game(game: Game) -> tuple[Environment, dict[str, Any]]:
    """The environment, made if named, and the config fields that hold in it alone."""
    own: dict[str, Any] = {}
    if isinstance(game, tuple) and len(game) == 2:
        game, own = game
    if isinstance(game, str):
        game = make(game)
    require(
        isinstance(game, Environment),
        f"env must be a name or an Environment (see make), not a {type(game).__name__}.",
    )
    return game, own  # type: ignore[return-value]


def _given(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _arrays(fields: dict[str, Any]) -> dict[str, Any]:
    """``initial_logits=(0.0, 1.0)`` is one array, not a sweep."""
    return {
        name: np.asarray(value, np.float32)
        if name == "initial_logits" and isinstance(value, tuple)
        else value
        for name, value in fields.items()
    }


def _zeros(shape: Any) -> jax.Array:
    if jax.numpy.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    return jax.numpy.zeros(shape.shape, shape.dtype)


class _Progress:
    """One line on a terminal: progress, speed, compile time apart, time left, returns."""

    def __init__(
        self,
        name: str,
        members: int,
        chunk_steps: int,
        evaluations: int,
        program: programs.Program,
        new: bool,
        wanted: bool | None,
    ) -> None:
        self.wanted = sys.stderr.isatty() if wanted is None else wanted
        self.name, self.members, self.evaluations = name, members, evaluations
        self.chunk_steps = chunk_steps * members
        self.compile_s = program.trace_s + program.compile_s if new else 0.0
        self.began = time.perf_counter()

    def show(self, collected: list[dict[str, np.ndarray]]) -> None:
        if not self.wanted:
            return
        number, seconds = len(collected), time.perf_counter() - self.began
        returns = collected[-1]["return"]
        speed = number * self.chunk_steps / max(seconds, 1e-9)
        left = seconds / number * (self.evaluations - number)
        text = (
            f"{self.name}  {self.members} members  {100 * number // self.evaluations:3d} %  "
            f"{speed:.3g} steps/s  compiled in {self.compile_s:.1f} s  {left:.0f} s left  "
            f"return {returns.mean():.3f} ({returns.min():.3f} to {returns.max():.3f})"
        )
        end = "\n" if number == self.evaluations else ""
        print(f"\r{text:<110}", end=end, file=sys.stderr, flush=True)
