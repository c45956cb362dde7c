"""The table of methods: one row per registered name."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmarl_tad.algorithms.deterministic import ddpg
from jaxmarl_tad.algorithms.joint import annealed, ar_ppo, mackrl, magpo, mat, sable, tad_ppo
from jaxmarl_tad.algorithms.offline import (
    bc,
    bc_joint,
    bcq,
    comadice,
    conservative,
    icq,
    iddpg,
    omiga,
    oryx,
)
from jaxmarl_tad.algorithms.policy import actor_critic, coma, happo, hatrpo, pareto_ac, ppo
from jaxmarl_tad.algorithms.value import copa, ctds, pqn, q_learning, qtran, tad_dqn
from jaxmarl_tad.config import concrete, config_of
from jaxmarl_tad.sharing import check_assignment
from jaxmarl_tad.sweep import Make
from tad_envs import Spec, lookup, require


class Method(NamedTuple):
    """A registered method: a factory, its config, and what it supports."""

    name: str
    make: Make
    """``make(config, source) -> Algorithm``, given a resolved config."""
    config: type
    resolve: Callable[[Any, Spec], dict[str, Any]]
    """Values of config fields that depend on the environment's sizes; refuses what cannot be."""
    fixed: dict[str, Any]
    """The config fields that make this name this method."""
    family: Literal["policy", "value", "joint", "deterministic", "sequence", "offline"]
    execution: Literal["decentralised", "centralised"]
    paper: str
    actions: tuple[str, ...] = ("discrete",)
    memory: tuple[str, ...] = ("none", "gru")
    sharing: tuple[str, ...] = ("full", "full_id", "none", "selective")

    def settings(self, **fields: Any) -> Any:
        """The method's config with its defaults and ``fields``."""
        for name, value in self.fixed.items():
            require(
                fields.get(name, value) == value,
                f"{self.name} means {name}={value!r}; {name}={fields.get(name)!r} is another method.",
            )
        return config_of(self.config, {**fields, **self.fixed})

    def resolved(self, config: Any, spec: Spec) -> Any:
        """``config`` with every field that depends on the environment filled in."""
        kind = "discrete" if spec.discrete else "continuous"
        require(
            kind in self.actions,
            f"{self.name} supports {' and '.join(self.actions)} actions, not {kind} ones.",
        )
        self._check_sharing(config.sharing, spec)
        logits = getattr(config, "initial_logits", 0.0)
        if concrete(logits):
            width, what = (
                spec.n_actions or spec.action_dim,
                "actions" if spec.discrete else "dimensions",
            )
            require(
                np.shape(logits) in ((), (width,), (spec.n_agents, width)),
                f"{self.name}: initial_logits of shape {np.shape(logits)} must have one number for "
                f"each of {width} {what}, or such a row for each of {spec.n_agents} agents.",
            )
        return dataclasses.replace(config, **self.resolve(config, spec))

    def _check_sharing(self, sharing: Any, spec: Spec) -> None:
        """Refuse what the row does not declare, and assignments that are none."""
        assigned = isinstance(sharing, tuple)
        require(
            ("selective" if assigned else sharing) in self.sharing,
            f"{self.name}: sharing={sharing!r} is not valid; expected one of: "
            f"{', '.join(self.sharing)}.",
        )
        if assigned:
            check_assignment(sharing, spec.n_agents)


BOTH = ("discrete", "continuous")
NUMBERS = ("continuous",)

_ROWS = (
    # Relatives of PTDE: students who learn with their teacher, and agents whom a coach tells.
    Method(
        "ctds", ctds.make, ctds.Config, ctds.resolve, {},
        "value", "decentralised", "Zhao et al. 2022",
    ),
    Method(
        "copa", copa.make, copa.Config, copa.resolve, {},
        "value", "centralised", "Liu et al. 2021",
    ),
    # Agents that are told of the global state, for their students: unified (GIU) or personalised (GIP).
    Method(
        "mappo_giu", ppo.make, ppo.Config, ppo.resolve,
        {"critic": "state", "information": "unified"},
        "policy", "centralised", "Chen et al. 2024",
    ),
    Method(
        "mappo_gip", ppo.make, ppo.Config, ppo.resolve,
        {"critic": "state", "information": "personalised"},
        "policy", "centralised", "Chen et al. 2024",
    ),
    Method(
        "vdn_giu", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "vdn", "information": "unified"},
        "value", "centralised", "Chen et al. 2024",
    ),
    Method(
        "vdn_gip", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "vdn", "information": "personalised"},
        "value", "centralised", "Chen et al. 2024",
    ),
    Method(
        "qmix_giu", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "none", "information": "unified"},
        "value", "centralised", "Chen et al. 2024",
    ),
    Method(
        "qmix_gip", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "none", "information": "personalised"},
        "value", "centralised", "Chen et al. 2024",
    ),
    Method(
        "qplex_gip", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qplex", "information": "personalised"},
        "value", "centralised", "Chen et al. 2024",
    ),
    Method(
        "csrl", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "none", "information": "guided"},
        "value", "centralised", "Chen et al. 2022",
    ),
    Method(
        "ippo", ppo.make, ppo.Config, ppo.resolve, {"critic": "local", "information": "local"},
        "policy", "decentralised", "de Witt et al. 2020", actions=BOTH,
    ),
    Method(
        "mappo", ppo.make, ppo.Config, ppo.resolve, {"critic": "state", "information": "local"},
        "policy", "decentralised", "Yu et al. 2022", actions=BOTH,
    ),
    Method(
        "ia2c", actor_critic.make, actor_critic.Config, actor_critic.resolve,
        {"critic": "local", "epochs": 1},
        "policy", "decentralised", "Mnih et al. 2016; Papoudakis et al. 2021",
    ),
    Method(
        "maa2c", actor_critic.make, actor_critic.Config, actor_critic.resolve,
        {"critic": "state", "epochs": 1},
        "policy", "decentralised", "Papoudakis et al. 2021",
    ),
    Method(
        "ippo_epymarl", actor_critic.make, actor_critic.Config, actor_critic.resolve,
        {"critic": "local"},
        "policy", "decentralised", "Papoudakis et al. 2021",
    ),
    Method(
        "mappo_epymarl", actor_critic.make, actor_critic.Config, actor_critic.resolve,
        {"critic": "state"},
        "policy", "decentralised", "Papoudakis et al. 2021",
    ),
    Method(
        "coma", coma.make, coma.Config, coma.resolve, {},
        "policy", "decentralised", "Foerster et al. 2018",
    ),
    Method(
        "pareto_ac", pareto_ac.make, pareto_ac.Config, pareto_ac.resolve, {},
        "policy", "decentralised", "Christianos et al. 2022",
    ),
    Method(
        "tad_ppo", tad_ppo.make, tad_ppo.Config, tad_ppo.resolve, {},
        "joint", "centralised", "Ye et al. 2022", actions=BOTH,
    ),
    Method(
        "iql", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "none", "information": "local"},
        "value", "decentralised", "Tan 1993",
    ),
    Method(
        "vdn", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "vdn", "information": "local"},
        "value", "decentralised", "Sunehag et al. 2018",
    ),
    Method(
        "qmix", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "none", "information": "local"},
        "value", "decentralised", "Rashid et al. 2018",
    ),
    Method(
        "qplex", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qplex", "information": "local"},
        "value", "decentralised", "Wang et al. 2021",
    ),
    Method(
        "ow_qmix", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "optimistic", "information": "local"},
        "value", "decentralised", "Rashid et al. 2020",
    ),
    Method(
        "cw_qmix", q_learning.make, q_learning.Config, q_learning.resolve,
        {"mixer": "qmix", "weighting": "central", "information": "local"},
        "value", "decentralised", "Rashid et al. 2020",
    ),
    Method(
        "qtran", qtran.make, qtran.Config, qtran.resolve, {"form": "base"},
        "value", "decentralised", "Son et al. 2019",
    ),
    Method(
        "qtran_alt", qtran.make, qtran.Config, qtran.resolve, {"form": "alt"},
        "value", "decentralised", "Son et al. 2019",
    ),
    Method(
        "pqn_vdn", pqn.make, pqn.Config, pqn.resolve, {},
        "value", "decentralised", "Gallici et al. 2025",
    ),
    Method(
        "maddpg", ddpg.make, ddpg.Config, ddpg.resolve, {"mixer": "none"},
        "deterministic", "decentralised", "Lowe et al. 2017", actions=BOTH,
    ),
    Method(
        "facmac", ddpg.make, ddpg.Config, ddpg.resolve, {"mixer": "qmix"},
        "deterministic", "decentralised", "Peng et al. 2021", actions=BOTH,
    ),
    # One model over the sequence of agents.
    Method(
        "mat", mat.make, mat.Config, mat.resolve, {"decoder": "autoregressive"},
        "sequence", "centralised", "Wen et al. 2022", actions=BOTH,
        memory=("none",), sharing=("full", "full_id"),
    ),
    Method(
        "mat_dec", mat.make, mat.Config, mat.resolve, {"decoder": "independent"},
        "sequence", "decentralised", "Wen et al. 2022", actions=BOTH, memory=("none",),
    ),
    Method(
        "sable", sable.make, sable.Config, sable.resolve, {},
        "sequence", "centralised", "Mahjoub et al. 2025", actions=BOTH,
        memory=("none", "retention"), sharing=("full", "full_id"),
    ),
    # Agents that learn one after the other.
    Method(
        "haa2c", happo.make, happo.Config, happo.resolve, {"objective": "plain"},
        "policy", "decentralised", "Zhong et al. 2024", actions=BOTH,
    ),
    Method(
        "happo", happo.make, happo.Config, happo.resolve, {"objective": "clipped"},
        "policy", "decentralised", "Kuba et al. 2022", actions=BOTH,
    ),
    Method(
        "hatrpo", hatrpo.make, hatrpo.Config, hatrpo.resolve, {},
        "policy", "decentralised", "Kuba et al. 2022", actions=BOTH,
    ),
    # Joint policies
    Method(
        "annealed_joint", annealed.make, annealed.Config, annealed.resolve, {},
        "joint", "decentralised", "this library",
    ),
    Method(
        "mackrl", mackrl.make, mackrl.Config, mackrl.resolve, {},
        "joint", "decentralised", "Schroeder de Witt et al. 2019", sharing=("full_id", "none"),
    ),
    Method(
        "tad_dqn", tad_dqn.make, tad_dqn.Config, tad_dqn.resolve, {},
        "value", "centralised", "Ye et al. 2022; Mnih et al. 2015", memory=("none",),
    ),
    # Autoregressive policies.
    Method(
        "ar_ppo", ar_ppo.make, ar_ppo.Config, ar_ppo.resolve, {},
        "joint", "centralised", "Fu et al. 2022", actions=BOTH,
    ),
    Method(
        "magpo", magpo.make, magpo.Config, magpo.resolve, {},
        "joint", "decentralised", "Li et al. 2025", actions=BOTH,
    ),
    # From recorded experience.
    Method(
        "omiga", omiga.make, omiga.Config, omiga.resolve, {},
        "offline", "decentralised", "Wang et al. 2023", actions=BOTH,
    ),
    Method(
        "bc", bc.make, bc.Config, bc.resolve, {},
        "offline", "decentralised", "Pomerleau 1989", actions=BOTH,
    ),
    Method(
        "bc_joint", bc_joint.make, bc_joint.Config, bc_joint.resolve, {},
        "offline", "centralised", "Pomerleau 1989; Ye et al. 2022", actions=BOTH,
    ),
    Method(
        "icq", icq.make, icq.Config, icq.resolve, {},
        "offline", "decentralised", "Yang et al. 2021", actions=BOTH,
    ),
    Method(
        "bcq_ma", bcq.make, bcq.Config, bcq.resolve, {},
        "offline", "decentralised", "Fujimoto et al. 2019; Wang et al. 2023", actions=BOTH,
    ),
    Method(
        "iql_cql", conservative.make, conservative.Config, conservative.resolve,
        {"mixer": "none", "penalty": "own"},
        "offline", "decentralised", "Kumar et al. 2020; Formanek et al. 2024",
    ),
    Method(
        "qmix_cql", conservative.make, conservative.Config, conservative.resolve,
        {"mixer": "qmix", "penalty": "sampled"},
        "offline", "decentralised", "Formanek et al. 2024",
    ),
    Method(
        "cfcql", conservative.make, conservative.Config, conservative.resolve,
        {"mixer": "qmix", "penalty": "counterfactual"},
        "offline", "decentralised", "Shao et al. 2023",
    ),
    Method(
        "cql_ma", conservative.make, conservative.Config, conservative.resolve,
        {"mixer": "linear", "penalty": "own"},
        "offline", "decentralised", "Kumar et al. 2020; Wang et al. 2023", actions=BOTH,
    ),
    Method(
        "iddpg_bc", iddpg.make, iddpg.Config, iddpg.resolve, {"form": "bc", "critic": "local"},
        "offline", "decentralised", "Fujimoto & Gu 2021; Formanek et al. 2024", actions=NUMBERS,
    ),
    Method(
        "iddpg_cql", iddpg.make, iddpg.Config, iddpg.resolve, {"form": "cql", "critic": "local"},
        "offline", "decentralised", "Kumar et al. 2020; Pan et al. 2022", actions=NUMBERS,
    ),
    Method(
        "maddpg_cql", iddpg.make, iddpg.Config, iddpg.resolve, {"form": "cql", "critic": "state"},
        "offline", "decentralised", "Formanek et al. 2024", actions=NUMBERS,
    ),
    Method(
        "omar", iddpg.make, iddpg.Config, iddpg.resolve, {"form": "omar", "critic": "local"},
        "offline", "decentralised", "Pan et al. 2022", actions=NUMBERS,
    ),
    Method(
        "comadice", comadice.make, comadice.Config, comadice.resolve, {},
        "offline", "decentralised", "Bui et al. 2025", actions=BOTH,
    ),
    Method(
        "oryx", oryx.make, oryx.Config, oryx.resolve, {},
        "offline", "centralised", "Formanek et al. 2025", actions=BOTH,
        memory=("none", "retention"), sharing=("full", "full_id"),
    ),
)  # fmt: skip

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def algorithms() -> list[str]:
    """Names of the registered methods."""
    return sorted(METHODS)


def algorithm(name: str) -> Method:
    """The method called ``name``; its ``make(config, source)`` builds the learner.

    A learner is three pure functions, for a loop of your own::

        env = jt.make("matrix/climbing")
        method = jt.algorithm("mappo")
        config = method.resolved(method.settings(lr=0.02), env.spec)
        learner = method.make(config, env)
        state = learner.init(jax.random.key(0))
        state, metrics = jax.jit(learner.step)(jax.random.key(1), state, 0.0)
        policy = learner.policy(state, greedy=True)
    """
    return lookup(METHODS, name, "algorithm")


def config(name: str) -> Callable[..., Any]:
    """A function that makes the config of the method called ``name``: ``config("mappo")(lr=1e-3)``."""
    return algorithm(name).settings
