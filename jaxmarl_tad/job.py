"""What is to be run: names, games, fields and seeds, resolved and checked before any compiling."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmarl_tad import devices
from jaxmarl_tad.algorithms import Method
from jaxmarl_tad.algorithms import algorithm as lookup_algorithm
from jaxmarl_tad.config import as_dict, leaf_fields
from jaxmarl_tad.dataset import Dataset, Windows, check_sizes
from jaxmarl_tad.prng import GENERATORS, Generator
from jaxmarl_tad.selective import selective
from jaxmarl_tad.storage import load_data
from jaxmarl_tad.sweep import Make, Member, Plan, product, stack
from tad_envs import Environment, Spec, make, require
from tad_envs.struct import from_plain, to_plain

Game = str | Environment | tuple[str | Environment, dict[str, Any]]
"""An environment, by name or made, or a pair of one and config fields that hold in it alone."""


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
