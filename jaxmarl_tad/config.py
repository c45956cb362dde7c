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
    "check_range",
    "concrete",
    "config_of",
    "leaf_fields",
    "require",
    "resolve_steps",
    "static_fields",
    "struct",
]

_T = TypeVar("_T")
_LONGEST_ROLLOUT = 128


def config_of(cls: type[_T], fields: dict[str, Any]) -> _T:
    """``cls(**fields)``, refusing unknown fields by name."""
    check_keywords(fields, [*leaf_fields(cls), *static_fields(cls)], cls.__module__ + " config")
    return cls(**fields)


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


def resolve_steps(steps: int | None, spec: Spec) -> int:
    """Rollout length: one episode, up to 128 steps, unless given."""
    return min(spec.horizon, _LONGEST_ROLLOUT) if steps is None else steps
