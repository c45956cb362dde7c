"""What there is, as text: methods, environments, their fields, and the programs of a plan."""

import math
from collections.abc import Sequence
from typing import Any

from jaxmarl_tad import report
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.cli import words
from jaxmarl_tad.job import Job
from tad_envs import Environment, environments, leaf_fields, make, nearest, require

_SHOWN = ("program", "members", "made of", "iterations", "evaluations", "steps")


def everything(part: str = "") -> str:
    """Two tables: methods, and those environments whose name holds ``part``."""
    methods = [
        {
            "method": row.name, "family": row.family,
            "learns from": "a dataset" if row.family == "offline" else "play",
            "execution": row.execution,
            "actions": "/".join(row.actions), "memory": "/".join(row.memory),
            "sharing": "/".join(row.sharing), "source": row.paper,
        }
        for row in METHODS.values()
    ]  # fmt: skip
    games = [_game(name) for name in environments() if part in name]
    tables = [report.table(games)] if part else [report.table(methods), report.table(games)]
    return "\n\n".join(tables)


def fields(name: str) -> str:
    """The fields of a method, of the distillation or of an environment; or all whose name has it."""
    if name in METHODS:
        return _config(name, METHODS[name].config, METHODS[name].fixed, METHODS[name].paper)
    if name == "distill":
        from jaxmarl_tad.distill import Config

        return _config(name, Config, {}, "`tad distill`; seed, evaluations, episodes, prng and env too")
    if name in environments():
        return _parameters(name)
    known = [game for game in environments() if name in game]
    require(
        bool(known),
        f"unknown method or environment {name!r}; {nearest(name, [*METHODS, *environments()])}",
    )
    return everything(name)


def _game(name: str) -> dict[str, Any]:
    try:
        game = make(name)
    except ValueError:
        needed = [k for k, p in words.game_parameters(name).items() if p.default is p.empty]
        return {"environment": f"{name} {'=... '.join(needed)}=...", "agents": None, "actions": None,
                "horizon": None, "methods": None}  # fmt: skip
    return {
        "environment": name,
        "agents": game.spec.n_agents,
        "actions": f"{game.spec.n_actions or game.spec.action_dim} {_kind(game)}",
        "horizon": game.spec.horizon,
        "methods": _valid(game),
    }


def _kind(game: Environment) -> str:
    return "discrete" if game.spec.discrete else "continuous"


def _valid(game: Environment) -> str:
    """The methods that play in the environment and take its kind of actions."""
    playing = {name: row for name, row in METHODS.items() if row.family != "offline"}
    names = [name for name, row in playing.items() if _kind(game) in row.actions]
    return "all" if len(names) == len(playing) else ", ".join(names) or "none"


def _config(name: str, config: type, fixed: dict[str, Any], about: str) -> str:
    leaves = leaf_fields(config)
    lines = [
        {
            "field": key,
            "type": words.expected(hint),
            "default": words.write(getattr(config, key)),
            "several values make": "members" if key in leaves else "programs",
        }
        for key, hint in words.config_hints(config).items()
        if key not in fixed
    ]
    told = [f"{key}={words.write(value)}" for key, value in fixed.items()]
    title = f"{name}: {about}" + (f" ({', '.join(told)})" if told else "")
    return f"{title}\n\n{report.table(lines)}"


def _parameters(name: str) -> str:
    game = _game(name)
    title = f"{name}: {game['agents']} agents, {game['actions']} actions, horizon {game['horizon']}; "
    title = f"{title}methods: {game['methods']}" if game["agents"] else name
    lines = [
        {
            "parameter": key,
            "type": words.expected(parameter.annotation),
            "default": "needed"
            if parameter.default is parameter.empty
            else words.write(parameter.default),
        }
        for key, parameter in words.game_parameters(name).items()
    ]
    note = "Several values make members where the sizes stay the same, else programs."
    return f"{title}\n\n{report.table(lines)}\n{note}"


# --- plans ----------------------------------------------------------------------------------------


def plan(jobs: Sequence[tuple[str, Job]], lesson: words.Lesson | None, detail: str) -> str:
    """What would be run; with ``detail="memory"`` also what the largest program needs."""
    require(
        detail in ("", "memory"), f"--plan={detail} is not valid; expected --plan or --plan=memory."
    )
    if not jobs:
        return "no program falls to this shard"
    members = sum(len(job.rows) for _, job in jobs)
    total = sum(len(job.rows) * int(job.steps[-1]) for _, job in jobs)
    count = f"{len(jobs)} program{'s' * (len(jobs) != 1)}, {members} member{'s' * (members != 1)}"
    kind = "environment" if hasattr(jobs[0][1].config, "envs") else "gradient"
    texts = [f"{jobs[0][1].name}: {count}, {total:,} {kind} steps in all"]
    texts.append(report.table([_program(name, job) for name, job in jobs], _SHOWN))
    texts.extend(_settings([job for _, job in jobs]))
    if lesson is not None:
        own = " ".join(f"{key}={words.write(value)}" for key, value in lesson.arguments.items())
        texts.append(f"then students of each: {own or 'with the defaults of `tad list distill`'}")
    if detail == "memory":
        texts.append(
            _memory(max(jobs, key=lambda pair: len(pair[1].rows) * getattr(pair[1].config, "envs", 1)))
        )
    return "\n\n".join(texts)


def _program(name: str, job: Job) -> dict[str, Any]:
    axes = sorted(job.rows[0], key=lambda key: (key == "seed", key != "env"))
    counts = {key: len({str(row.get(key)) for row in job.rows}) for key in axes}
    parts = [f"{count} {key}" for key, count in counts.items() if count > 1 or key in ("env", "seed")]
    values = [name, len(job.rows), " x ".join(parts), job.plan.iterations, job.plan.evaluations]
    return dict(zip(_SHOWN, [*values, int(job.steps[-1])], strict=True))


def _settings(jobs: Sequence[Job]) -> list[str]:
    """The static values, those that all programs share apart from those that tell them apart."""
    configs = [job.identity["config"] for job in jobs]
    swept = {key for job in jobs for key in job.rows[0]}
    leaves = leaf_fields(type(jobs[0].config))
    shared = {k: v for k, v in configs[0].items() if all(c.get(k) == v for c in configs)}
    static = [f"{k}={_text(v)}" for k, v in shared.items() if k not in leaves]
    numbers = [f"{k}={_text(v)}" for k, v in shared.items() if k in leaves and k not in swept]
    differing = [k for k in configs[0] if k not in shared and k not in swept]
    texts = [f"static: {' '.join(static)}", f"numbers: {' '.join(numbers)}"]
    if differing:
        texts.append(f"differing: {', '.join(differing)}")
    return texts


def _text(value: Any) -> str:
    return words.write(tuple(value) if isinstance(value, list) else value)


def _memory(pair: tuple[str, Job]) -> str:
    """Compile one program and say what it needs."""
    import jax
    import numpy as np

    from jaxmarl_tad import devices, programs
    from jaxmarl_tad.sweep import Member, init_members, run_chunk

    name, job = pair
    stacked = devices.place(job.stacked, None)

    def complete(members: Member) -> tuple[Any, ...]:
        shapes = jax.eval_shape(lambda m: init_members(job.plan, m), members)
        return members, shapes, np.zeros((), np.int32)

    program, _ = programs.compiled(run_chunk, job.plan, stacked, complete=complete, donate=(1,))
    seconds = program.trace_s + program.compile_s
    each = math.ceil(program.peak_bytes / len(job.rows))
    return (
        f"{name}: {_bytes(program.peak_bytes)} at its peak, {_bytes(each)} per member; "
        f"built in {seconds:.1f} CPU-seconds on {jax.devices()[0].device_kind}"
    )


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
