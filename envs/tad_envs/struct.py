"""Frozen records that are JAX pytrees, with checked fields and errors a person can act on.

One rule decides what a field is:

* annotated ``Real`` or with a jaxtyping array: a *leaf*. It may be traced, so that a study over its
  values is ``vmap`` over one compiled program;
* annotated ``Nested[...]``: a pytree of its own (an environment inside a wrapper), whose leaves are
  leaves of the record;
* ``name``, and what a class lists as ``host_fields``: host-side only. They never reach a program nor
  cause a second one;
* anything else: *static*, a part of the program.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import jax
import numpy as np
from jaxtyping import AbstractArray

Real = float | int | np.ndarray | jax.Array
"""A number that a study may vary: a Python number, a numpy scalar, or a traced array of rank 0."""

AnyArray = jax.Array | np.ndarray
"""An array that is numpy until it is traced: the kind of a leaf, as in ``Float[AnyArray, "N"]``."""

_T = TypeVar("_T")
_HOST_FIELDS = ("name",)
_PYTREE = "pytree"
_MOST = 24
"""Names that an error lists."""

Nested = Annotated[_T, _PYTREE]
"""A field that is itself a pytree, e.g. the environment that a wrapper holds."""


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``condition`` holds (survives ``python -O``)."""
    if not condition:
        raise ValueError(message)


def nearest(name: str, choices: Iterable[str]) -> str:
    """A sentence naming the choice closest to ``name``, or all choices where none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    if len(choices) > _MOST:
        some = ", ".join(choices[:: -(-len(choices) // _MOST)])
        return f"expected one of {len(choices)} names, such as: {some}."
    return f"expected one of: {', '.join(choices)}."


def lookup(table: dict[str, _T], name: object, kind: str) -> _T:
    """``table[name]``, or a ``ValueError`` that names the value and the nearest valid ones."""
    if not isinstance(name, str):
        raise ValueError(f"{kind} must be given by name, not by {name!r} ({type(name).__name__}).")
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; {nearest(name, table)}")
    return table[name]


def check_keywords(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse a keyword ``owner`` does not have, naming the nearest one it has."""
    known = list(known)
    for name in given:
        require(name in known, f"{owner} has no field {name!r}; {nearest(name, known)}")


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], owner: str) -> None:
    """Refuse keywords that ``function`` does not take, lacks, or annotates otherwise."""
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    check_keywords(given, hints, owner)
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty
        require(optional or name in given, f"{owner} needs {name}=..., which has no default.")
    for name, value in given.items():
        problem = _problem(value, hints[name])
        require(problem is None, f"{owner}: {name}={value!r} {problem}")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def struct(cls: type[_T]) -> type[_T]:
    """Make ``cls`` a frozen, keyword-only dataclass that is a pytree with checked fields.

    A ``__post_init__`` of the class runs after the field checks. It also runs on tracers, because
    unflattening a pytree constructs it: let it look at leaves only through :func:`concrete`.
    """
    validate = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        _check_fields(self)
        if validate is not None:
            validate(self)

    setattr(cls, "__post_init__", __post_init__)  # noqa: B010
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=True)(cls)
    # jax also fills records with axes and sentinels: checkers that wrap constructors must allow it.
    made.__init__.__no_type_check__ = True
    names = [field.name for field in dataclasses.fields(made)]
    leaves = [n for n in names if n in leaf_fields(made)]
    jax.tree_util.register_dataclass(
        made,
        data_fields=leaves,
        meta_fields=[n for n in names if n not in leaves and n not in _host_fields(made)],
        drop_fields=[n for n in names if n in _host_fields(made)],
    )
    return made


def held_once(record: object) -> bool:
    """Whether all members of a program share ``record``, which is then held once and not per member.

    A class says so with ``held_once = True``; it is for tables that are large, such as recorded data.
    """
    return getattr(record, "held_once", False) is True


def leaf_fields(cls: type) -> tuple[str, ...]:
    """Names of the fields of a :func:`struct` class that are pytree leaves."""
    return tuple(name for name, hint in _hints(cls).items() if _is_leaf(hint))


def static_fields(cls: type) -> tuple[str, ...]:
    """Names of the fields of a :func:`struct` class that are part of the program."""
    host = _host_fields(cls)
    return tuple(n for n, hint in _hints(cls).items() if not _is_leaf(hint) and n not in host)


def _host_fields(cls: type) -> tuple[str, ...]:
    return _HOST_FIELDS + getattr(cls, "host_fields", ())


def to_plain(value: Any) -> Any:
    """A record of this package, or a field of one, as data that JSON holds; see :func:`from_plain`.

    Raises ``ValueError`` for records of other packages, whose classes could not be found again.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item) for item in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        ours = cls.__module__.split(".")[0] == __package__
        require(ours, f"a {cls.__qualname__} of {cls.__module__} cannot be written to a file.")
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{cls.__module__}.{cls.__qualname__}", "fields": fields}
    known = value is None or isinstance(value, (str, int, float))
    require(known, f"a {type(value).__qualname__} cannot be written to a file.")
    return value


def from_plain(data: Any) -> Any:
    """What :func:`to_plain` was given; only classes of this package are ever looked up."""
    if not isinstance(data, dict):
        return data
    if "array" in data:
        return np.asarray(data["array"], data["dtype"])
    if "tuple" in data:
        return tuple(from_plain(item) for item in data["tuple"])
    module, _, name = data["class"].rpartition(".")
    require(module.split(".")[0] == __package__, f"{data['class']!r} is no class of {__package__}.")
    cls = getattr(importlib.import_module(module), name)
    return cls(**{key: from_plain(value) for key, value in data["fields"].items()})


def concrete(*values: Any) -> bool:
    """Whether every value is a host number or array, so that it may be looked at."""
    kinds = (int, float, np.ndarray, np.generic)
    return all(isinstance(value, kinds) for value in values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _is_leaf(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return hint is jax.Array or hint == _PYTREE or any(_is_leaf(h) for h in typing.get_args(hint))


def _check_fields(record: Any) -> None:
    cls = type(record)
    for name, hint in _hints(cls).items():
        value = getattr(record, name)
        problem = _problem(value, hint)
        if problem:
            owner = f"{cls.__module__.rpartition('.')[2]}.{cls.__qualname__}"
            raise ValueError(f"{owner}: {name}={value!r} {problem}")


def _fits(dtype: np.dtype, hint: Any) -> bool:
    """Whether a leaf may have this type: numbers, and truth values where it is annotated so."""
    kinds = [hint, *typing.get_args(hint)]
    truth = dtype.kind == "b" and any("bool" in getattr(kind, "dtypes", ()) for kind in kinds)
    return truth or bool(np.issubdtype(dtype, np.number))


def _problem(value: Any, hint: Any) -> str | None:
    """What is wrong with ``value`` for a field annotated ``hint``, or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_leaf(hint):
        if value is None:
            return None if type(None) in args else "must be a number, not None."
        if isinstance(value, (str, bool, list, tuple, dict)):
            return f"must be a number or an array, not a {type(value).__name__}."
        if concrete(value) and not _fits(np.asarray(value).dtype, hint):
            return "must be numeric."
        return None
    if origin is Literal:
        if value in args:
            return None
        return f"is not valid; {nearest(str(value), [str(a) for a in args])}"
    if origin in (typing.Union, types.UnionType):
        problems = [_problem(value, arg) for arg in args]
        return None if None in problems else problems[0]
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"must be a tuple, not a {type(value).__name__}."
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return next((p for v, k in zip(value, kinds, strict=False) if (p := _problem(v, k))), None)
    if hint is type(None):
        return None if value is None else "must be None."
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return None
        whole = isinstance(value, float) and value.is_integer()
        hint_text = f"; did you mean {int(value)}?" if whole else "."
        return f"must be an int, not a {type(value).__name__}{hint_text}"
    if hint is not Any and isinstance(hint, type) and not isinstance(value, hint):
        return f"must be a {hint.__name__}, not a {type(value).__name__}."
    return None
