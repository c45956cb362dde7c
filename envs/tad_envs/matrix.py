"""Matrix games: one joint action, one common payoff.

``reward = payoff[a_1, ..., a_N]``. The payoff is a leaf, so that all games of one shape run in one
program. Rows are the actions of the first agent, columns those of the second.

The table ``PAYOFFS`` gives every fixed game with its source; parametric families are functions.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tad_envs import finite
from tad_envs.struct import AnyArray, Real, concrete, require, struct
from tad_envs.types import Action, Key, Observation, Spec, State, TimeStep

Payoff = Any
"""A payoff tensor with one axis per agent: a host or traced array, or nested lists of numbers."""


@struct
class MatrixGame:
    """A common-payoff stage game, played ``repeats`` times; the last step terminates.

    Every agent sees the one-hot index of the step, which is the constant ``[1.]`` if played once, or if
    ``blind``. The state is that index, ``[]`` int32.
    """

    payoff: Float[AnyArray, "..."]
    """Payoff of each joint action; as many axes as agents, all of one (padded) length."""
    actions: Int[AnyArray, "N"]
    """How many of the actions each agent may take; the rest is padding."""
    repeats: int = 1
    blind: bool = False
    """Whether the step is hidden, so that a game played many times is played alike every time."""
    name: str = ""

    def __post_init__(self) -> None:
        require(self.repeats >= 1, f"repeats must be at least 1, not {self.repeats}.")
        payoff, actions = self.payoff, self.actions
        # Where actions has two axes, games are stacked.
        if isinstance(payoff, np.ndarray) and isinstance(actions, np.ndarray) and actions.ndim == 1:
            _check_payoff(payoff, actions)

    @property
    def spec(self) -> Spec:
        """Sizes; equal for all games of one shape."""
        return Spec(
            n_agents=self.payoff.ndim,
            obs_dim=self._shown,
            state_dim=self._shown,
            horizon=self.repeats,
            n_actions=self.payoff.shape[0],
            one_hot=True,
        )

    @property
    def _shown(self) -> int:
        return 1 if self.blind else self.repeats

    def starts(self) -> tuple[Float[Array, "1"], State]:
        """The first step, with certainty."""
        return finite.certain(jnp.zeros((), jnp.int32))

    def observe(self, state: State) -> Observation:
        """The step index (after the end that of the last step); padding is not legal."""
        feature = finite.one_hot(jnp.minimum(state, self._shown - 1), self._shown)
        legal = jnp.arange(self.spec.n_actions) < jnp.asarray(self.actions)[:, None]
        return finite.common_view(feature, legal)

    common_knowledge = finite.all_common

    def outcomes(
        self, state: State, action: Action
    ) -> tuple[Float[Array, "1"], State, Float[Array, "1"], Bool[Array, "1"]]:
        """The payoff of the joint action; padding counts as the last legal action."""
        legal_action = jnp.minimum(action, jnp.asarray(self.actions) - 1)
        index = finite.joint_index(legal_action, self.spec.n_actions)
        reward = jnp.asarray(self.payoff, jnp.float32).reshape(-1)[index]
        following = jnp.minimum(state + 1, self.repeats)
        p, stacked = finite.certain((following, reward, following >= self.repeats))
        return p, *stacked

    def reset(self, key: Key) -> tuple[State, Observation]:
        """Begin an episode. Draws nothing."""
        return finite.begin(self, key)

    def step(self, key: Key, state: State, action: Action) -> tuple[State, TimeStep]:
        """Pay and move on. Draws nothing."""
        return finite.advance(self, key, state, action)


def _check_payoff(payoff: np.ndarray, actions: np.ndarray) -> None:
    shape = payoff.shape
    require(
        payoff.ndim >= 2,
        f"payoff has {payoff.ndim} axes; expected one per agent, at least 2.",
    )
    require(
        payoff.ndim == len(actions),
        f"payoff has {payoff.ndim} axes; expected {len(actions)}, one per entry of actions.",
    )
    require(
        len(set(shape)) == 1,
        f"payoff has shape {shape}; expected equal axes (matrix.custom pads them).",
    )
    require(
        bool(np.all((actions >= 1) & (actions <= shape[0]))),
        f"actions={actions.tolist()} must lie between 1 and the {shape[0]} actions of the payoff.",
    )
    bad = np.argwhere(~np.isfinite(payoff))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        require(
            False,
            f"payoff[{', '.join(map(str, where))}] is {payoff[where]}; expected a finite number.",
        )


# --------------------------------------------------------------------------------------------------
# Construction


def custom(
    payoff: Payoff, *, repeats: int = 1, pad_to: int | None = None, blind: bool = False
) -> MatrixGame:
    """A game of any payoff with one axis per agent.

    Axes of unequal length are padded to the longest, or to ``pad_to``. Padding is never legal and
    never paid.
    """
    if not isinstance(payoff, (list, tuple)) and not concrete(payoff):
        require(pad_to is None, "pad_to needs a payoff that is a list or a numpy array.")
        actions = np.asarray(np.shape(payoff), np.int32)
        return MatrixGame(payoff=payoff, actions=actions, repeats=repeats, blind=blind)
    table = _as_table(payoff)
    require(table.ndim >= 2, f"payoff has {table.ndim} axes; expected one per agent, at least 2.")
    require(table.size > 0, f"payoff has shape {table.shape}; expected at least one action each.")
    width = max(table.shape) if pad_to is None else pad_to
    require(
        width >= max(table.shape),
        f"pad_to={pad_to} is less than the {max(table.shape)} actions of the payoff.",
    )
    padded = np.pad(table, [(0, width - size) for size in table.shape])
    actions = np.asarray(table.shape, np.int32)
    return MatrixGame(payoff=padded, actions=actions, repeats=repeats, blind=blind)


def _as_table(payoff: Any) -> np.ndarray:
    try:
        return np.asarray(payoff, np.float32)
    except (ValueError, TypeError):
        raise ValueError(
            f"payoff={payoff!r} is not a table of numbers with rows of equal length."
        ) from None


class Game(NamedTuple):
    """A published payoff."""

    payoff: list
    source: str


PAYOFFS: dict[str, Game] = {
    "tad": Game(
        [[10, -30, 0], [-30, 5, 4], [0, 0, 1]],
        "A game with the outcomes reported for TAD (arXiv 2207.11143), whose table is not public: "
        "independent learners end at 5, factored values at 1, a sequential policy at 10.",
    ),
    "t2": Game(
        [[10, -20, -20], [-20, 1, 1], [-20, 1, 5]],
        "As tad: independent policy gradient, VDN and QMIX end at 5.",
    ),
    "t3": Game(
        [[10, -10, -10], [-10, 5, 0], [-10, 0, 1]],
        "As tad; the best monotone fit is optimal, so that QMIX at 5 fails by optimisation alone.",
    ),
    "t7": Game(
        [[10, -30, -30], [-30, 5, -30], [-30, 4, 1]],
        "As tad: independent policy gradient ends at 5, VDN and QMIX at 4.",
    ),
    "t8": Game(
        [[10, -20, -20], [-20, 5, -20], [-20, -20, 1]],
        "Diagonal 10/5/1 with a constant penalty: a trap from random, not from uniform, logits.",
    ),
    "climbing": Game(
        [[11, -30, 0], [-30, 7, 0], [0, 6, 5]],
        "Claus and Boutilier 1998, in the transposition of EPyMARL's matrix-games and matrax.",
    ),
    "climbing_3p": Game(
        [
            [[11, -30, 0], [-30, 0, 0], [0, 0, 0]],
            [[-30, 0, 0], [0, 7, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0, 0], [0, 6, 5]],
        ],
        "Three-player climbing of EPyMARL's matrix-games; the first axis is the first agent.",
    ),
    "qtran": Game(
        [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]],
        "QTRAN (Son et al. 2019), table 1; QPLEX's second matrix game.",
    ),
    "qplex1": Game(
        [[10.4, 0, 10], [0, 10, 10], [10, 10, 10]],
        "MAVEN (Mahajan et al. 2019); QPLEX's first matrix game.",
    ),
    "qplex3": Game(
        [[8, -12, -12], [-12, 6, 0], [-12, 0, 6]],
        "QPLEX (Wang et al. 2021), matrix game with two local optima.",
    ),
    "pymarl2_a": Game(
        [[12, -0.1, -0.1], [-0.1, 0, 0], [-0.1, 0, 0]],
        "PyMARL2 (Hu et al. 2021): a mild penalty.",
    ),
    "pymarl2_b": Game(
        [[12, -12, -12], [-12, 0, 0], [-12, 0, 0]],
        "PyMARL2 (Hu et al. 2021): all row and column means are equal.",
    ),
    "pymarl2_c": Game(
        [[12, 0, 10], [0, 0, 10], [10, 10, 10]],
        "PyMARL2 (Hu et al. 2021): a safe action next to the optimum.",
    ),
    "note001": Game(
        [[0, -5], [-5, 10]],
        "Action 0 is the safe one: agents that play it with more than 3/4 stay at 0 instead of 10.",
    ),
    "trivial": Game(
        [[11, 8, 0], [8, 7, 0], [0, 0, 0]],
        "EPyMARL's matrix-games.",
    ),
    "linear": Game(
        [[1, 4, 2], [0, 3, 1], [2, 5, 3]],
        "EPyMARL's matrix-games: a sum of a row and a column term.",
    ),
    "nonlinear": Game(
        [[0, 3, 1], [0, 0, 0], [0, 6, 2]],
        "EPyMARL's matrix-games: a product of a row and a column term.",
    ),
    "linear_2p": Game([[1, 5], [5, 9]], "EPyMARL's matrix-games, two actions."),
    "nonlinear_2p": Game([[0, 0], [0, 10]], "EPyMARL's matrix-games, two actions."),
    "qmix_2b": Game(
        [[0, 1], [1, 8]],
        "State 2B of the two-step game of QMIX (Rashid et al. 2018); monotone but not additive.",
    ),
    "xor": Game([[0, 1], [1, 0]], "Fu et al. 2022: agents must differ."),
    "identity": Game([[1, 0], [0, 1]], "Fu et al. 2022: agents must agree."),
    "mackrl_1": Game(
        [
            [1, 0, 0, 0.4, 0],
            [0, 0.2, 0.4, 0.8, 0.4],
            [0, 0, 0, 0.4, 0],
            [0, 0, 0, 0.2, 0],
            [0, 0, 0, 0, 0],
        ],
        "MACKRL (Schroeder de Witt et al. 2019), first of the pair, scaled to optimum 1.",
    ),
    "mackrl_2": Game(
        [
            [0, 0, 0.2, 0, 1],
            [0, 0, 0.4, 0, 0],
            [0.2, 0.4, 0.8, 0.4, 0.2],
            [0, 0, 0.4, 0, 0],
            [0, 0, 0.2, 0, 0],
        ],
        "MACKRL (Schroeder de Witt et al. 2019), second of the pair, scaled to optimum 1.",
    ),
    "alberdice": Game(
        [[0, 1], [1, -2]],
        "AlberDICE (Matsunaga et al. 2023): two optima; policies fitted one by one may meet at -2.",
    ),
}


def penalty(
    *, k: Real = -100.0, repeats: int = 1, pad_to: int | None = None, blind: bool = False
) -> MatrixGame:
    """Penalty game (Claus and Boutilier 1998): both optima of 10 lie next to the penalty ``k``."""
    k = _number(k, "k")
    payoff = [[k, 0, 10], [0, 2, 0], [10, 0, k]]
    return custom(payoff, repeats=repeats, pad_to=pad_to, blind=blind)


def stag_hunt(
    *,
    R: Real = 0.0,
    S: Real = 10.0,
    c: Real = 5.0,
    repeats: int = 1,
    pad_to: int | None = None,
) -> MatrixGame:
    """Common-payoff stag hunt: ``R`` if both take action 0, ``S`` if both take 1, ``-c`` otherwise.

    There is no canonical common-payoff form; ``R=0, S=10, c=5`` is ``matrix/note001``.
    """
    R, S, c = _number(R, "R"), _number(S, "S"), _number(c, "c")
    return custom([[R, -c], [-c, S]], repeats=repeats, pad_to=pad_to)


def permutation(*, n: int = 4, repeats: int = 1) -> MatrixGame:
    """``n`` agents with ``n`` actions earn 1 if all differ (Fu et al. 2022)."""
    require(2 <= n <= 7, f"n={n} must lie between 2 and 7: the payoff has n to the n entries.")
    joint = np.sort(np.indices((n,) * n), axis=0)
    distinct = np.all(joint == np.arange(n).reshape(-1, *[1] * n), axis=0)
    return custom(distinct.astype(np.float32), repeats=repeats)


def hatrpo(*, n: int = 4, repeats: int = 1) -> MatrixGame:
    """1 only where the first half of the agents plays 0 and the second 1, or the reverse.

    HATRPO (Kuba et al. 2022), proposition on parameter sharing: the best policy common to all
    agents earns ``2 / 2**n``.
    """
    require(n >= 2 and n % 2 == 0, f"n={n} must be even and at least 2.")
    require(n <= 16, f"n={n} must be at most 16: the payoff has 2 to the n entries.")
    payoff = np.zeros((2,) * n, np.float32)
    half = n // 2
    payoff[(0,) * half + (1,) * half] = 1.0
    payoff[(1,) * half + (0,) * half] = 1.0
    return custom(payoff, repeats=repeats)


def published(
    key: str, *, repeats: int = 1, pad_to: int | None = None, blind: bool = False
) -> MatrixGame:
    """The game of the table ``PAYOFFS`` with that key."""
    return custom(PAYOFFS[key].payoff, repeats=repeats, pad_to=pad_to, blind=blind)


def _number(value: Any, name: str) -> float:
    require(concrete(value), f"{name} must be a number; to trace it, trace the payoff.")
    return float(finite.number(value, name))
