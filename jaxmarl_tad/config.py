"""Configs: frozen, keyword-only records whose ``Real`` fields are traced and sweepable.

A field annotated ``Real`` (or with an array type) is a pytree leaf: a sweep over it is ``vmap``
inside one compiled program. Every other field is static, a part of the program. That is the whole
rule. Fields left at None are resolved from the environment's sizes before anything is compiled.
"""

from typing import Any, TypeVar

import numpy as np

from tad_envs import Spec, require
from tad_envs.struct import Real, check_keywords, concrete, leaf_fields, static_fields, struct

__all__ = [
    "Real",
    "as_dict",
    "check_divides",
    "check_range",
    "concrete",
    "config_of",
    "differences",
    "leaf_fields",
    "require",
    "resolve_epsilon",
    "resolve_steps",
    "static_fields",
    "struct",
]

_T = TypeVar("_T")
_SHORT = 4
"""Steps of a game in which uniform play sees every plan of a team often enough."""
_LONGEST_ROLLOUT = 128
_SIZES = [
    "total_steps",
    "envs",
    "steps",
    "epochs",
    "minibatches",
    "updates",
    "batch",
    "capacity",
    "embed",
    "hyper",
    "heads",
    "layers",
    "central",
    "hidden",
]


def config_of(cls: type[_T], fields: dict[str, Any]) -> _T:
    """``cls(**fields)``, refusing unknown fields by name, sizes below 1 and impossible step sizes."""
    known, owner = [*leaf_fields(cls), *static_fields(cls)], cls.__module__.rpartition(".")[2]
    check_keywords(fields, known, f"the config of {owner}")
    for name in _SIZES:
        value = fields.get(name)
        sizes = value if isinstance(value, tuple) else (value,)
        positive = bool(sizes) and all(size >= 1 for size in sizes if isinstance(size, int))
        require(positive, f"{owner}: {name}={value!r} must be positive.")
    config = cls(**fields)
    if "lr" in known:
        check_range(config, lr=(0, float("inf")))
    return config


def differences(a: Spec, b: Spec) -> str:
    """What tells two specs apart: ``n_actions=3 and not 2, horizon=1 and not 4``."""
    pairs = ((n, getattr(a, n), getattr(b, n)) for n in a._fields)
    return ", ".join(f"{n}={x!r} and not {y!r}" for n, x, y in pairs if x != y) or "other features"


def as_dict(config: Any) -> dict[str, Any]:
    """The config as plain data that JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        return list(value) if isinstance(value, tuple) else value

    names = [*leaf_fields(type(config)), *static_fields(type(config))]
    return {name: plain(getattr(config, name)) for name in sorted(names)}


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Refuse fields outside their closed range, where they are concrete numbers."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and concrete(value):
            inside = bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)))
            owner = type(config).__module__.rpartition(".")[2]
            require(inside, f"{owner}: {name}={value!r} must lie in [{low:g}, {high:g}].")


def check_divides(config: Any, name: str, whole: str) -> None:
    """Refuse a size that does not divide another, naming the nearest that do."""
    value, total = getattr(config, name), getattr(config, whole)
    valid = sorted((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - value))
    near = " or ".join(map(str, sorted(valid[:2])))
    owner = type(config).__module__.rpartition(".")[2]
    require(value in valid, f"{owner}: {name}={value} must divide {whole}={total}; nearest: {near}.")


def resolve_steps(steps: int | None, spec: Spec) -> int:
    """Rollout length: one episode, up to 128 steps, unless given."""
    return min(spec.horizon, _LONGEST_ROLLOUT) if steps is None else steps


def resolve_epsilon(epsilon: Real | None, spec: Spec) -> Real:
    """What exploration falls to unless given: not at all where chance meets every plan, else 0.05."""
    short = spec.horizon <= _SHORT
    return (1.0 if short else 0.05) if epsilon is None else epsilon
