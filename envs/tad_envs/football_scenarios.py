"""Where everybody starts in the scenarios of :mod:`tad_envs.football`.

Places are those of Google Research Football's academy (Kurach et al. 2020), in its units: the pitch is
``x`` in [-1, 1] and ``y`` in [-0.42, 0.42], and the own team attacks towards ``x = 1``. Opponents stand
where they stand on the pitch (upstream lists them turned by 180 degrees). Two things differ from it:

* who is far behind the play is left out: the own team's players that nobody controls, and its keeper
  but for ``corner``;
* of two opponents that upstream puts on one and the same place in ``counterattack_easy``, one is left.

``3_vs_2_with_keeper`` is not among upstream's scenarios. Chen et al. 2024 (PTDE) report it without its
places; here it is ``3_vs_1_with_keeper`` with the one defender replaced by two.
"""

from typing import Literal, NamedTuple

Name = Literal[
    "3_vs_1_with_keeper",
    "3_vs_2_with_keeper",
    "pass_and_shoot",
    "run_pass_and_shoot",
    "run_to_score_with_keeper",
    "counterattack_easy",
    "counterattack_hard",
    "corner",
]

Places = tuple[tuple[float, float], ...]


class Scenario(NamedTuple):
    """One start, and what ends an episode of it."""

    own: Places
    """The players that agents control."""
    opponents: Places
    """Without their keeper, who stands in the goal."""
    ball: tuple[float, float]
    line: float = 0.0
    """``x`` behind which the ball, and whoever started before it, must not go."""
    turnover: bool = True
    """Whether an opponent's having the ball ends the episode; else he clears it."""


_THREE = ((0.6, 0.0), (0.7, 0.2), (0.7, -0.2))
_PAIR = ((0.7, 0.0), (0.7, -0.3))
_COUNTER = ((0.5, -0.3161), (0.25, -0.1), (0.25, 0.1), (0.35, 0.316102))
_RETURNING = (
    (-0.128, 0.19576), (-0.365, 0.10568), (-0.282, 0.0), (-0.365, -0.10568), (-0.54, 0.3161),
    (-0.51, 0.0), (-0.54, -0.316102),
)  # fmt: skip
"""Opponents of both counterattacks who are behind the ball."""

SCENARIOS: dict[Name, Scenario] = {
    "3_vs_1_with_keeper": Scenario(_THREE, ((0.75, 0.0),), (0.62, 0.0)),
    "3_vs_2_with_keeper": Scenario(_THREE, ((0.75, 0.1), (0.75, -0.1)), (0.62, 0.0)),
    "pass_and_shoot": Scenario(_PAIR, ((0.75, -0.3),), (0.7, -0.28)),
    "run_pass_and_shoot": Scenario(_PAIR, ((0.75, -0.1),), (0.7, -0.28)),
    "run_to_score_with_keeper": Scenario(
        own=((0.0, 0.0),),
        opponents=tuple((-0.12, y) for y in (0.2, 0.1, 0.0, -0.1, -0.2)),
        ball=(0.02, 0.0),
        line=-0.1,  # the runner starts on the half-way line itself
    ),
    "counterattack_easy": Scenario(
        _COUNTER, (*_RETURNING, (0.4, -0.063559), (-0.4, 0.06356)), (0.26, -0.11)
    ),
    "counterattack_hard": Scenario(
        _COUNTER, (*_RETURNING, (0.4, -0.063559), (0.4, 0.06356)), (0.26, -0.11)
    ),
    "corner": Scenario(
        own=(
            (-1.0, 0.0), (1.0, 0.42), (0.7, 0.15), (0.7, 0.05), (0.7, -0.05), (0.0, 0.0), (0.6, 0.35),
            (0.8, 0.07), (0.8, -0.03), (0.8, -0.13), (0.7, -0.3),
        ),
        opponents=(
            (0.75, 0.18), (0.75, 0.08), (0.75, -0.02), (1.0, 0.1), (0.8, 0.25), (0.88, 0.07),
            (0.88, -0.03), (0.88, -0.13), (0.75, -0.25), (0.2, 0.0),
        ),
        ball=(0.99, 0.41),
        turnover=False,
    ),
}  # fmt: skip
