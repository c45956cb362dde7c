"""What figures are drawn with: one style, axes placed in inches, numbers as text, CSV twins."""

import contextlib
import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tad_envs.struct import require

WIDTH, DPI = 9.0, 120
INK, MUTED, FAINT = "#1b1f24", "#6a737d", "#d5dade"
STRONG = "#0b5fa5"
WORSE = ("#8fb7d6", "#bcd0de", "#d7dde2", "#e6e8ea", "#f0f1f2")
"""Outcomes below the optimum, from the second best downwards."""
BASINS = ("#cfe3f3", "#f1e7da", "#e7e9eb", "#f6f6f6")
METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c", "#b8a800")
"""After Okabe and Ito (2008): told apart also by colour-blind readers."""


@contextlib.contextmanager
def new_figure(width: float, height: float, path: str | Path) -> Iterator[Any]:
    """A figure in the common style, saved at ``path`` on leaving; no window system, no state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    require(path.suffix == ".png", f"figures are PNG files; {path.name!r} should end in '.png'.")
    path.parent.mkdir(parents=True, exist_ok=True)
    style: Any = {"font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK}
    with mpl.rc_context(mpl.rcParamsDefault | style):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, metadata={"Software": None})


def caption(figure: Any, title: str | None, note: str) -> None:
    """The line above the panels and the one below."""
    across, up = figure.get_size_inches()
    if title:
        figure.text(0.12 / across, 1 - 0.1 / up, title, size=11, weight="bold", va="top")
    if note:
        figure.text(0.12 / across, 0.1 / up, note, size=7.5, color=MUTED, va="bottom")


def new_axes(figure: Any, x: float, y: float, width: float, height: float) -> Any:
    """Axes placed in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, width / across, height / up))


def payoff_table(axes: Any, payoff: np.ndarray, optimum: float, size: float) -> None:
    """A payoff matrix as a table, its best entries marked."""
    rows, columns = payoff.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    for (a, b), value in np.ndenumerate(payoff):
        best = value == optimum
        axes.text(
            b + 0.5, a + 0.5, as_text(value), ha="center", va="center", size=size,
            color=STRONG if best else INK, weight="bold" if best else "normal",
        )  # fmt: skip
    axes.hlines(range(1, rows), 0, columns, color=FAINT, linewidth=0.8)
    axes.vlines(range(1, columns), 0, rows, color=FAINT, linewidth=0.8)
    axes.spines[:].set_color(MUTED)


def columns_for(count: int, most: int = 5) -> int:
    """Panels per row: all in one row if they fit, else the width that leaves the fewest empty."""
    if count <= most:
        return count
    return min(range(most, 2, -1), key=lambda n: (-count % n, math.ceil(count / n)))


def as_text(value: float, decimals: int = 3) -> str:
    """A number without needless zeros, its minus as typeset."""
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return ("0" if text == "-0" else text).replace("-", "−")


def counted(counts: Iterable[int], noun: str) -> str:
    """``4-8 seeds``, or ``1 seed``."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low}-{high} {noun}s" if low < high else f"{low} {noun}{'s' * (low != 1)}"


def unique(items: Iterable[Any]) -> list[Any]:
    """Each once, in the order in which they came."""
    return list(dict.fromkeys(items))


def twin(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV beside the figure at ``path``, with its stem; returns ``path``."""
    write_csv(Path(path).with_suffix(".csv"), header, rows)
    return Path(path)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows below their header; floats to seven digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in rows)
