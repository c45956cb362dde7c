"""The words of a command line, and the programs that they ask for.

    tad run ippo hallway length=2,3 lr=1e-4,3e-4 hidden=64x64,128x128 seeds=8

A ``key=value`` belongs to the method's config, to the environment, or to the driver. Several values,
separated by commas, are a sweep. A field that is a leaf becomes an axis of one vmapped program; a
field that is part of the program, or that changes the environment's sizes, makes more programs.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tad_envs import Environment, leaf_fields, make, nearest, registry, require, static_fields

_KEY = re.compile(r"[A-Za-z_][\w.]*\Z")
SETTINGS: dict[str, Any] = {
    "seeds": int,
    "evaluations": int,
    "episodes": int,
    "prng": Literal["threefry", "hash"],
}
"""Keys of the driver that change a run's result."""
DRIVING: dict[str, Any] = {
    "out": str,
    "shard_over": Literal["members", "envs"],
    "wandb": Literal["off", "offline", "online"],
    "wandb_members": bool,
    "save_seconds": float,
    "keep": int,
}
"""Keys of the driver that do not."""


class Words(NamedTuple):
    """A command line taken apart: ``names key=value --flag=value @file``."""

    names: list[str]
    pairs: dict[str, str]
    flags: dict[str, str]
    source: str | None


class Lesson(NamedTuple):
    """One distillation: a readable name, and arguments of ``distill`` but for the teacher."""

    name: str
    arguments: dict[str, Any]


class Program(NamedTuple):
    """One compiled program's worth of members: a readable name, and arguments of ``run.prepare``."""

    name: str
    arguments: dict[str, Any]


def split(words: Iterable[str], flags: Mapping[str, bool]) -> Words:
    """Take words apart; ``flags`` are the known ones, and whether each needs a value."""
    found = Words([], {}, {}, None)
    source, waiting = None, ""
    for word in words:
        key, equals, value = word.partition("=")
        if waiting:
            found.flags[waiting], waiting = word, ""
        elif word.startswith("--"):
            require(
                key in flags,
                f"unknown option {key!r}; {nearest(key, flags) if flags else 'there is none.'}",
            )
            if flags[key] and not equals:
                waiting = key
            found.flags[key] = value
        elif word.startswith("@"):
            require(source is None, f"{word} is a second file to start from; name one.")
            source = word[1:]
        elif equals and _KEY.match(key):
            require(key not in found.pairs, f"{key} is given twice; several values are {key}=a,b.")
            require(value != "", f"{key}= has no value.")
            found.pairs[key] = value
        else:
            found.names.append(word)
    require(not waiting, f"{waiting} needs a value, such as {waiting}=0/4.")
    return found._replace(source=source)


def values(text: str) -> list[str]:
    """``a,b`` taken apart; commas inside brackets do not separate."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def names(words: Iterable[str]) -> list[str]:
    """Names separated by commas or blanks; ``order=0,1`` at the end of a name stays together."""
    return [name for word in words for name in re.split(r",(?=[A-Za-z_])", word)]


def check_keys(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse a key nobody knows, naming the nearest one that somebody does."""
    known = list(known)
    for key in given:
        require(key in known, f"{owner} has no key {key!r}; {nearest(key, known)}")


# --- values ---------------------------------------------------------------------------------------


def read(key: str, text: str, hint: Any) -> Any:
    """The value that ``text`` means for a field annotated ``hint``."""
    for kind in _kinds(hint):
        try:
            return _read(text, kind)
        except (ValueError, SyntaxError):
            continue
    advice = _advice(key, text, hint)
    raise ValueError(f"{key}={text} is not valid: expected {expected(hint)}{advice}")


def read_each(key: str, text: str, hint: Any) -> list[Any]:
    """Several values."""
    return [read(key, part, hint) for part in values(text)]


def read_all(key: str, text: str, hint: Any) -> list[Any]:
    """The values of a sweep; the same one twice is a mistake."""
    parts = values(text)
    for part in parts:
        require(parts.count(part) == 1, f"{key}={text} holds {part!r} twice.")
    return read_each(key, text, hint)


def seeds(text: str) -> int | list[int]:
    """``8`` means 0..7, ``3,5`` and ``3,`` are lists."""
    if "," not in text:
        return read("seeds", text, int)
    return [read("seeds", part, int) for part in values(text.removesuffix(","))]


def write(value: Any) -> str:
    """The text that :func:`read` turns into ``value``."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(write, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def expected(hint: Any) -> str:
    """What may be written for a field: ``an int``, ``gru or none``, ``ints joined by x (64x64)``."""
    kinds, texts = _kinds(hint), []
    choices = [str(a) for kind in kinds if typing.get_origin(kind) is Literal for a in kind.__args__]
    if choices:
        texts.append(" or ".join(choices))
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            texts.append("ints joined by x (64x64)")
        elif kind in _TEXTS and not (kind is int and float in kinds):
            texts.append(_TEXTS[kind])
        elif _is_array(kind) and float not in kinds:
            texts.append("numbers joined by x")
    return " or ".join(dict.fromkeys(texts)) or "a value"


_TEXTS = {
    int: "an int",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "none",
    Any: "a list in brackets",
}


def _kinds(hint: Any) -> list[Any]:
    """The alternatives of an annotation, in order."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
    return [hint]


def _read(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in kind.__args__ if str(choice) == text), None) or _no()
    if typing.get_origin(kind) is tuple:
        return tuple(int(part) for part in text.split("x"))
    if kind is types.NoneType:
        return None if text == "none" else _no()
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no()
    if kind is float:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if kind is Any:
        return ast.literal_eval(text)
    if _is_array(kind):
        return tuple(float(part) for part in text.split("x"))
    return kind(text) if kind in (int, str) else _no()


def _no() -> Any:
    raise ValueError


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and kind not in _TEXTS


def _advice(key: str, text: str, hint: Any) -> str:
    """The nearest text that would do, as the end of a sentence."""
    kinds = _kinds(hint)
    if int in kinds and float not in kinds:
        try:
            whole = float(text)
        except ValueError:
            return "."
        return f"; did you mean {key}={int(whole)}?" if whole.is_integer() else "."
    choices = [str(a) for kind in kinds if typing.get_origin(kind) is Literal for a in kind.__args__]
    close = nearest(text, choices) if choices else ""
    return f"; {close}" if close.startswith("did") else "."


# --- fields ---------------------------------------------------------------------------------------


def config_hints(config: type) -> dict[str, Any]:
    """The fields of a config and what each may be."""
    hints = typing.get_type_hints(config)
    return {name: hints[name] for name in (*static_fields(config), *leaf_fields(config))}


def game_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of the environment called ``name``, their annotations resolved."""
    base = "/".join(part for part in name.split("/") if "=" not in part)
    factory = registry.factory_of(base)
    hints = typing.get_type_hints(factory)
    found = inspect.signature(factory).parameters
    return {key: found[key].replace(annotation=hints[key]) for key in found}


def driving(pairs: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of ``run.execute`` among the keys."""
    known = {key: read(key, pairs[key], hint) for key, hint in DRIVING.items() if key in pairs}
    known.pop("out", None)
    seconds = known.get("save_seconds", 0.0)
    require(seconds >= 0, f"save_seconds={seconds} must not be negative.")
    require(known.get("keep", 2) >= 2, f"keep={known.get('keep')} must be at least 2.")
    tracked = known.get("wandb", "off") != "off"
    require(
        not (tracked and pairs.get("out") == "none"), "wandb needs a folder to write to, not out=none."
    )
    return {_ARGUMENTS.get(key, key): value for key, value in known.items()}


_ARGUMENTS = {"shard_over": "shard"}


def lessons(pairs: Mapping[str, str]) -> list[Lesson]:
    """The distillations that are asked for: one per combination of values."""
    from jaxmarl_tad.config import config_of
    from jaxmarl_tad.distill import Config

    hints = config_hints(Config)
    other = {"seed": int, "env": str, **{k: h for k, h in SETTINGS.items() if k != "seeds"}}
    check_keys(pairs, {*hints, *other, *DRIVING} - {"wandb", "wandb_members", "keep"}, "distillation")
    found = {
        key: read_all(key, text, {**hints, **other}[key])
        for key, text in pairs.items()
        if key not in DRIVING
    }
    found = {key: _as_float(v) if key in leaf_fields(Config) else v for key, v in found.items()}
    swept = sorted(key for key in found if len(found[key]) > 1)
    made = []
    for chosen in itertools.product(*found.values()):
        arguments = dict(zip(found, chosen, strict=True))
        config_of(Config, {key: value for key, value in arguments.items() if key in hints})
        if "env" in arguments:
            make(arguments["env"])
        for key in ("evaluations", "episodes"):
            require(arguments.get(key, 1) >= 1, f"{key}={arguments.get(key)} must be positive.")
        name = ",".join(f"{key}={write(arguments[key])}" for key in swept)
        made.append(Lesson(file_name(name), arguments))
    return sorted(made, key=lambda lesson: lesson.name)


# --- programs -------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """What a command starts from: nothing, or the recipe of an earlier run."""

    data: str | None = None
    """The dataset that it learned from."""
    limit: int | None = None
    """Bytes of it that were held at a time."""

    algorithm: str | None = None
    games: Sequence[tuple[Environment, dict[str, Any]]] = ()
    fields: Mapping[str, Any] = {}
    sweeps: Mapping[str, list[Any]] = {}
    settings: Mapping[str, Any] = {}


def programs(words: Words) -> list[Program]:
    """The programs that ``tad run`` is asked for, sorted by name."""
    from jaxmarl_tad.algorithms import METHODS, algorithm

    source = _source(words.source)
    given = names(words.names)
    chosen = given.pop(0) if given and (source.algorithm is None or given[0] in METHODS) else None
    chosen = chosen or source.algorithm
    require(chosen is not None, "name a method and an environment: tad run ippo hallway.")
    assert chosen is not None
    method = algorithm(chosen)
    if method.family == "offline":
        return _from_data(words.pairs, given, source, chosen, method)
    told = f"{chosen} learns in an environment and takes no data=..."
    require("data" not in words.pairs, f"{told}; methods that do: tad list.")
    require(bool(given or source.games), f"name an environment: tad run {chosen} hallway.")
    return _in_games(words.pairs, given, source, chosen, method)


def _from_data(
    pairs: Mapping[str, str], given: list[str], source: _Source, chosen: str, method: Any
) -> list[Program]:
    """Programs that learn from datasets; each is evaluated where it was recorded, unless told."""
    import pathlib

    from jaxmarl_tad.storage import manifest

    rest = {key: text for key, text in pairs.items() if key not in ("data", "env", "limit")}
    limit = read("limit", pairs["limit"], int) if "limit" in pairs else source.limit
    require(limit is None or limit > 0, f"limit={limit} must be positive.")
    given = given + names([pairs["env"]] if "env" in pairs else [])
    paths = values(pairs["data"]) if "data" in pairs else [source.data] if source.data else []
    require(bool(paths), f"{chosen} learns from a dataset: tad run {chosen} data=DIR.")
    found: dict[str, Program] = {}
    for path in paths:
        home = manifest(path)["env"]
        places = given or ([home] if home and "data" in pairs else [])
        told = f"data={path} does not say where it was recorded; give env=..., an environment."
        require(bool(places or source.games), told)
        there = str(pathlib.Path(path).expanduser().resolve())
        for program in _in_games(rest, places, source, chosen, method):
            for number, game in enumerate(program.arguments["env"]):
                labels = [f"data={pathlib.Path(there).name}"] if len(paths) > 1 else []
                labels += [program.name] + ([str(number)] if number else [])
                name = file_name(",".join(labels))
                while name in found:
                    name += "-2"
                own = {"env": [game], "data": there, "limit": limit}
                found[name] = Program(name, {**program.arguments, **own})
    return [found[name] for name in sorted(found)]


def _in_games(
    pairs: Mapping[str, str], given: list[str], source: _Source, chosen: str, method: Any
) -> list[Program]:
    """Programs in environments, sorted by name."""
    own, ours, settings = _sorted_out(pairs, given, source, chosen, config_hints(method.config))
    leaves = leaf_fields(method.config)
    axes = {key: _as_float(found) if key in leaves else found for key, found in ours.items()}
    fields = {k: v for k, v in source.fields.items() if k not in axes}
    sweeps = {k: v for k, v in source.sweeps.items() if k not in axes}
    fields |= {key: found[0] for key, found in axes.items() if len(found) == 1}
    sweeps |= {key: found for key, found in axes.items() if len(found) > 1 and key in leaves}
    parts = {key: found for key, found in axes.items() if len(found) > 1 and key not in leaves}
    order = [key for key in config_hints(method.config) if key in sweeps]  # whatever the words' order
    arguments = {"algorithm": chosen, **fields, **{key: sweeps[key] for key in order}, **settings}
    return _programs(_groups(given, own, source), parts, arguments)


def _source(path: str | None) -> _Source:
    """The settings of the run whose config.json is at ``path``."""
    if path is None:
        return _Source()
    import pathlib

    from jaxmarl_tad import folder
    from jaxmarl_tad.job import read as read_recipe

    file = pathlib.Path(path)
    recipe = folder.about(file.parent if file.name == folder.CONFIG else file).get("recipe")
    if recipe is None:
        raise ValueError(f"@{path} was made from objects that a file cannot hold.")
    require(recipe["stage"] == "run", f"@{path} is a distillation; see tad distill.")
    known = read_recipe(recipe)
    own = [tuple(pair) for pair in known["games"]]
    settings = {key: known[key] for key in SETTINGS}
    parts = own, known["fields"], known["sweeps"], settings
    return _Source(known.get("data"), known.get("limit"), known["algorithm"], *parts)


def _sorted_out(
    pairs: Mapping[str, str], given: list[str], source: _Source, chosen: str, config: dict[str, Any]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, Any]]:
    """Values of the environments' parameters, of config fields, and of the driver's settings."""
    bases = given or [game.name for game, _ in source.games]
    known = {name: game_parameters(name) for name in bases}
    either = {key: p.annotation for table in known.values() for key, p in table.items()}
    own: dict[str, list[Any]] = {}
    ours: dict[str, list[Any]] = {}
    settings = dict(source.settings)
    for key, text in pairs.items():
        name = key.removeprefix("env.")
        if key == "seeds":
            settings[key] = seeds(text)
        elif key in SETTINGS:
            settings[key] = read(key, text, SETTINGS[key])
        elif key in DRIVING:
            continue
        elif key in config:
            ours[key] = read_all(key, text, config[key])
        else:
            known_keys = {*config, *SETTINGS, *DRIVING, *either}
            check_keys([name], either if name != key else known_keys, f"{chosen} in {', '.join(bases)}")
            for base, table in known.items():
                advice = f"only of some; write it in their names, as in NAME/{name}={text}."
                require(name in table, f"{name} is no parameter of {base}, {advice}")
            own[name] = read_all(key, text, either[name])
    return own, ours, settings


def _as_float(found: list[Any]) -> list[Any]:
    return [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in found]


Games = list[tuple[Environment, dict[str, Any]]]


def _groups(given: list[str], own: dict[str, list[Any]], source: _Source) -> list[Games]:
    """The environments, those that can share a program together."""
    import jax

    bases = given or [game.name for game, _ in source.games]
    if not given and not own:
        made: Games = list(source.games)
    else:
        if not given:
            bases = _renamed(source, own)
        order = sorted(own)
        combinations = list(itertools.product(*(own[key] for key in order)))
        made = [
            (make(base, **dict(zip(order, chosen, strict=True))), {})
            for base in bases
            for chosen in combinations
        ]
        made = _told_apart(made)
    groups: dict[Any, Games] = {}
    for game, settings in made:
        groups.setdefault((jax.tree.structure(game), game.spec), []).append((game, settings))
    return list(groups.values())


def _told_apart(made: Games) -> Games:
    """The same environments, those with equal names (which tell no payoffs) numbered."""
    counts: dict[str, int] = {}
    found = []
    for game, own in made:
        counts[game.name] = number = counts.get(game.name, 0) + 1
        name = game.name if number == 1 else f"{game.name}#{number}"
        found.append((dataclasses.replace(game, name=name), own))  # type: ignore[type-var]
    return found


def _renamed(source: _Source, own: Mapping[str, Any]) -> list[str]:
    """Names of the file's environments, without the parameters that are given anew.

    Refuses environments that their names do not describe in full.
    """
    from tad_envs.struct import to_plain

    found = []
    for game, _ in source.games:
        try:
            same = to_plain(make(game.name)) == to_plain(game)
        except ValueError:
            same = False
        require(same, f"{game.name!r} of the file cannot be made anew by name; name an environment.")
        kept = [
            part
            for part in game.name.split("/")
            if part.partition("=")[0] not in own or "=" not in part
        ]
        found.append("/".join(kept))
    return list(dict.fromkeys(found))


def _programs(
    groups: list[Games], parts: dict[str, list[Any]], arguments: dict[str, Any]
) -> list[Program]:
    """Groups of environments times the values of static fields, each under its own name."""
    found: dict[str, Program] = {}
    for group in groups:
        for chosen in itertools.product(*parts.values()):
            static = dict(zip(parts, chosen, strict=True))
            labels = [f"{key}={write(value)}" for key, value in sorted(static.items())]
            if len(groups) > 1 or not labels:
                more = f"+{len(group) - 1}" if len(group) > 1 else ""
                labels = [group[0][0].name + more, *labels]
            label = file_name(",".join(labels))
            name = label
            number = 1
            while name in found:
                number += 1
                name = f"{label}-{number}"
            found[name] = Program(name, {**arguments, **static, "env": group})
    return [found[name] for name in sorted(found)]


def file_name(text: str) -> str:
    """``text`` with only signs that every file system takes."""
    return re.sub(r"[^\w.=+,-]+", "-", text)
