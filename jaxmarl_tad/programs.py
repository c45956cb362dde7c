"""Compiled programs: built once, timed apart from running, and kept on disk.

Two things are kept. JAX's own compilation cache spares a later process the compiling but not the
tracing and lowering, which for small programs take longer than running. So the finished executable is
kept as well, under a name that is a digest of everything it was made from: the sources of both
packages, the versions, the device, JAX's settings, and the program's static part and shapes.
"""

import collections
import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jaxlib.version
from jax.sharding import Mesh, NamedSharding

import tad_envs

_COMPILED: collections.OrderedDict[Any, "Program"] = collections.OrderedDict()
_MOST_COMPILED = 48
"""The longest unused program is let go beyond this. On a CPU each takes hundreds of memory maps, of
which Linux gives a process 65,530; XLA ends with a segmentation fault when they are used up."""
_HITS: list[str] = []
"""One entry for each program that JAX's compilation cache has returned."""
_LARGEST_FOLDER = 512 * 2**20
_OURS = ("jaxmarl_tad", "tad_envs", "optax", "builtins")


class Program(NamedTuple):
    """A compiled function and what it cost; seconds are CPU-seconds of the process."""

    call: Any
    """The executable, a function of the arguments."""
    shapes: Any
    """Shapes and dtypes of all arguments."""
    trace_s: float
    compile_s: float
    """Compiling, or fetching what was compiled before."""
    peak_bytes: int
    """Estimated peak of arguments, results and temporaries."""


def compiled(
    function: Callable[..., Any],
    static: Any,
    *arguments: Any,
    complete: Callable[..., tuple[Any, ...]] = lambda *given: given,
    donate: tuple[int, ...] = (),
    mesh: Mesh | None = None,
    outputs: Any = None,
    once: bool = False,
) -> tuple[Program, bool]:
    """``function(static, *arguments)`` compiled for shapes, and whether it is new to this process.

    Args:
        function: A pure function.
        static: Its first argument, hashable.
        *arguments: Arrays, or what ``complete`` turns into all arguments' arrays or shapes. It is not
            called where the program is found.
        complete: See ``arguments``.
        donate: Numbers of the arguments whose buffers the result may reuse.
        mesh: The devices it runs on, if more than one; arguments then lie on them as they are given.
        outputs: A tree, or a prefix of one, of shardings of the results.
        once: Whether it runs but once, so that compiling it fast matters more than running it fast.
    """
    given = jax.tree.map(_shape, arguments)
    texts = [f"{x.dtype}{x.shape} {_spread(x.sharding)}" for x in jax.tree.leaves(given)]
    where = "" if mesh is None else f"{mesh} {mesh.devices.tolist()} {outputs}"
    key = (function, static, donate, jax.tree.structure(given), f"{texts} {where} {once}")
    if key in _COMPILED:
        _COMPILED.move_to_end(key)
        return _COMPILED[key], False
    folder = use_compilation_cache()
    file = None if folder is None else _file(folder, key)
    program = _load(file)
    if program is None:
        hits = len(_HITS)
        program = _build(function, static, complete(*given), donate, mesh, outputs, once)
        if file is not None and len(_HITS) == hits:
            _store(file, program)  # what JAX's cache returns lacks the machine code to keep
    _COMPILED[key] = program
    if len(_COMPILED) > _MOST_COMPILED:
        _COMPILED.popitem(last=False)
    return program, True


def compiler_options(once: bool = False) -> dict[str, Any]:
    """What makes compiling, and small networks, cheaper on CPUs; nothing elsewhere.

    XLA's optimisation level 1 halves it. A kernel of four numbers takes as long to compile as any, and
    moving what does not change out of a loop makes many of them, which would otherwise cost nothing
    within others: that pass is left out.

    Of what XLA may hand to YNNPACK it hands over matrix products alone: sums that are handed over are
    torn from the loops they would be part of, which costs a small network a third of its time.

    For a program that runs ``once``, loops are emitted the old way and nothing is optimised, which
    compiles in a quarter of that and makes them many times slower.
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {
        "xla_backend_optimization_level": 1,
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    }
    if _accepted(*_PRODUCTS_ALONE):
        options |= dict([_PRODUCTS_ALONE])
    fast = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
    return options | (fast if once else {})


_PRODUCTS_ALONE = ("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT")


@functools.cache
def _accepted(name: str, value: str) -> bool:
    """Whether this XLA knows an option: those that are called experimental come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.lru_cache(maxsize=1)
def use_compilation_cache() -> pathlib.Path | None:
    """Keep compiled programs on disk; returns the folder of executables, None if switched off.

    The folder is ``$JAX_COMPILATION_CACHE_DIR`` or ``jaxmarl_tad`` in the user's cache folder.
    ``JAXMARL_TAD_CACHE=0`` switches both caches off; settings the user made are left alone.
    """
    if os.environ.get("JAXMARL_TAD_CACHE", "1") == "0":
        return None
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home) / "jaxmarl_tad" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.monitoring.register_event_listener(
        lambda event, **_: _HITS.append(event) if event.endswith("/cache_hits") else None
    )
    return pathlib.Path(str(jax.config.values["jax_compilation_cache_dir"])) / "executables"


def _build(
    function: Callable[..., Any],
    static: Any,
    arguments: Any,
    donate: tuple[int, ...],
    mesh: Mesh | None,
    outputs: Any,
    once: bool,
) -> Program:
    shapes = jax.tree.map(_shape, arguments)
    began = time.process_time()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        lowered = jax.jit(
            functools.partial(function, static),
            donate_argnums=donate,
            out_shardings=outputs,
            compiler_options=compiler_options(once),
        ).lower(*shapes)
    traced = time.process_time()
    call = lowered.compile()
    done = time.process_time()
    return Program(call, shapes, traced - began, done - traced, _peak(call))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and, where it lies on several devices, how."""
    sharding = getattr(x, "sharding", None)
    several = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
    kind: Any = jax.api_util.shaped_abstractify(x)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding if several else None)


def _spread(sharding: Any) -> str:
    return "" if sharding is None else f"{sharding.spec} over {sharding.mesh.devices.tolist()}"


def _peak(call: Any) -> int:
    memory = call.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes


# --- executables on disk --------------------------------------------------------------------------


def _file(folder: pathlib.Path, key: Any) -> pathlib.Path | None:
    """Where the executable of a program is kept; None where a name cannot tell all it is made from."""
    function, static, donate, structure, shapes = key
    made_from = [_describe(function), _describe(static), _nodes(structure)]
    if None in made_from or jax.process_count() > 1:
        return None
    settings = {k: v for k, v in jax.config.values.items() if "cache" not in k}
    text = [*made_from, donate, structure, shapes, _machine(), sorted(map(str, settings.items()))]
    return folder / hashlib.sha256(repr(text).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """Sources of both packages, versions, devices and flags."""
    digest = hashlib.sha256()
    for package in (pathlib.Path(__file__).parent, pathlib.Path(tad_envs.__file__).parent):
        for source in sorted(package.rglob("*.py")):
            digest.update(f"{source.name} {source.stat().st_size}\n".encode() + source.read_bytes())
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC")]
    devices = [(d.platform, d.device_kind) for d in jax.devices()]
    host = [jax.devices()[0].client.platform_version, os.cpu_count(), platform.machine()]
    with contextlib.suppress(OSError):  # a folder may be shared by machines with other processors
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        host += sorted({line for line in lines if line.startswith(("flags", "model name"))})
    return repr((digest.hexdigest(), jax.__version__, jaxlib.version.__version__, flags, devices, host))


def _describe(value: Any) -> str | None:
    """A text that tells a static value; None for what the packages' sources do not determine."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if isinstance(value, tuple):
        parts = [_describe(part) for part in value]
        kind = type(value)
        known = kind is tuple or kind.__module__.split(".")[0] in _OURS
        return f"{kind.__qualname__}{parts}" if known and None not in parts else None
    if callable(value) and getattr(value, "__closure__", True) is None:
        name = f"{value.__module__}.{value.__qualname__}"
        return name if value.__module__.split(".")[0] in _OURS else None
    return None


def _nodes(structure: Any) -> str | None:
    """The text of a tree's structure; None if it holds a class whose source is not ours."""
    pending = [structure]
    while pending:
        node = pending.pop()
        data = node.node_data()
        if data is not None and data[0].__module__.split(".")[0] not in _OURS:
            return None
        pending.extend(node.children())
    return str(structure)


def _load(file: pathlib.Path | None) -> Program | None:
    """The program kept in ``file``; None if there is none, or none that this process can use."""
    if file is None or not file.exists():
        return None
    from jax.experimental import serialize_executable

    began = time.process_time()
    try:
        executable, shapes, peak = pickle.loads(file.read_bytes())
        call = serialize_executable.deserialize_and_load(*executable)
    except Exception:  # a damaged or foreign file: it is built anew and replaced
        return None
    return Program(call, shapes, 0.0, time.process_time() - began, peak)


def _store(file: pathlib.Path, program: Program) -> None:
    """Keep a program; what cannot be written is done without."""
    from jax.experimental import serialize_executable

    with contextlib.suppress(OSError, ValueError, TypeError, pickle.PicklingError):
        executable = serialize_executable.serialize(program.call)
        content = pickle.dumps((executable, program.shapes, program.peak_bytes))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
            new.write(content)
        os.replace(new.name, file)
        kept = sorted(file.parent.iterdir(), key=lambda old: old.stat().st_mtime)
        while sum(old.stat().st_size for old in kept) > _LARGEST_FOLDER:
            kept.pop(0).unlink()
