"""Compiled programs: built once, timed apart from running, and kept for the life of the process."""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_COMPILED: dict[Any, "Program"] = {}


class Program(NamedTuple):
    """A compiled function and what it cost; seconds are CPU-seconds of the process."""

    call: Callable[..., Any]
    trace_s: float
    compile_s: float
    peak_bytes: int
    """Estimated peak of arguments, results and temporaries."""


def compiled(
    function: Callable[..., Any], static: Any, *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[Program, bool]:
    """``function(static, *arguments)`` compiled for the arguments' shapes, and whether it is new.

    ``donate`` numbers the arguments whose buffers the result may reuse.
    """
    shapes = jax.tree.map(jax.api_util.shaped_abstractify, arguments)
    key = (function, static, jax.tree.structure(shapes), tuple(map(str, jax.tree.leaves(shapes))))
    if key in _COMPILED:
        return _COMPILED[key], False
    use_compilation_cache()
    jitted = jax.jit(
        functools.partial(function, static),
        donate_argnums=donate,
        compiler_options=compiler_options(),
    )
    began = time.process_time()
    lowered = jitted.lower(*shapes)
    traced = time.process_time()
    call = lowered.compile()
    done = time.process_time()
    memory = call.memory_analysis()
    peak = 0
    if memory is not None:
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    _COMPILED[key] = Program(call, traced - began, done - traced, peak)
    return _COMPILED[key], True


def compiler_options() -> dict[str, Any]:
    """XLA's optimisation level 1 on CPUs: half the compile time at equal speed of the program."""
    if jax.default_backend() == "cpu":
        return {"xla_backend_optimization_level": 1}
    return {}


@functools.lru_cache(maxsize=1)
def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next process does not compile them again.

    The folder is ``$JAX_COMPILATION_CACHE_DIR`` or ``jaxmarl_tad`` in the user's cache folder.
    ``JAXMARL_TAD_CACHE=0`` switches this off; settings the user made are left alone.
    """
    if os.environ.get("JAXMARL_TAD_CACHE", "1") == "0":
        return
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home) / "jaxmarl_tad" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
