"""What a state looks like, told without drawing it: for environments that can be shown.

An environment that can be drawn has a method ``scene(state) -> Scene``. It is called on the host, with
a state of numpy arrays, and knows nothing of colours or of files.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from tad_envs.types import State


class Point(NamedTuple):
    """Something that stands somewhere."""

    kind: str
    """What it is, e.g. ``"agent"``, ``"prey"``, ``"food"``, ``"shelf"``, ``"enemy"``."""
    x: float
    """To the right; in a grid, the column, whose middle this is."""
    y: float
    """Upwards; in a grid, rows are counted downwards, and ``Scene.grid`` says so."""
    label: str = ""
    """A word or two next to it."""
    alive: bool = True
    """Whether it still counts; what does not is drawn faintly."""
    value: float | None = None
    """A share in [0, 1] that is shown as a bar, e.g. health."""
    radius: float = 0.35
    """In units of the axes."""


class Scene(NamedTuple):
    """One picture."""

    low: tuple[float, float]
    """Left and lower end of the axes."""
    high: tuple[float, float]
    """Right and upper end."""
    points: tuple[Point, ...]
    grid: bool = False
    """Whether places are cells of a grid, with row 0 at the top."""
    walls: tuple[tuple[int, int], ...] = ()
    """Cells ``(row, column)`` that nobody enters."""
    lines: tuple[tuple[float, float, float, float], ...] = ()
    """Drawn on the ground from ``(x, y)`` to ``(x, y)``."""
    title: str = ""


@runtime_checkable
class Drawable(Protocol):
    """An environment that can be shown."""

    def scene(self, state: State) -> Scene:
        """What ``state`` looks like."""
        ...


def board(
    rows: int, columns: int, points: Iterable[Point], title: str = "", walls: tuple = ()
) -> Scene:
    """The scene of a grid, cell ``(0, 0)`` at the top left."""
    low, high = (-0.5, -0.5), (columns - 0.5, rows - 0.5)
    return Scene(low, high, tuple(points), grid=True, walls=walls, title=title)


def pieces(kind: str, cells: np.ndarray, columns: int, labels: bool = True) -> list[Point]:
    """Points on the cells of a grid, numbered row by row; negative ones are off the board."""
    found = [(i, *divmod(int(cell), columns)) for i, cell in enumerate(cells) if cell >= 0]
    return [Point(kind, column, row, str(i) if labels else "") for i, row, column in found]
