"""The driver: compiles one chunk of a whole sweep and runs it again and again.

Between chunks, and only there, results come to the host: a progress line, the curves, files and
checkpoints, whatever ``after_chunk`` does. One result is always in flight while the next chunk runs.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmarl_tad import devices, folder, programs
from jaxmarl_tad.checkpoint import KEPT, Checkpoints
from jaxmarl_tad.config import differences
from jaxmarl_tad.dataset import Dataset
from jaxmarl_tad.devices import Shard
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.job import Game, Job, as_game, prepare
from jaxmarl_tad.logbook import Logbook, Progress, Stop, Wandb, about
from jaxmarl_tad.prng import Generator
from jaxmarl_tad.sweep import Member, Plan, init_members, over_members, run_chunk
from jaxmarl_tad.types import Policy, State
from tad_envs import Environment, Spec, require

AfterChunk = Callable[[int, State, dict[str, np.ndarray]], None]
"""``after_chunk(number, state, metrics)``: called on the host; the state is read-only and stacked."""
_NUMBER = np.zeros((), np.int32)
_ALL = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """All members of a run: what they were, what they became, and how they got there."""

    job: Job
    state: State
    """The last state of every member, stacked on axis ``M``."""
    curves: dict[str, np.ndarray]
    """``{name: [members, evaluations]}``: evaluations, and means of learning metrics."""
    timing: dict[str, float]
    """``trace_s``, ``compile_s`` and ``run_s`` in CPU-seconds, ``wall_s``, ``peak_bytes``."""
    folder: pathlib.Path | None = None
    """Where it was written to, if it was."""

    @property
    def name(self) -> str:
        """The method, or ``distill(method)``."""
        return self.job.name

    @property
    def members(self) -> list[dict[str, Any]]:
        """One dict per member: ``env``, ``seed`` and each swept field."""
        return self.job.rows

    @property
    def config(self) -> Any:
        """The resolved config of member 0; swept fields differ between members."""
        return self.job.config

    @property
    def stacked(self) -> Member:
        """Configs, sources, environments and seeds, with leaves ``[M, ...]``."""
        return self.job.stacked

    @property
    def plan(self) -> Plan:
        """The static part of the program."""
        return self.job.plan

    @property
    def spec(self) -> Spec:
        """Sizes and kinds of the environments, which all members share."""
        return self.job.spec

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of one member at each evaluation so far."""
        return self.job.steps[: len(next(iter(self.curves.values())).T)]

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
        own = devices.pick(self.stacked, member)
        own, state = jax.tree.map(jax.numpy.asarray, (own, devices.pick(self.state, member)))
        return self.plan.make(own.config, own.source).policy(state, greedy=greedy)

    def best(self, *, greedy: bool = True) -> Policy:
        """The policy of the member with the highest final return, ties to the lowest index."""
        return self.policy(int(np.argmax(self.final["return"])), greedy=greedy)

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Write the run into the folder ``path``, as if it had been run with ``out=path``."""
        there = folder.claim(path)
        require(
            not (there / "config.json").exists(),
            f"{str(path)!r} holds a run already; name another folder.",
        )
        files = folder.Files(there, self.members, self.steps)
        columns = self.curves.items()
        files.curves = [{n: v[:, i] for n, v in columns} for i in range(len(self.steps))]
        files.begin(about(self.job, None) | {"timing": self.timing})
        checkpoints = Checkpoints(there / folder.CHECKPOINTS)
        try:
            checkpoints.save(self.plan.iterations, self.state, self.curves)
        finally:
            checkpoints.close()
        files.event("finish", timing=self.timing)
        return there


def run(
    algorithm: str,
    env: Game | list[Game] | Dataset,
    *,
    eval_env: Game | None = None,
    seeds: int | Sequence[int] = 1,
    config: Any = None,
    evaluations: int = 10,
    episodes: int = 32,
    prng: Generator = "threefry",
    out: str | os.PathLike[str] | None = None,
    shard: Shard = "members",
    wandb: Wandb = "off",
    wandb_members: bool = False,
    save_seconds: float = 30.0,
    keep: int = KEPT,
    progress: bool | None = None,
    after_chunk: AfterChunk | None = None,
    **fields: Any,
) -> Trained:
    """Train ``algorithm`` on ``env`` for every combination of games, swept fields and seeds.

    Args:
        algorithm: A name from :func:`jaxmarl_tad.algorithms`.
        env: A game or a list of games of equal sizes: they run in one program. For methods that learn
            from recorded experience, the dataset.
        eval_env: Where what was learned from a dataset is evaluated; where it was recorded by default.
        seeds: ``64`` means 0..63; a list gives the values.
        config: A config to start from; the method's defaults unless given.
        evaluations: How often the greedy policy is evaluated, at equal distances, ending at the end.
        episodes: Episodes of each evaluation.
        prng: The generator: JAX's own, or a cheaper one that compiles faster.
        out: A folder for results and checkpoints. If it holds the same run, that one is continued.
        shard: What is spread over the devices: members, or the environments of each.
        wandb: Whether results are also given to Weights & Biases, and whether over the network.
        wandb_members: One run there for every member, instead of one for every setting.
        save_seconds: Least time between two checkpoints; the first and the last are always written.
        keep: How many of the newest checkpoints are kept, at least two.
        progress: Print a progress line; by default where there is a terminal.
        after_chunk: Called on the host after each evaluation.
        **fields: Config fields. A list of values for a ``Real`` field is a sweep; a tuple is one value.

    Returns:
        All members: environments outermost, then fields in keyword order, seeds innermost.

    Raises:
        ValueError: A name, field, size or folder is not valid; raised before anything is compiled.
        OSError: ``out`` could not be written to any more; the last checkpoint is intact.
        KeyboardInterrupt: Ctrl-C with ``out``: the chunk was finished and saved.
    """
    job = prepare(
        algorithm,
        env,
        eval_env=eval_env,
        seeds=seeds,
        config=config,
        evaluations=evaluations,
        episodes=episodes,
        prng=prng,
        **fields,
    )
    return execute(
        job,
        out=out,
        shard=shard,
        wandb=wandb,
        wandb_members=wandb_members,
        save_seconds=save_seconds,
        keep=keep,
        progress=progress,
        after_chunk=after_chunk,
    )


def execute(
    job: Job,
    *,
    out: str | os.PathLike[str] | None = None,
    shard: Shard = "members",
    wandb: Wandb = "off",
    wandb_members: bool = False,
    save_seconds: float = 30.0,
    keep: int = KEPT,
    progress: bool | None = None,
    after_chunk: AfterChunk | None = None,
) -> Trained:
    """Run a job to its end, from the newest checkpoint in ``out`` if there is one; see :func:`run`."""
    require(wandb in ("off", "offline", "online"), f"wandb={wandb!r} must be off, offline or online.")
    require(wandb == "off" or out is not None, f"wandb={wandb!r} needs out=..., a folder to write to.")
    require(save_seconds >= 0, f"save_seconds={save_seconds!r} must not be negative.")
    require(keep >= KEPT, f"keep={keep!r} must be at least {KEPT}.")
    recording = contextlib.nullcontext() if out is None else Logbook(job, out, save_seconds, keep)
    with recording as record:
        mesh = devices.layout(len(job.rows), getattr(job.config, "envs", 1), shard)
        stacked = devices.place(job.stacked, mesh)
        state = None if record is None else record.restore(_shapes(job.plan, stacked, mesh), mesh)
        if record is not None and len(record.curves) == job.plan.evaluations:
            return Trained(job, state, folder.stacked(record.curves), record.timing, record.folder)
        parts = (None, None) if mesh is None else (devices.by_member(mesh), devices.everywhere(mesh))
        program, new = programs.compiled(
            run_chunk,
            job.plan,
            stacked,
            complete=lambda members: (members, _shapes(job.plan, members, mesh), _NUMBER),
            donate=(1,),
            mesh=mesh,
            outputs=None if mesh is None else parts,
        )
        program = program if new else _built_before(program)
        if state is None:
            first, new = programs.compiled(
                init_members, job.plan, stacked, mesh=mesh, outputs=parts[0], once=True
            )
            state = first.call(stacked)
            first = first if new else _built_before(first)
            program = program._replace(
                trace_s=program.trace_s + first.trace_s, compile_s=program.compile_s + first.compile_s
            )
        if record is not None:
            record.begin(wandb, wandb_members, mesh, shard)
        return _train(job, program, stacked, state, mesh, record, progress, after_chunk)


def _built_before(program: programs.Program) -> programs.Program:
    """A program that an earlier call paid for."""
    return program._replace(trace_s=0.0, compile_s=0.0)


def _train(
    job: Job,
    program: programs.Program,
    stacked: Member,
    state: State,
    mesh: Any,
    record: "Logbook | None",
    progress: bool | None,
    after_chunk: AfterChunk | None,
) -> Trained:
    """Chunk after chunk from where ``record`` stands, one result in flight."""
    began, wall = time.process_time(), time.perf_counter()
    curves: list[dict[str, np.ndarray]] = [] if record is None else record.curves
    line = Progress(job, len(curves), program.trace_s + program.compile_s, progress)
    in_flight: list[dict[str, jax.Array]] = []

    def collect(keep: int) -> None:
        while len(in_flight) > keep:
            values = jax.device_get(in_flight.pop(0))
            curves.append(values)
            if record is not None:
                record.added()
            line.show(curves)

    with Stop(record is not None) as stop:
        for i in range(len(curves), job.plan.evaluations):
            if job.windows is not None:  # fetched while the chunk before is still running
                now = job.stacked._replace(source=job.windows(i))
                stacked = devices.place(now, mesh)
            state, metrics = program.call(stacked, state, np.asarray(i, np.int32))
            in_flight.append(metrics)
            if after_chunk is not None:
                after_chunk(i, state, jax.device_get(metrics))
            last = i + 1 == job.plan.evaluations
            if record is not None and (last or stop.signal or record.due()):
                collect(keep=0)
                record.save(state)
                if stop.signal and not last:
                    record.interrupted(stop.signal)
            else:
                collect(keep=1)
        collect(keep=0)
    timing = {
        "trace_s": program.trace_s,
        "compile_s": program.compile_s,
        "run_s": time.process_time() - began,
        "wall_s": time.perf_counter() - wall,
        "peak_bytes": program.peak_bytes,
    }
    if record is not None:
        record.finish(timing)
    return Trained(job, state, folder.stacked(curves), timing, record and record.folder)


def restored(job: Job, path: str | os.PathLike[str], checkpoint: int | None = None) -> Trained:
    """The run in ``path``, as far as it got, or as it was at an earlier checkpoint that was kept.

    Refuses what is not a checkpoint of ``job``.
    """
    with Logbook(job, path, 0.0, _ALL) as record:
        mesh = devices.layout(len(job.rows), getattr(job.config, "envs", 1))
        shapes = _shapes(job.plan, devices.place(job.stacked, mesh), mesh)
        state = record.restore(shapes, mesh, checkpoint)
        require(
            state is not None, f"{str(path)!r} holds no checkpoint yet; `tad resume` goes on with it."
        )
        return Trained(job, state, folder.stacked(record.curves), record.timing, record.folder)


def _shapes(plan: Plan, members: Member, mesh: Any) -> State:
    """Shapes of the state, and how it is spread."""
    shapes = jax.eval_shape(lambda m: init_members(plan, m), members)
    sharding = None if mesh is None else devices.by_member(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def evaluate(
    policy: Trained | Policy, env: Game, *, episodes: int = 256, seed: int = 0
) -> dict[str, np.ndarray]:
    """Evaluate every member of a run, or one policy, on ``episodes`` whole episodes of ``env``.

    ``env`` may differ from what was trained in by its rules and the length of episodes, not by sizes.
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
    same_sizes(policy, game)
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

    return over_members(one)(members, state)


def same_sizes(trained: Trained, env: Environment) -> None:
    """Refuse an environment of other sizes than the one that was trained in.

    Its episodes may be longer or shorter: no policy's sizes depend on that.
    """
    expected = trained.spec
    found = env.spec._replace(horizon=expected.horizon, reset_pool=expected.reset_pool)
    require(
        found == expected,
        f"the policy was made for other sizes; {env.name!r} has {differences(found, expected)}.",
    )
