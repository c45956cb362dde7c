"""What runs came to: read from their folders alone, as a table of settings and as learning curves."""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmarl_tad import folder, report
from jaxmarl_tad.cli.words import write
from tad_envs import Environment, FiniteEnvironment, optimal, require

_FEW_CELLS, _FEW_GAMES = 512, 8
"""Joint actions times steps, and games, up to which the optimum is computed for a table."""


class Outcome(NamedTuple):
    """One run: its members and their curves so far."""

    algorithm: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    """``{name: [members, evaluations]}``."""
    games: dict[str, Environment]
    """The environments by name, as far as they are known."""


def runs(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The folders of all runs in ``path``: itself, or its subfolders', teachers before students."""
    there = pathlib.Path(path).expanduser()
    if there.is_dir() and not (there / folder.CONFIG).exists():
        found = [f.parent for depth in ("*", "*/*") for f in there.glob(f"{depth}/{folder.CONFIG}")]
        if found:
            return sorted(found, key=lambda run: (run.name == "students", run))
    folder.about(there)
    return [there]


def finished(path: pathlib.Path) -> bool:
    """Whether the run in this folder went to its end."""
    return any(event["event"] == "finish" for event in folder.events(path))


def evaluated(path: pathlib.Path) -> bool:
    """Whether the run in this folder has been evaluated; another process may have just begun it."""
    metrics = path / folder.METRICS
    if not metrics.exists():
        return False
    with np.load(metrics) as file:
        return "return" in file.files


def read(path: pathlib.Path) -> Outcome:
    """The run in a folder, as far as its files tell."""
    about = folder.about(path)
    require(evaluated(path), f"{str(path)!r} holds no evaluation yet.")
    with np.load(path / folder.METRICS) as file:
        curves = {name: file[name] for name in file.files}
    steps = curves.pop("steps")
    identity = about["identity"]
    rows = identity["members"]
    return Outcome(about["algorithm"], rows, identity["config"], steps, curves, _games(about))


def of(trained: Any) -> Outcome:
    """A run that is still in memory."""
    job = trained.job
    config = job.identity["config"]
    games = _named((job.recipe or {}).get("games", []))
    return Outcome(job.name, job.rows, config, trained.steps, trained.curves, games)


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per setting: how many seeds, and mean, least and largest final return."""
    lines = []
    for outcome, settings in zip(outcomes, _static(outcomes), strict=True):
        final = outcome.curves["return"][:, -1]
        for setting, members in _settings(outcome).items():
            lines.append(_line(outcome, dict(setting), settings, final[members]))
    if not any("optimal" in line for line in lines):
        return report.table(lines)
    return report.table([{**line, "optimal": line.get("optimal")} for line in lines])


def learning_curves(outcomes: Sequence[Outcome], figures: pathlib.Path, metric: str = "return") -> Any:
    """Draw a metric of all runs over steps, one panel per environment; the path of the PNG.

    The files are put in their place when they are whole: several processes may draw at once.
    """
    panels: dict[str, dict[str, tuple[Any, Any]]] = {}
    for outcome, settings in zip(outcomes, _static(outcomes), strict=True):
        values = outcome.curves.get(metric)
        if values is None:
            continue
        for setting, members in _settings(outcome).items():
            own = dict(setting)
            game = own.pop("env")
            label = " ".join([outcome.algorithm, *map(_pair, {**settings, **own}.items())])
            panel, number, name = panels.setdefault(game, {}), 1, label
            while name in panel:
                number += 1
                name = f"{label} ({number})"
            panel[name] = outcome.steps, values[members]
    require(bool(panels), f"no run has a curve called {metric!r}; {_metrics(outcomes)}")
    figures.mkdir(parents=True, exist_ok=True)
    stem = "learning_curves" if metric == "return" else f"learning_curves_{metric}"
    with tempfile.TemporaryDirectory(dir=figures, prefix=".") as there:
        drawn = report.learning_curves(panels, pathlib.Path(there) / f"{stem}.png", label=metric)
        for file in (drawn.with_suffix(".csv"), drawn):
            os.replace(file, figures / file.name)
    return figures / f"{stem}.png"


def _line(
    outcome: Outcome, setting: dict[str, Any], settings: dict[str, Any], final: np.ndarray
) -> dict[str, Any]:
    line: dict[str, Any] = {"env": setting.pop("env"), "method": outcome.algorithm}
    line |= {name: write(value) for name, value in {**settings, **setting}.items()}
    line |= {"seeds": len(final), "mean": float(final.mean())}
    line |= {"min": float(final.min()), "max": float(final.max())}
    best = _optimum(outcome.games.get(line["env"])) if len(outcome.games) <= _FEW_GAMES else None
    if best is not None:
        line["optimal"] = f"{100 * float(np.mean(optimal(final, best))):.0f} %"
    return line


def _settings(outcome: Outcome) -> dict[tuple[tuple[str, Any], ...], list[int]]:
    """The members of each setting: those that differ only in their seeds."""
    found: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for number, row in enumerate(outcome.rows):
        setting = tuple((k, _hashable(v)) for k, v in row.items() if k != "seed")
        found.setdefault(setting, []).append(number)
    return found


def _static(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For each run, those config fields that tell it from others of its method and environments."""
    alike: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        alike.setdefault(_kind(outcome), []).append(outcome)
    found = []
    for outcome in outcomes:
        others = [other.config for other in alike[_kind(outcome)]]
        names = [
            name
            for name, value in outcome.config.items()
            if name not in outcome.rows[0] and any(other.get(name) != value for other in others)
        ]
        found.append({name: _hashable(outcome.config[name]) for name in names})
    return found


def _kind(outcome: Outcome) -> Any:
    return outcome.algorithm, frozenset(row["env"] for row in outcome.rows)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _pair(item: tuple[str, Any]) -> str:
    return f"{item[0]}={write(item[1])}"


def _metrics(outcomes: Iterable[Outcome]) -> str:
    names = sorted({name for outcome in outcomes for name in outcome.curves})
    return f"expected one of: {', '.join(names)}."


def _games(about: dict[str, Any]) -> dict[str, Environment]:
    """The environments that a run's config.json describes, or that of its teacher's."""
    recipe = about.get("recipe")
    if recipe is None:
        return {}
    if recipe["stage"] == "run":
        return _named(recipe["games"])
    if recipe["env"] is not None:
        return _named([[recipe["env"], {}]])
    try:
        return _games(folder.about(recipe["teacher"]))
    except ValueError:
        return {}


def _named(pairs: list[Any]) -> dict[str, Environment]:
    from tad_envs.struct import from_plain

    games = [from_plain(game) if isinstance(game, dict) else game for game, _ in pairs]
    return {game.name: game for game in games}


def _optimum(game: Environment | None) -> float | None:
    """The best possible return, where every episode of a policy is the same and it is soon found."""
    import jax

    from tad_envs import solve

    if hasattr(game, "known"):  # a continuous game that knows its optimum in closed form
        assert game is not None
        return solve(game).value
    if not isinstance(game, FiniteEnvironment) or not game.spec.discrete:
        return None
    spec = game.spec
    if spec.n_actions**spec.n_agents * spec.horizon > _FEW_CELLS:
        return None
    try:
        certain = jax.eval_shape(game.starts)[0].shape == (1,)
        return solve(game).value if certain and _one_outcome(game) else None
    except ValueError:
        return None


def _one_outcome(game: FiniteEnvironment) -> bool:
    import jax

    def chances() -> Any:
        states = game.starts()[1]
        state = jax.tree.map(lambda x: x[0], states)
        return game.outcomes(state, jax.numpy.zeros(game.spec.n_agents, jax.numpy.int32))[0]

    return jax.eval_shape(chances).shape == (1,)
