"""Cooperative games as pure functions of arrays; knows nothing of learning."""

from tad_envs.checker import check
from tad_envs.decentralised import Decentralised, solve_decentralised
from tad_envs.jumanji_interface import to_jumanji
from tad_envs.knowledge import common_knowledge
from tad_envs.oracle import Solution, equilibrium_values, optimal, solve, strict_equilibria
from tad_envs.reference import random_action
from tad_envs.registry import environments, make, register
from tad_envs.struct import (
    Nested,
    Real,
    check_keywords,
    concrete,
    leaf_fields,
    lookup,
    nearest,
    require,
    static_fields,
    struct,
)
from tad_envs.transform import Sequential, Unfolded, unfold
from tad_envs.types import (
    Action,
    Environment,
    FiniteEnvironment,
    Key,
    Observation,
    Spec,
    State,
    TimeStep,
)

__all__ = [
    "Action",
    "Decentralised",
    "Environment",
    "FiniteEnvironment",
    "Key",
    "Nested",
    "Observation",
    "Real",
    "Sequential",
    "Solution",
    "Spec",
    "State",
    "TimeStep",
    "Unfolded",
    "check",
    "check_keywords",
    "common_knowledge",
    "concrete",
    "environments",
    "equilibrium_values",
    "leaf_fields",
    "lookup",
    "make",
    "nearest",
    "optimal",
    "random_action",
    "register",
    "require",
    "solve",
    "solve_decentralised",
    "static_fields",
    "strict_equilibria",
    "struct",
    "to_jumanji",
    "unfold",
]
