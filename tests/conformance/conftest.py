"""Which compiled checks run in the fast tier: those of one method per file, at its defaults.

Presets of one factory differ in a term, so the fast tier compiles the last of each; the others, and
every method with its other memory and sharing, are compiled in the slow tier. What needs a memory
runs for the same representatives in both. Laws need no compilation: they cover every method at its
defaults, and what else a row declares for the representatives and in the slow tier.
Probes are learned in the fast tier by one method of each kind of target, as tables. Of the sequence
models, which compile for longest, MAT stands for Sable.
"""

from pathlib import Path

import pytest
from conformance.learners import FAST

from jaxmarl_tad.algorithms import METHODS

HERE = Path(__file__).parent
PROBED = {"mappo", "coma", "happo", "tad_ppo", "cw_qmix", "pqn_vdn", "facmac"}
HEAVY = {row.name for row in METHODS.values() if "retention" in row.memory}
CONTINUOUS = ("mappo", "facmac")
"""Of these also the other kind of actions: all others draw from the same heads."""
ABOUT_MEMORY = "test_a_rollout_equals_stepwise_acting"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        compiled = item.path.parent == HERE and item.path.stem in ("test_compiled", "test_probes")
        if not compiled or not hasattr(item, "callspec"):
            continue
        case = item.callspec.params.get("case")
        name = item.callspec.params.get("name") if case is None else case.method
        memory = item.callspec.params.get("memory", "none") if case is None else case.memory
        remembers = memory != "none" and item.originalname != ABOUT_MEMORY
        learns = item.path.stem == "test_probes" and name not in PROBED
        numbers = case is not None and case.actions == "continuous" and name not in CONTINUOUS
        if name is not None and (name not in FAST - HEAVY or remembers or learns or numbers):
            item.add_marker(pytest.mark.slow)
