"""Environments by name: ``make("matrix/climbing")``, ``make("hallway", length=3)``."""

import ast
import dataclasses
import importlib.metadata
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tad_envs import (
    colours,
    continuous,
    didactic,
    football,
    football_scenarios,
    hallway,
    hands,
    jumanji,
    lbf,
    ltr,
    mamujoco,
    matrix,
    mpe,
    partial,
    predator_prey,
    relay,
    riddle,
    rware,
    smax,
    stag_hunt,
    traffic,
)
from tad_envs.struct import Real, check_arguments, lookup, require
from tad_envs.types import Environment

Factory = Callable[..., Environment]
"""Makes an environment from annotated keyword arguments."""

_FACTORIES: dict[str, Factory] = {}

_OPTIONAL = {"mamujoco": ("brax", "brax"), "hands": ("mujoco-mjx", "mjx")}
"""Families of games that are listed only where a package is installed, and our extra that has it."""


def register(name: str, factory: Factory) -> None:
    """Make ``factory(**parameters)`` available as ``make(name, **parameters)``.

    The keyword arguments of ``factory`` must be annotated: unknown ones and wrong types are refused
    before it is called.
    """
    require(bool(name) and "=" not in name, f"environment name {name!r} must not hold '='.")
    require(name not in _FACTORIES, f"environment {name!r} is already registered.")
    _FACTORIES[name] = factory


def environments() -> list[str]:
    """All names of what can be made here, sorted: some need a package that is an extra."""
    return sorted(_FACTORIES)


def make(name: str, /, **parameters: Any) -> Environment:
    """The environment of that name.

    Parameters may stand in the name: ``matrix/penalty/k=-50`` is ``make("matrix/penalty", k=-50)``.
    The environment's own ``name`` repeats the scalar parameters that were given, in their order.
    """
    require(isinstance(name, str), f"environment must be given by name, not by {name!r}.")
    base, written = _split(name)
    factory = factory_of(base)
    for key in parameters:
        require(key not in written, f"{base}: {key} is given in the name and as a keyword.")
    given = {**written, **parameters}
    check_arguments(factory, given, base)
    return _named(factory(**given), "/".join([base, *_labels(given)]))


def factory_of(base: str) -> Factory:
    """What makes the environment ``base``; refuses unknown names and those whose package is missing."""
    family = base.partition("/")[0]
    package, extra = _OPTIONAL.get(family, ("", ""))
    require(
        _installed(family),
        f"{base} needs {package}, which is not installed: pip install 'jaxmarl_tad[{extra}]'.",
    )
    return lookup(_FACTORIES, base, "environment")


def _installed(family: str) -> bool:
    """Whether the package is there that a family needs, if it needs one."""
    if family not in _OPTIONAL:
        return True
    return any(True for _ in importlib.metadata.distributions(name=_OPTIONAL[family][0]))


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """``"a/b/k=1"`` to ``("a/b", {"k": 1})``."""
    parts = name.split("/")
    base = [part for part in parts if "=" not in part]
    pairs = [part.partition("=") for part in parts if "=" in part]
    return "/".join(base), {key: _literal(text) for key, _, text in pairs}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _labels(parameters: dict[str, Any]) -> list[str]:
    labels = {key: _label(value) for key, value in parameters.items()}
    return [f"{key}={label}" for key, label in labels.items() if label is not None]


def _label(value: Any) -> str | None:
    """How a parameter is written in a name; None if it could not be read back."""
    if isinstance(value, str) and set(value) & set("/="):
        return None
    if isinstance(value, (str, bool, int)):
        return str(value)
    if isinstance(value, (float, np.generic)):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
        return ",".join(map(str, value))
    return None


def _named(env: Environment, name: str) -> Environment:
    if dataclasses.is_dataclass(env) and not isinstance(env, type):
        return dataclasses.replace(env, name=name)  # pyright: ignore[reportReturnType]
    return env


def _published(key: str) -> Factory:
    """The factory of one row of the payoff table."""

    def game(*, repeats: int = 1, pad_to: int | None = None, blind: bool = False) -> matrix.MatrixGame:
        return matrix.published(key, repeats=repeats, pad_to=pad_to, blind=blind)

    game.__doc__ = matrix.PAYOFFS[key].source
    return game


def _one_shot(key: Literal["product", "two_quadratics", "facmac"]) -> Factory:
    """The factory of one continuous game."""

    def game() -> continuous.OneShot:
        return continuous.OneShot(game=key)

    game.__doc__ = continuous.GAMES[key].source
    return game


def _foraging(scenario: str) -> Factory:
    """The factory of one scenario of level-based foraging."""

    def game(
        *, penalty: Real = 0.0, rules: lbf.Rules = "lbforaging", horizon: int | None = None
    ) -> lbf.Foraging:
        return lbf.scenario(scenario, penalty=penalty, rules=rules, horizon=horizon)

    game.__doc__ = f"Level-based foraging: {scenario}."
    return game


def _warehouse(scenario: str) -> Factory:
    """The factory of one scenario of the robotic warehouse."""

    def game(*, rules: rware.Rules = "rware", horizon: int = 500) -> rware.Warehouse:
        return rware.scenario(scenario, rules=rules, horizon=horizon)

    game.__doc__ = f"The robotic warehouse: {scenario}."
    return game


def _battle(scenario: str) -> Factory:
    """The factory of one map of SMAX."""

    def battle(*, horizon: int | None = None) -> smax.Smax:
        return smax.smax(scenario, horizon)

    battle.__doc__ = smax.smax.__doc__
    return battle


def _register_all() -> None:
    for key in matrix.PAYOFFS:
        register(f"matrix/{key}", _published(key))
    register("matrix/product", _one_shot("product"))
    register("two_quadratics", _one_shot("two_quadratics"))
    register("facmac", _one_shot("facmac"))
    for factory in (
        matrix.custom,
        matrix.penalty,
        matrix.stag_hunt,
        matrix.permutation,
        matrix.hatrpo,
        didactic.gaussian_squeeze,
        didactic.two_step,
        didactic.mmdp_qplex,
        didactic.maven_mstep,
    ):
        register(f"matrix/{factory.__name__}", factory)
    register("two_step", didactic.two_step)
    register("m_step", didactic.maven_mstep)
    register("mmdp", didactic.mmdp_qplex)
    for factory in (
        partial.dec_tiger,
        partial.mackrl_pair,
        partial.coordsum,
        relay.relay,
        riddle.switch_riddle,
    ):
        register(factory.__name__, factory)
    register("colours", colours.colours)
    register("hallway", hallway.hallway)
    register("hallway/wait", hallway.wait)
    register("hallway/meet", hallway.meet)
    for factory in (mpe.spread, mpe.speaker_listener, mpe.reference):
        register(f"mpe/{factory.__name__}", factory)
    register("lbf", lbf.foraging)
    for scenario in lbf.SCENARIOS:
        register(f"lbf/{scenario}", _foraging(scenario))
    register("rware", rware.warehouse)
    for scenario in rware.scenarios():
        register(f"rware/{scenario}", _warehouse(scenario))
    for factory in (stag_hunt.stag_hunt, predator_prey.qtran):
        register(f"predator_prey/{factory.__name__}", factory)
    for scenario in smax.MAPS:
        register(f"smax/{scenario}", _battle(scenario))
    for key in football_scenarios.SCENARIOS:
        register(f"football/{key}", football.scenario(key))
    register("traffic", traffic.traffic)
    register("traffic/arterial", traffic.arterial)
    for key in traffic.SETTINGS:
        register(f"traffic/{key}", traffic.setting(key))
    register("ltr/synthetic", ltr.synthetic)
    register("ltr/letor", ltr.from_file)
    register("jumanji/connector", jumanji.connector)
    register("jumanji/cleaner", jumanji.cleaner)
    for game, scenarios in jumanji.SCENARIOS.items():
        for key in scenarios:
            register(f"jumanji/{game}/{key}", jumanji.scenario(game, key))
    if _installed("mamujoco"):
        for key in mamujoco.TASKS:
            register(f"mamujoco/{key}", mamujoco.task(key))
    if _installed("hands"):
        register("hands/throw_catch", hands.throw_catch)


_register_all()
