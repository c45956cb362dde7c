"""Every registered environment, made, and in which tier it is tested."""

import functools
import pathlib
import tempfile

import pytest

from tad_envs import Environment, make, registry

DATA = pathlib.Path(__file__).parent / "envs" / "data"
PACKAGES = ("jaxmarl/", "jumanji/", "smax/", "mamujoco/", "hands/")
"""What games of other packages are called here."""


def made(name: str) -> Environment:
    """The environment of that name, with what has no default."""
    required = {
        "matrix/custom": {"payoff": [[1, 2], [3, 4]]},
        "ltr/letor": {
            "path": str(DATA / "letor.txt"),
            "cache": tempfile.gettempdir(),
            "shortest": 3,
        },
    }
    return make(name, **required.get(name, {}))


def tiers() -> list:
    """All names, for ``parametrize``; slow are those that tell a compiler's time and no more.

    Fast is the first name that is registered of each class, for the others differ by numbers and
    sizes alone. Adapters of other packages are fast in their own tests only, on the smallest sizes:
    they compile for as long as all games of our own together.
    """
    seen, names = set(), []
    for name in registry._FACTORIES:
        adapter = name.startswith(PACKAGES)
        slow = adapter or type(kept(name)) in seen
        seen |= set() if adapter else {type(kept(name))}
        names.append(pytest.param(name, marks=pytest.mark.slow) if slow else name)
    return names


@functools.cache
def kept(name: str) -> Environment:
    """The same object each time, so that what is cached by environment is found."""
    return made(name)


def steps(env: Environment) -> int:
    """Three horizons, or as many steps as eight episodes of large views leave memory for."""
    spec = env.spec
    return max(1, min(3 * spec.horizon, 2**27 // (8 * spec.n_agents * (spec.obs_dim + spec.state_dim))))
