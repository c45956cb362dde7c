"""What is claimed of learning from data, on data that the experiment records."""

import functools

import numpy as np
import pytest

import jaxmarl_tad as jt
from experiments import offline, offline_games
from jaxmarl_tad import quality
from jaxmarl_tad.algorithms import METHODS
from jaxmarl_tad.dataset import returns
from jaxmarl_tad.statistics import stratified_bootstrap

DISCRETE = [
    row.name for row in METHODS.values() if row.family == "offline" and "discrete" in row.actions
]


@functools.cache
def hallway(folder):
    """The hallway's datasets by quality."""
    offline.OUT = folder
    return offline.datasets("hallway")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return hallway(tmp_path_factory.mktemp("offline"))


def learned(name, data):
    fields = offline.SETTINGS.get(("hallway", name), {})
    run = jt.run(name, data, eval_env="hallway", seeds=16, evaluations=1, **fields)
    return run.final["return"]


@pytest.mark.parametrize(("alpha", "p", "value"), [(0.5, 0.7870, -0.9034), (2.0, 0.4519, 0.0870)])
def test_the_closed_form_is_the_published_table(alpha, p, value):
    found = offline_games.fixed_point(offline_games.COUNTS["without 11"], alpha)
    np.testing.assert_allclose(found, p, atol=1e-4)
    assert offline_games.value(found) == pytest.approx(value, abs=5e-4)


def test_a_common_coin_has_the_largest_correlation():
    counts = [[0, 5], [5, 0]]
    np.testing.assert_allclose(offline_games.fixed_point(counts, 0.3), 0.5, atol=1e-9)
    assert quality.total_correlation(offline_games.one_step(counts)) == pytest.approx(np.log(2))


@pytest.mark.slow
def test_on_medium_data_omiga_is_above_imitation(found):
    """The data mostly stop in the first cell for 4; what goes on in some episodes pays 5."""
    mean = returns(found["medium"]).mean()
    assert returns(found["random"]).mean() + 1 < mean < returns(found["expert"]).mean()
    ends = {name: learned(name, found["medium"]) for name in ("bc", "omiga")}
    spans = {name: stratified_bootstrap(values, np.mean) for name, values in ends.items()}
    widths = [high - low for low, high in spans.values()]
    assert ends["omiga"].mean() - ends["bc"].mean() > sum(widths), ends
    assert spans["omiga"][0] > spans["bc"][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_on_expert_data_nobody_loses_more_than_a_twentieth(found, name):
    behaviour = returns(found["expert"]).mean()
    assert (learned(name, found["expert"]) >= 0.95 * behaviour).all()
