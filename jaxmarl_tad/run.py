"""The driver: compiles one chunk of a whole sweep and runs it again and again.

Between chunks, and only there, results come to the host: a progress line, the curves, files and
checkpoints, whatever ``after_chunk`` does. One result is always in flight while the next chunk runs.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxmarl_tad import devices, folder, programs
from jaxmarl_tad.algorithms import Method
from jaxmarl_tad.algorithms import algorithm as lookup_algorithm
from jaxmarl_tad.checkpoint import KEPT, Checkpoints
from jaxmarl_tad.config import as_dict, differences, leaf_fields
from jaxmarl_tad.dataset import Dataset, Windows, check_sizes
from jaxmarl_tad.devices import Shard
from jaxmarl_tad.evaluate import score
from jaxmarl_tad.prng import GENERATORS, Generator
from jaxmarl_tad.selective import selective
from jaxmarl_tad.storage import load_data
from jaxmarl_tad.sweep import Make, Member, Plan, init_members, over_members, product, run_chunk, stack
from jaxmarl_tad.types import Policy, State
from tad_envs import Environment, Spec, make, require
from tad_envs.struct import from_plain, to_plain

Game = str | Environment | tuple[str | Environment, dict[str, Any]]
"""An environment, by name or made, or a pair of one and config fields that hold in it alone."""
AfterChunk = Callable[[int, State, dict[str, np.ndarray]], None]
"""``after_chunk(number, state, metrics)``: called on the host; the state is read-only and stacked."""
_NUMBER = np.zeros((), np.int32)
_ALL = 2**31 - 1
Wandb = Literal["off", "offline", "online"]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is to be run, resolved and checked; nothing is compiled, no device is touched."""

    name: str
    """The method, or ``distill(method)``."""
    rows: list[dict[str, Any]]
    """One dict per member: ``env``, ``seed`` and each swept field."""
    config: Any
    """The resolved config of member 0; swept fields differ between members."""
    stacked: Member
    plan: Plan
    recipe: dict[str, Any] | None
    """What the job was made from, as JSON holds it; None if it cannot be written down."""
    windows: Windows | None = None
    """Of a dataset that is larger than it may be, the part to learn from in each chunk."""

    @property
    def spec(self) -> Spec:
        """Sizes and kinds of the environments, which all members share."""
        return devices.pick(self.stacked.env, 0).spec

    @property
    def chunk_steps(self) -> int:
        """Environment steps of one member in one chunk; gradient steps if it learns from data."""
        return self.plan.iterations // self.plan.evaluations * steps_of(self.config)

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of one member at each evaluation, ``[evaluations]``."""
        first = getattr(self.config, "first_steps", 0)  # taken before the first iteration
        return first + self.chunk_steps * np.arange(1, self.plan.evaluations + 1)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for one run to continue another."""
        config = as_dict(self.config)
        config.pop("total_steps")  # the number of iterations says it
        digest = hashlib.sha256(str(jax.tree.structure(self.stacked)).encode())
        for leaf in jax.tree.leaves(self.stacked):
            digest.update(devices.host(leaf).tobytes())
        return {
            "algorithm": self.name,
            "config": config,
            "spec": self.spec._asdict(),
            "iterations": self.plan.iterations,
            "evaluations": self.plan.evaluations,
            "episodes": self.plan.episodes,
            "prng": self.plan.prng,
            "members": self.rows,
            "numbers": digest.hexdigest()[:16],
        }


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
        files.begin(_about(self.job, None) | {"timing": self.timing})
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


def prepare(
    algorithm: str,
    env: Game | list[Game] | Dataset,
    *,
    eval_env: Game | None = None,
    seeds: int | Sequence[int] = 1,
    config: Any = None,
    evaluations: int = 10,
    episodes: int = 32,
    prng: Generator = "threefry",
    **fields: Any,
) -> Job:
    """What :func:`run` would run, resolved and checked, without touching a device.

    Only ``sharing="selective"`` is found out on a device, and is an assignment from here on.
    """
    method = lookup_algorithm(algorithm)
    data = _source(method, env, eval_env)
    windows = Windows(data) if data is not None and data.limit else None
    source = data if windows is None else windows(0)
    given: Any = env if isinstance(env, list) else [env]
    if data is not None:
        given = [data.env if eval_env is None else eval_env]
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
    common = grouped(common, [game for game, _ in games])

    members, rows = [], []
    for game, own in games:
        for combination in product(sweeps):
            both = sorted(set(combination) & set(own))
            require(not both, f"{', '.join(both)} cannot be swept and also be given by {game.name!r}.")
            settings = {**common, **combination, **own}
            resolved = method.resolved(method.settings(**_arrays(settings)), game.spec)
            if data is not None:
                check_sizes(data, game.spec, game.name)
            for seed in seed_list(seeds):
                members.append(Member(resolved, game if source is None else source, game, seed))
                rows.append({"env": game.name, "seed": seed, **combination})
    recipe = {
        "stage": "run",
        "algorithm": algorithm,
        "games": [[game, own] for game, own in games],
        "seeds": seed_list(seeds),
        "sweeps": {name: list(values) for name, values in sweeps.items()},
        "fields": common,
    }
    job = as_job(
        algorithm,
        method.make,
        stack(members),
        rows,
        members[0].config,
        evaluations=evaluations,
        episodes=episodes,
        prng=prng,
        recipe=_with_data(recipe, data),
    )
    return job if windows is None else dataclasses.replace(job, windows=windows)


def _with_data(recipe: dict[str, Any], data: Dataset | None) -> dict[str, Any] | None:
    """The recipe with the folder of the dataset; None if it lies in no folder."""
    if data is None:
        return recipe
    return recipe | {"data": data.path, "limit": data.limit or None} if data.path else None


def _source(method: Method, env: Any, eval_env: Any) -> Dataset | None:
    """The dataset to learn from, for a method that learns from one; refuses what cannot be."""
    offline = method.family == "offline"
    if not offline:
        told = f"{method.name} learns in an environment"
        require(not isinstance(env, Dataset), f"{told}, not from the dataset {_named(env)!r}.")
        require(eval_env is None, f"{told} and is evaluated there; eval_env= is for datasets.")
        return None
    require(
        isinstance(env, Dataset),
        f"{method.name} learns from a dataset, not from {_named(env)!r}; record one, and name the "
        "environment as eval_env=....",
    )
    require(
        bool(env.env) or eval_env is not None,
        f"dataset {env.name!r} does not say where it was recorded; give eval_env=....",
    )
    return env


def _named(thing: Any) -> str:
    return thing if isinstance(thing, str) else str(getattr(thing, "name", type(thing).__name__))


def steps_of(config: Any) -> int:
    """Environment steps of one iteration; 1, a gradient step, where none are taken."""
    return getattr(config, "envs", 1) * getattr(config, "steps", 1)


def grouped(fields: dict[str, Any], games: Sequence[Environment]) -> dict[str, Any]:
    """``fields`` with the assignment that ``sharing="selective"`` finds in ``games``."""
    if fields.get("sharing") != "selective":
        return fields
    distinct = {id(game): game for game in games}.values()
    found = [(game.name, selective(game)) for game in distinct]
    first, assignment = found[0]
    for name, other in found:
        require(
            other == assignment,
            f"sharing='selective' finds {assignment} in {first!r} and {other} in {name!r}, and one "
            "program has one assignment; run them apart, or give one assignment.",
        )
    return {**fields, "sharing": assignment}


def as_job(
    name: str,
    make_algorithm: Make,
    stacked: Member,
    rows: list[dict[str, Any]],
    config: Any,
    *,
    evaluations: int,
    episodes: int,
    prng: Generator,
    recipe: dict[str, Any] | None,
) -> Job:
    """A job of stacked members; ``config.total_steps`` is rounded to whole chunks."""
    for key, value in {"evaluations": evaluations, "episodes": episodes}.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= 1, f"{key}={value!r} must be a positive integer.")
    require(prng in GENERATORS, f"prng={prng!r} is not valid; expected {' or '.join(GENERATORS)}.")
    require(config.total_steps >= 1, f"total_steps={config.total_steps} must be positive.")
    iterations = max(1, round(config.total_steps / steps_of(config)))
    each = {"evaluations": evaluations, "episodes": episodes, "prng": prng}
    evaluations = min(evaluations, iterations)
    iterations = math.ceil(iterations / evaluations) * evaluations
    plan = Plan(make_algorithm, iterations, evaluations, episodes, prng)
    if recipe is not None:
        try:
            recipe = written(recipe | each)
        except ValueError:  # an environment or a setting that only the caller's own code can make
            recipe = None
    return Job(name, rows, config, stacked, plan, recipe)


def written(value: Any) -> Any:
    """A recipe as data that JSON holds. Raises ``ValueError`` where it cannot be written down."""
    if isinstance(value, dict):
        return {name: written(item) for name, item in value.items()}
    if isinstance(value, list):
        return [written(item) for item in value]
    return to_plain(value)


def read(value: Any) -> Any:
    """The recipe that :func:`written` was given."""
    if isinstance(value, list):
        return [read(item) for item in value]
    if isinstance(value, dict) and not {"array", "tuple", "class"} & set(value):
        return {name: read(item) for name, item in value.items()}
    return from_plain(value)


def again(recipe: dict[str, Any]) -> Job:
    """The job that ``recipe`` was written from."""
    known = read(recipe)
    games: Any = [(game, own) for game, own in known["games"]]
    source = games
    given: dict[str, Any] = {}
    if "data" in known:
        source, given["eval_env"] = load_data(known["data"], limit=known["limit"]), games[0]
    return prepare(
        known["algorithm"],
        source,
        **given,
        seeds=known["seeds"],
        evaluations=known["evaluations"],
        episodes=known["episodes"],
        prng=known["prng"],
        **known["fields"],
        **known["sweeps"],
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
    recording = contextlib.nullcontext() if out is None else _Record(job, out, save_seconds, keep)
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
    record: "_Record | None",
    progress: bool | None,
    after_chunk: AfterChunk | None,
) -> Trained:
    """Chunk after chunk from where ``record`` stands, one result in flight."""
    began, wall = time.process_time(), time.perf_counter()
    curves: list[dict[str, np.ndarray]] = [] if record is None else record.curves
    line = _Progress(job, len(curves), program.trace_s + program.compile_s, progress)
    in_flight: list[dict[str, jax.Array]] = []

    def collect(keep: int) -> None:
        while len(in_flight) > keep:
            values = jax.device_get(in_flight.pop(0))
            curves.append(values)
            if record is not None:
                record.added()
            line.show(curves)

    with _Stop(record is not None) as stop:
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
    with _Record(job, path, 0.0, _ALL) as record:
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


def _about(job: Job, mesh: Any) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "algorithm": job.name,
        "config": as_dict(job.config),
        "identity": job.identity,
        "recipe": job.recipe,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
        "devices": 1 if mesh is None else mesh.size,
    }


class _Record:
    """A run's folder while it runs: its files, its checkpoints, and what they say of the past.

    In a job of several processes all take part in checkpoints and the first one writes the files.
    """

    def __init__(self, job: Job, out: str | os.PathLike[str], save_seconds: float, keep: int) -> None:
        self.job, self.save_seconds, self.timing = job, save_seconds, {}
        self.shown = str(out)
        self.folder = pathlib.Path(out).expanduser().resolve()
        self.writes = jax.process_index() == 0
        self.files = folder.Files(self.folder, job.rows, job.steps)
        self.before: dict[str, Any] | None = None
        refusal = None
        try:
            if self.writes:
                self._claim()
        except ValueError as error:
            refusal = error
        if not devices.agreed(refusal is None):
            raise refusal or ValueError(f"the first process refused {self.shown!r}; it says why.")
        self.checkpoints = Checkpoints(self.folder / folder.CHECKPOINTS, keep)
        self.tracker: Any = None
        self.last_save = -math.inf

    def __enter__(self) -> "_Record":
        return self

    def __exit__(self, *exception: object) -> None:
        self.checkpoints.close()
        if self.tracker is not None:
            self.tracker.finish()

    def _claim(self) -> None:
        """Make the folder, or see that what it holds is the same run."""
        folder.claim(self.shown)
        if not (self.folder / "config.json").exists():
            return
        self.before = folder.about(self.folder)
        told = folder.differences(self.before.get("identity", {}), self.job.identity)
        require(not told, f"{self.shown!r} holds another run: {'; '.join(told)}. Name another folder.")
        finished = [e for e in folder.events(self.folder) if e["event"] == "finish"]
        self.timing = finished[-1].get("timing", {}) if finished else {}

    @property
    def curves(self) -> list[dict[str, np.ndarray]]:
        """Each evaluation so far."""
        return self.files.curves

    def restore(self, shapes: State, mesh: Any, checkpoint: int | None = None) -> State | None:
        """The state of a checkpoint, the newest readable one, on the devices; also sets ``curves``."""
        if checkpoint is None:
            found = self.checkpoints.restore(shapes)
        else:
            found = self.checkpoints.restore_one(checkpoint, shapes)
        for aside, reason in self.checkpoints.damaged:
            text = f"checkpoint {aside.name.removeprefix('damaged-')} is damaged ({reason})"
            went = "at the start" if found is None else f"with checkpoint {found.iteration}"
            warnings.warn(f"{text}; it was moved to {aside.name}; going on {went}.", stacklevel=4)
            self.event("damaged", checkpoint=aside.name, reason=reason)
        if found is None:
            return None
        columns = found.curves.items()
        count = found.iteration * self.job.plan.evaluations // self.job.plan.iterations
        self.files.curves = [{n: v[:, i] for n, v in columns} for i in range(count)]
        return found.state

    def begin(self, wandb: Wandb, wandb_members: bool, mesh: Any, shard: Shard) -> None:
        """Write what is known before the first chunk; warn where bits cannot be promised."""
        about = _about(self.job, mesh) | {"shard": shard}
        names = ("versions", "device", "devices")
        told = [
            f"{name} {self.before[name]!r} then, {about[name]!r} now"
            for name in names
            if self.before is not None and self.before.get(name) != about[name]
        ]
        if told and self.curves:
            warnings.warn(
                f"resumed elsewhere ({'; '.join(told)}): equal within tolerance, not to the bit.",
                stacklevel=4,
            )
        if self.writes:
            self._write(lambda: self.files.begin(about))
        self.event("resume" if self.curves else "start", evaluations_done=len(self.curves))
        if self.writes and wandb != "off":
            from jaxmarl_tad.tracking import Tracker

            self.tracker = Tracker(
                mode=wandb,
                folder=self.folder,
                name=self.folder.name,
                algorithm=self.job.name,
                members=self.job.rows,
                config=as_dict(self.job.config),
                sweep=self.folder.name,
                per_member=wandb_members,
            )

    def added(self) -> None:
        """Write down the evaluation that was added to ``curves``."""
        values, steps = self.curves[-1], int(self.job.steps[len(self.curves) - 1])
        if self.tracker is not None:
            self.tracker.log(len(self.curves) - 1, steps, values)
        if not self.writes:
            return
        self._write(self.files.added)
        returns = values["return"]
        self.event(
            "evaluation",
            number=len(self.curves),
            steps=steps,
            return_mean=float(returns.mean()),
            return_min=float(returns.min()),
            return_max=float(returns.max()),
        )

    def due(self) -> bool:
        """Whether it is time for a checkpoint; processes agree because they all ask the first."""
        now = time.monotonic() - self.last_save >= self.save_seconds
        return devices.agreed(now)

    def save(self, state: State) -> None:
        """Write a checkpoint of everything so far."""
        iteration = self.job.plan.iterations // self.job.plan.evaluations * len(self.curves)
        values = folder.stacked(self.curves)
        self._write(lambda: self.checkpoints.save(iteration, state, values))
        if self.writes:
            self._write(self.files.metrics)
        self.last_save = time.monotonic()
        self.event("checkpoint", iteration=iteration)

    def finish(self, timing: dict[str, float]) -> None:
        """Say that this was all."""
        self.event("finish", timing=timing)

    def interrupted(self, number: int) -> None:
        """The chunk is saved: say how to go on, and end as the signal asks."""
        self.event("stop", signal=signal.Signals(number).name)
        print(f"\nstopped and saved; to go on: tad resume {self.shown}", file=sys.stderr)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def event(self, event: str, **values: Any) -> None:
        """One line of events.jsonl."""
        if self.writes:
            self._write(lambda: self.files.event(event, **values))

    def _write(self, action: Callable[[], None]) -> None:
        """Do it; if it fails, say which checkpoint is left."""
        try:
            action()
        except OSError as error:
            newest = self.checkpoints.newest()
            left = "there is no checkpoint" if newest is None else f"checkpoint {newest} is intact"
            raise OSError(
                f"{self.shown} could not be written any more, so the run stopped: {error}\n{left}; "
                f"with room on the disk, go on with: tad resume {self.shown}"
            ) from error


class _Stop:
    """Remembers SIGINT or SIGTERM until the chunk is done; a second one takes effect at once."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted and threading.current_thread() is threading.main_thread()
        self.signal = 0
        self.former: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        if self.wanted:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        if self.signal:
            signal.signal(number, self.former[number])
            os.kill(os.getpid(), number)
        self.signal = number
        print("\nfinishing this chunk; once more to stop at once", file=sys.stderr, flush=True)


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
    """Refuse an environment of other sizes than the one that was trained in."""
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


class _Progress:
    """Progress, speed, compile time apart, time left, returns: a line on a terminal, else ten."""

    def __init__(self, job: Job, done: int, compiled_s: float, wanted: bool | None) -> None:
        self.terminal = sys.stderr.isatty()
        self.wanted = (self.terminal if wanted is None else wanted) and jax.process_index() == 0
        self.name, self.members, self.evaluations = job.name, len(job.rows), job.plan.evaluations
        self.chunk_steps, self.compiled_s = job.chunk_steps * self.members, compiled_s
        self.done, self.began = done, time.perf_counter()

    def show(self, curves: list[dict[str, np.ndarray]]) -> None:
        """One more evaluation is known."""
        number, seconds = len(curves), time.perf_counter() - self.began
        tenth = 10 * number // self.evaluations > 10 * (number - 1) // self.evaluations
        if not self.wanted or not (self.terminal or tenth):
            return
        returns = curves[-1]["return"]
        speed = (number - self.done) * self.chunk_steps / max(seconds, 1e-9)
        left = seconds / (number - self.done) * (self.evaluations - number)
        text = (
            f"{self.name}  {self.members} members  {100 * number // self.evaluations:3d} %  "
            f"{speed:.3g} steps/s  compiled in {self.compiled_s:.1f} s  {left:.0f} s left  "
            f"return {returns.mean():.3f} ({returns.min():.3f} to {returns.max():.3f})"
        )
        if self.terminal:
            end = "\n" if number == self.evaluations else ""
            print(f"\r{text:<110}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
