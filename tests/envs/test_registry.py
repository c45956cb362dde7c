"""Names: what they make, how they are written, and what a wrong one answers."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from tad_envs import environments, make, register, registry


def test_names_hold_the_parameters_that_were_given():
    assert make("hallway", length=2).name == "hallway/length=2"
    assert make("hallway", penalty=0.5, length=2.0).name == "hallway/penalty=0.5/length=2"
    assert make("matrix/penalty", k=-100.0).name == "matrix/penalty/k=-100"
    assert make("matrix/penalty/k=-100").name == "matrix/penalty/k=-100"
    assert make("hallway/meet", lengths=(6, 6)).name == "hallway/meet/lengths=6,6"
    assert make("matrix/custom", payoff=np.eye(2)).name == "matrix/custom"


def test_a_name_makes_the_environment_that_bears_it():
    for env in (make("hallway/meet", lengths=(6, 6), clock=True), make("matrix/penalty/k=-25")):
        again = make(env.name)
        assert again.spec == env.spec
        pairs = zip(jax.tree.leaves(again), jax.tree.leaves(env), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("matrix/climbin", {}, "matrix/climbing"),
        ("hallways", {}, "hallway"),
        ("hallway", {"lenght": 2}, "'length'"),
        ("hallway/n_agents=2.0", {}, "did you mean 2"),
        ("matrix/penalty/k=-5", {"k": -5}, "in the name and as a keyword"),
        ("matrix/custom", {}, "needs payoff"),
        ("matrix/penalty", {"k": True}, "not a bool"),
        ("matrix/hatrpo", {"n": 4.0}, "must be an int"),
    ],
)
def test_a_wrong_name_or_parameter_is_answered_with_one_line(name, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        make(name, **parameters)
    assert "\n" not in str(error.value)


def test_a_registered_factory_is_made_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    def corridor(*, cells: int = 4):
        return make("hallway", length=cells)

    register("corridor", corridor)
    assert "corridor" in environments()
    assert make("corridor", cells=3).name == "corridor/cells=3"
    with pytest.raises(ValueError, match="already registered"):
        register("corridor", corridor)
    with pytest.raises(ValueError, match="must not hold"):
        register("a=b", corridor)


def test_importing_and_making_starts_no_backend():
    code = (
        "import sys, tad_envs; tad_envs.make('matrix/tad'); tad_envs.make('hallway/meet');"
        "from jax._src import xla_bridge; assert not xla_bridge._backends;"
        "assert not {'jaxmarl', 'jumanji', 'brax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
