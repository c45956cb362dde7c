"""Settings that every test shares: compiled programs are kept, figures need no screen."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from jaxmarl_tad import programs

CHECKOUT = Path(__file__).resolve().parent.parent

# Compiling is nearly all of a test's cost, so every program goes to the persistent cache: through
# the environment for the processes that tests start, and here because jax has read it already.
CACHE = {
    "jax_compilation_cache_dir": str(CHECKOUT / ".cache" / "xla"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for option, default in CACHE.items():
    value = os.environ.setdefault(option.upper(), str(default))
    jax.config.update(option, type(default)(value))

os.environ.setdefault("MPLBACKEND", "Agg")

# Compilation makes the first example slow, and a test must say the same thing every time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Linux gives a process 65,530, and XLA ends with a segmentation fault when they are used up."""


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """What a module compiled goes with it; on a CPU each program takes hundreds of memory maps."""
    yield
    programs._COMPILED.clear()
    if MAPS.exists() and MAPS.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
