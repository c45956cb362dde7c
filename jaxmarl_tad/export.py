"""Export: a trained policy as files that run and can be read without this package.

A folder holds ``card.json``, which says what the policy was made for and how to load it, and

* ``jax``: the greedy decision function, one file per agent, weights inside. It takes what that agent
  remembers, sees and may do, each with a batch axis of any length, and runs on CPU, CUDA and TPU with
  nothing but jax and flatbuffers installed. A centralised policy is one file of the whole team.
* ``safetensors``: every parameter under a flat name, parameter sets on the first axis. Of students who
  tell a teacher's agents what to do, those agents' too, under ``agents/``.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarl_tad import devices
from jaxmarl_tad.config import as_dict
from jaxmarl_tad.job import Game, as_game
from jaxmarl_tad.run import Trained
from jaxmarl_tad.sharing import sharing
from jaxmarl_tad.types import Informed, Policy
from tad_envs import Observation, Spec, lookup, require

FORMATS = ("jax", "safetensors")
PLATFORMS = ("cpu", "cuda", "tpu")
_CARD = "card.json"
_PARAMETERS = "params.safetensors"
_MARK = "jaxmarl_tad policy"
"""What tells a card of ours from any other file of that name."""


def export(
    trained: Trained | Policy,
    /,
    path: str | pathlib.Path = "policy/",
    *,
    member: int = 0,
    env: Game | None = None,
    formats: Sequence[str] = FORMATS,
) -> pathlib.Path:
    """Write one member's greedy policy into the folder ``path``, for use without this package.

    An agent's artefact is a function ``(carry, observation [b, O], legal [b, A]) -> (action [b],
    carry)`` of that agent alone; ``carry`` is a tuple of arrays ``[b, ...]`` that starts as the card
    says. A team's is ``(carry, agents [b, N, O], state [b, S], legal [b, N, A], alive [b, N]) ->
    (action [b, N], carry)``. What a policy draws although it is greedy (a random order of agents) it
    draws alike in every episode.

    Args:
        trained: What ``run`` or ``distill`` returned; or one policy, which acts as it is.
        path: The folder. An earlier export in it is replaced, anything else is refused.
        member: Which member of ``trained``.
        env: The game of a lone policy; a run knows its own.
        formats: ``"jax"``, ``"safetensors"`` or both. A lone policy has no parameters to write.

    Returns:
        The folder.

    Raises:
        ValueError: A format or member does not exist, or ``path`` cannot be written or holds other
            files; raised before anything is written.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    require(bool(formats), f"formats=() writes nothing; choose from {', '.join(FORMATS)}.")
    for name in formats:
        lookup(dict.fromkeys(FORMATS), name, "format")
    if isinstance(trained, Trained):
        require(env is None, "env is for a lone Policy; a run knows the environment of each member.")
        policy, spec, about = trained.policy(member), trained.spec, _about(trained, member)
        mode = getattr(trained.config, "sharing", None)
        sets = sharing(mode, spec.n_agents).assignment if mode else None
        fixed = _fixed(trained, member)
        parameters = _parameters(trained, member, fixed) if "safetensors" in formats else {}
    else:
        require(env is not None, "a lone Policy needs an env, which tells the sizes of its inputs.")
        require(
            "safetensors" not in formats,
            "a lone Policy does not tell its parameters; use formats=('jax',) or export the run.",
        )
        game = as_game(env)[0]  # type: ignore[arg-type]
        policy, spec, about, parameters = trained, game.spec, {"environment": game.name}, {}
        sets = fixed = None
    if policy.execution == "decentralised":
        parts = {f"agent_{i}": _agent(policy, spec, i) for i in range(spec.n_agents)}
    else:
        parts = {"team": _team(policy, spec)}

    folder = pathlib.Path(path).absolute()
    _check_replaceable(folder)
    with _written(folder) as new:
        artefacts = []
        for name, part in parts.items():
            file = f"{name}.jax" if "jax" in formats else None
            if file is not None:
                (new / file).write_bytes(serialised(part.function, part.inputs))
            artefacts.append(_describe(file, part, sets, fixed))
        if "safetensors" in formats:
            from safetensors.numpy import save_file

            save_file(parameters, new / _PARAMETERS, metadata={"format": "np"})
        card = {
            "format": _MARK,
            "format_version": 1,
            **about,
            "execution": policy.execution,
            "spec": spec._asdict(),
            "observation_length": spec.obs_dim,
            "n_actions": spec.n_actions,
            "artefacts": artefacts,
            "parameters": {name: _kind(value) for name, value in parameters.items()},
            "platforms": PLATFORMS if "jax" in formats else (),
            "versions": _versions(),
            "files": sorted(file.name for file in new.iterdir()),
            **_recipe(next(iter(parts.values())), artefacts[0]["file"]),
        }
        (new / _CARD).write_text(json.dumps(card, indent=2) + "\n")
    return folder


# --- decision functions ---------------------------------------------------------------------------


class _Part(NamedTuple):
    """A decision function of one example and what it takes."""

    agents: list[int]
    """Whose decisions it makes."""
    function: Callable[..., Any]
    start: list[np.ndarray]
    """What the carry is before the first step of an episode."""
    sizes: dict[str, tuple[int, ...]]
    """Shapes of the inputs after the carry; Booleans are those called ``legal`` and ``alive``."""

    @property
    def inputs(self) -> dict[str, Any]:
        """Shapes and dtypes of everything it takes, in order."""
        carry = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.start)
        kinds = {name: np.bool_ if name in ("legal", "alive") else np.float32 for name in self.sizes}
        named = {n: jax.ShapeDtypeStruct(size, kinds[n]) for n, size in self.sizes.items()}
        return {"carry": carry, **named}


def _agent(policy: Policy, spec: Spec, agent: int) -> _Part:
    """Agent ``agent``'s own part of a decentralised policy.

    A policy acts for the whole team, so every agent is put in the place of this one: each row is the
    agent's own, and its own row is taken out again. No other agent's input exists in what is traced.
    """
    n, width = spec.n_agents, spec.n_actions or spec.action_dim
    leaves, structure = jax.tree.flatten(policy.start())
    for leaf in leaves:
        require(
            leaf.shape[:1] == (n,),
            f"the policy remembers an array of shape {leaf.shape}; that of a decentralised policy of "
            f"{n} agents has one row for each.",
        )

    def decide(carry: tuple[Any, ...], observation: Any, legal: Any) -> tuple[Any, tuple[Any, ...]]:
        everyone = lambda own: jnp.broadcast_to(own, (n, *own.shape))  # noqa: E731
        seen = Observation(
            agents=everyone(observation),
            state=jnp.zeros(spec.state_dim),
            legal=everyone(legal),
            alive=jnp.ones(n, bool),
        )
        memory = jax.tree.unflatten(structure, [everyone(own) for own in carry])
        action, memory, _ = policy.act(jax.random.key(0), memory, seen)
        return action[agent], tuple(leaf[agent] for leaf in jax.tree.leaves(memory))

    return _Part(
        [agent],
        decide,
        [np.asarray(leaf[agent]) for leaf in leaves],
        {"observation": (spec.obs_dim,), "legal": (width,)},
    )


def _team(policy: Policy, spec: Spec) -> _Part:
    """A centralised policy, which also sees the state and every agent's view."""
    n, width = spec.n_agents, spec.n_actions or spec.action_dim
    start, structure = jax.tree.flatten(policy.start())

    def decide(carry: tuple[Any, ...], agents: Any, state: Any, legal: Any, alive: Any) -> Any:
        seen = Observation(agents, state, legal, alive)
        memory = jax.tree.unflatten(structure, carry)
        action, memory, _ = policy.act(jax.random.key(0), memory, seen)
        return action, tuple(jax.tree.leaves(memory))

    return _Part(
        list(range(n)),
        decide,
        [np.asarray(leaf) for leaf in start],
        {"agents": (n, spec.obs_dim), "state": (spec.state_dim,), "legal": (n, width), "alive": (n,)},
    )


def serialised(function: Callable[..., Any], inputs: dict[str, Any]) -> bytes:
    """``function`` of one example as a portable program over a batch axis of any length.

    Whatever does not reach the results is left out, random bits above all, and so are the file names
    and lines that JAX would write next to every operation.
    """
    from jax import export as jax_export
    from jax.extend.core import jaxpr_as_fun
    from jax.interpreters import partial_eval

    def needed(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(jax.vmap(function), return_shape=True)(*arguments)
        outputs = [True] * len(closed.jaxpr.outvars)
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
        results = jaxpr_as_fun(closed.replace(jaxpr=jaxpr))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    (batch,) = jax_export.symbolic_shape("b")
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), tuple(inputs.values())
    )
    with _setting("jax_traceback_in_locations_limit", 0):
        return bytes(jax_export.export(jax.jit(needed), platforms=PLATFORMS)(*arguments).serialize())


@contextlib.contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


# --- what the card says ---------------------------------------------------------------------------


def _about(trained: Trained, member: int) -> dict[str, Any]:
    member %= len(trained.members)
    config = jax.tree.map(lambda x: _as_written(np.asarray(x[member])), trained.stacked.config)
    return {
        "algorithm": trained.name,
        "environment": trained.members[member]["env"],
        "member": trained.members[member],
        "config": as_dict(config),
    }


def _as_written(value: np.ndarray) -> np.ndarray:
    """0.2 rather than the digits of its nearest 32-bit number."""
    return value.astype(str).astype(float) if value.dtype.kind == "f" else value


def _fixed(trained: Trained, member: int) -> Informed | None:
    """The agents of a teacher whom a student tells what it has been taught."""
    own = jax.tree.map(jnp.asarray, devices.pick(trained.stacked, member))
    return trained.plan.make(own.config, own.source).fixed


def _parameters(trained: Trained, member: int, fixed: Informed | None) -> dict[str, np.ndarray]:
    """``{"actor/params/Dense_0/kernel": [sets, ...]}`` of one member."""
    require(
        hasattr(trained.state, "params"),
        f"{trained.name} has no parameters to write; use formats=('jax',).",
    )
    learned = jax.tree.map(lambda leaf: leaf[member], trained.state.params)

    def named(tree: Any, under: str = "") -> dict[str, np.ndarray]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        simple = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
        return {under + simple(path): np.array(leaf, order="C") for path, leaf in leaves}

    return named(learned) | ({} if fixed is None else named(fixed.params, "agents/"))


def _describe(
    file: str | None, part: _Part, sets: Sequence[int] | None, fixed: Informed | None
) -> dict[str, Any]:
    """One artefact: its file, whose it is, what it takes, and what it remembers at the start."""
    told = {} if fixed is None else {"agents_sets": [fixed.assignment[i] for i in part.agents]}
    return {
        "file": file,
        "agents": part.agents,
        "parameter_sets": None if sets is None else [sets[i] for i in part.agents],
        **told,
        "inputs": {name: jax.tree.map(lambda y: _kind(y, "b"), x) for name, x in part.inputs.items()},
        "outputs": ["action", "carry"],
        "memory": [
            {"shape": x.shape, "dtype": str(x.dtype), "start": _constant(x)} for x in part.start
        ],
    }


def _kind(x: Any, *axes: str) -> str:
    """``float32[b, 4]``."""
    return f"{x.dtype}[{', '.join([*axes, *map(str, x.shape)])}]"


def _constant(start: np.ndarray) -> Any:
    """One number where all are equal, else all of them."""
    same = start.size > 0 and bool((start == start.flat[0]).all())
    return start.flat[0].item() if same else start.tolist()


def _recipe(part: _Part, file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    return {
        "load": [
            "import json, jax.export, numpy as np; card = json.load(open('card.json'))",
            f"act = jax.jit(jax.export.deserialize(open('{file}', 'rb').read()).call)",
            "carry = tuple(np.full((b, *m['shape']), m['start'], m['dtype']) "
            "for m in card['artefacts'][0]['memory'])  # before each episode, of b games at once",
        ],
        "act": f"action, carry = act({', '.join(part.inputs)})",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jaxmarl_tad", "jax", "jaxlib"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- folders --------------------------------------------------------------------------------------


def _check_replaceable(folder: pathlib.Path) -> None:
    """Refuse a folder that holds anything but an earlier export."""
    if not folder.exists():
        return
    require(folder.is_dir(), f"path={str(folder)!r} is a file; give a folder.")
    present = {file.name for file in folder.iterdir()}
    try:
        card = json.loads((folder / _CARD).read_text())
        listed = {*card["files"], _CARD} if card["format"] == _MARK else set()
    except (OSError, ValueError, TypeError, KeyError):
        listed = set()
    others = sorted(present - listed)
    require(
        not others,
        f"path={str(folder)!r} holds {others[0] if others else ''!r}, which is not from an earlier "
        "export; give another folder.",
    )


@contextlib.contextmanager
def _written(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder to write into, which takes the place of ``folder`` once it is complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"path={str(folder)!r} cannot be written: {error.strerror}.") from error
    new, old = staging / "new", staging / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
