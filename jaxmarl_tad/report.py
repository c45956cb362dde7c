"""Figures and tables of results: what each method found, how it got there, and why.

Every figure is a PNG with a CSV of the plotted numbers beside it (same stem), and is a function of
its arguments alone: the same numbers give the same bytes. Figures are as wide as a README column.
matplotlib is imported when the first figure is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmarl_tad import statistics
from jaxmarl_tad.basins import gradient_field as gradient_field
from jaxmarl_tad.drawing import (
    FAINT,
    INK,
    METHODS,
    MUTED,
    STRONG,
    WIDTH,
    WORSE,
    as_text,
    caption,
    columns_for,
    counted,
    new_axes,
    new_figure,
    payoff_table,
    twin,
    unique,
    write_csv,
)
from tad_envs.struct import require


def outcome_bars(
    outcomes: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str | None = None,
    optima: Mapping[str, float] | None = None,
) -> Path:
    """Which return the seeds of each method ended on: one panel per game, one bar per method.

    Args:
        outcomes: Dicts with ``game``, ``method`` and ``values``, the final return of every seed.
        path: Where the PNG goes.
        title: One line above the panels.
        optima: The optimal return of each game. Without it the best return that any method reached
            takes its place.

    Returns:
        The path of the PNG.
    """
    require(len(outcomes) > 0, "outcome_bars: outcomes is empty.")
    games = unique(row["game"] for row in outcomes)
    methods = unique(row["method"] for row in outcomes)
    panels: dict[str, dict[str, np.ndarray]] = {game: {} for game in games}
    for row in outcomes:
        panels[row["game"]][row["method"]] = np.asarray(row["values"], float)
    best = {
        game: max(float(statistics.shares(values)[0][0]) for values in panel.values())
        for game, panel in panels.items()
    } | {game: float(value) for game, value in (optima or {}).items() if game in panels}

    columns = columns_for(len(games))
    rows = math.ceil(len(games) / columns)
    left = 0.2 + 0.075 * max(map(len, methods))
    right, gap, between, bottom, top = 0.45, 0.52, 0.4, 0.36, 0.62 if title else 0.32
    wide, tall = (WIDTH - left - right - gap * (columns - 1)) / columns, 0.23 * len(methods)
    height = top + bottom + rows * tall + (rows - 1) * between
    csv_rows: list[list[Any]] = []
    with new_figure(WIDTH, height, path) as figure:
        for index, (game, panel) in enumerate(panels.items()):
            row, column = divmod(index, columns)
            y = height - top - tall - row * (tall + between)
            axes = new_axes(figure, left + column * (wide + gap), y, wide, tall)
            drawn = _bars(axes, panel, methods, best[game], wide)
            csv_rows.extend([game, *bar] for bar in drawn)
            if column == 0:
                axes.set_yticks(range(len(methods)), methods, size=8.5)
            name = min(8.5, 72 * wide / (0.68 * len(game)))
            axes.text(0, -0.6, game, size=name, weight="bold", va="bottom")
            axes.text(1.02, -0.6, as_text(best[game]), size=8.5, color=STRONG, va="bottom")
        seeds = counted((np.size(v) for panel in panels.values() for v in panel.values()), "seed")
        reference = "optimal return" if optima else "best return that any reached"
        note = f"Shares of {seeds} by final return (inside). Blue: the {reference}, and its share."
        caption(figure, title, note)
    header = ["game", "method", "return", "share", "count", "seeds", "optimal"]
    return twin(path, header, csv_rows)


def _bars(
    axes: Any, panel: Mapping[str, np.ndarray], methods: Sequence[str], best: float, wide: float
) -> list[list[Any]]:
    """One game's bars; the rows drawn: method, return, share, count, seeds, whether optimal."""
    drawn: list[list[Any]] = []
    bars: list[tuple[float, float, float, str]] = []  # line, left end, width, colour
    distinct = np.unique(np.concatenate([statistics.shares(v)[0] for v in panel.values()]))[::-1]
    optimal = {v: abs(v - best) <= 1e-3 * max(1.0, abs(best)) for v in distinct}
    worse = [v for v in distinct if not optimal[v]]
    spread = max(1.0, (len(worse) - 1) / (len(WORSE) - 1))  # ranks that share a shade
    shade = {v: WORSE[int(rank / spread)] for rank, v in enumerate(worse)}
    for line, method in enumerate(methods):
        if method not in panel:
            axes.text(0.01, line, "not run", color=MUTED, va="center", size=7)
            continue
        values, share = statistics.shares(panel[method])
        for value, start, width in zip(values, np.cumsum(share) - share, share, strict=True):
            bars.append((line, start, width, STRONG if optimal[value] else shade[value]))
            ink, centre = "white" if optimal[value] else INK, start + width / 2
            if label := _fitting(value, width * wide):
                axes.text(centre, line, label, color=ink, size=7, ha="center", va="center")
            seeds = np.size(panel[method])
            drawn.append([method, value, width, round(width * seeds), seeds, int(optimal[value])])
        won = sum(width for value, width in zip(values, share, strict=True) if optimal[value])
        axes.text(
            1.02, line, f"{100 * won:.0f} %", va="center", size=7.5,
            color=STRONG if won else MUTED, weight="bold" if won else "normal",
        )  # fmt: skip
    place, start, width, colour = zip(*bars, strict=True)
    crowded = len(bars) > 8 * len(methods)
    axes.barh(
        place, width, 0.8, left=start, color=colour,
        edgecolor="white", linewidth=0 if crowded else 0.7,
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(len(methods) - 0.5, -0.5), xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawn


def payoff_mass(
    payoff: ArrayLike,
    masses: Mapping[str, ArrayLike],
    path: str | Path,
    title: str | None = None,
    snapshots: Sequence[object] | None = None,
    label: str = "iteration",
) -> Path:
    """Where on the payoff table each method puts its joint probability as it learns.

    Args:
        payoff: ``[A1, A2]``, the table of the game.
        masses: For each method ``[snapshots, A1, A2]``, the probability of each joint action.
        path: Where the PNG goes.
        title: One line above the strips.
        snapshots: The number or name of each snapshot, written above it.
        label: What these are.

    Returns:
        The path of the PNG.
    """
    table = np.asarray(payoff, float)
    strips = {method: np.asarray(mass, float) for method, mass in masses.items()}
    require(table.ndim == 2, f"payoff_mass: payoff has shape {table.shape}; expected [A1, A2].")
    lengths = {mass.shape[0] for mass in strips.values()}
    require(
        len(lengths) == 1 and all(mass.shape[1:] == table.shape for mass in strips.values()),
        f"payoff_mass: every method needs [snapshots, {table.shape[0]}, {table.shape[1]}], "
        f"not { ({m: s.shape for m, s in strips.items()}) }.",
    )
    (count,) = lengths
    names = [str(s) for s in (range(count) if snapshots is None else snapshots)]
    require(len(names) == count, f"payoff_mass: {len(names)} snapshots for {count} tables.")
    rows, columns = table.shape
    optimum = float(table.max())

    left = 0.2 + 0.075 * max(*map(len, strips), len(label))
    gap, top, bottom = 0.09, 0.66 if title else 0.34, 0.36
    # the payoff table is half as large again as a snapshot
    side = min(1.25, (WIDTH - 0.3 - left - gap * count) / (count + 1.5))
    tall = side * rows / columns
    height = top + bottom + max(len(strips) * (tall + gap) - gap, 1.5 * tall)
    across = columns * (1 + gap / side)  # from one snapshot to the next, in cells
    csv_rows: list[list[Any]] = []
    with new_figure(WIDTH, height, path) as figure:
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm

        shade = LinearSegmentedColormap.from_list("mass", ["#ffffff", "#a9cbe4", STRONG, "#06345c"])
        middle = bottom + (height - top - bottom) / 2
        axes = new_axes(figure, 0.12, middle - 0.75 * tall, 1.5 * side, 1.5 * tall)
        payoff_table(axes, table, optimum, size=min(11.0, 1.5 * side * 72 / columns / 2.6))
        axes.set_title("payoff", size=8.5, pad=4)
        for line, (method, strip) in enumerate(strips.items()):
            y = height - top - tall - line * (tall + gap)
            axes = new_axes(figure, 0.12 + 1.5 * side + left, y, count * (side + gap) - gap, tall)
            for index, mass in enumerate(strip):
                corner = index * across
                axes.imshow(
                    mass, cmap=shade, norm=PowerNorm(0.65, 0.0, 1.0), aspect="auto",
                    interpolation="nearest", extent=(corner, corner + columns, rows, 0),
                )  # fmt: skip
                _cells(axes, table, mass, corner, optimum, side * 72 / columns)
                for (a, b), p in np.ndenumerate(mass):
                    csv_rows.append([method, names[index], a, b, table[a, b], p])
            axes.set(xlim=(0, (count - 1) * across + columns), ylim=(rows, 0))
            axes.set(xticks=[], yticks=[rows / 2])
            axes.set_yticklabels([method], size=8.5)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            above: dict[str, Any] = {"size": 8, "va": "bottom", "color": MUTED}
            for index, name in enumerate(names if line == 0 else ()):
                x = index * across + columns / 2
                axes.text(x, -0.06 * rows, name, ha="center", **above)
            if line == 0:
                axes.text(-0.05 * columns, -0.06 * rows, label, ha="right", **above)
        note = "Shade: probability of the joint action (white 0, dark 1). Framed: the best payoff."
        caption(figure, title, note)
    header = ["method", "snapshot", "action_1", "action_2", "payoff", "probability"]
    return twin(path, header, csv_rows)


def learning_curves(
    curves: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    path: str | Path,
    title: str | None = None,
    optima: Mapping[str, float] | None = None,
    label: str = "return",
    reps: int = 500,
    dashed: str = "the optimum",
) -> Path:
    """Return over environment steps: interquartile mean, its 95 % interval, and every seed.

    Args:
        curves: For each game and method ``(steps [P], values [seeds, P])``.
        path: Where the PNG goes.
        title: One line above the panels.
        optima: The optimal return of each game, drawn as a dashed line.
        label: What the values are.
        reps: Redraws of the bootstrap.
        dashed: What ``optima`` are, for the note below the panels.

    Returns:
        The path of the PNG.
    """
    require(len(curves) > 0, "learning_curves: curves is empty.")
    methods = unique(method for panel in curves.values() for method in panel)
    columns = columns_for(len(curves), most=4)
    rows = math.ceil(len(curves) / columns)
    left, right, gap, between, bottom = 0.62, 0.15, 0.5, 0.62, 0.68
    top = 0.92 if title else 0.62
    wide = (WIDTH - left - right - gap * (columns - 1)) / columns
    tall = min(0.72 * wide, 2.6)
    height = top + bottom + rows * tall + (rows - 1) * between
    colours = {method: METHODS[i % len(METHODS)] for i, method in enumerate(methods)}
    most = max(np.shape(v)[0] for panel in curves.values() for _, v in panel.values())
    csv_rows: list[list[Any]] = []
    with new_figure(WIDTH, height, path) as figure:
        from matplotlib.collections import LineCollection
        from matplotlib.lines import Line2D
        from matplotlib.ticker import EngFormatter, MaxNLocator

        for index, (game, panel) in enumerate(curves.items()):
            row, column = divmod(index, columns)
            axes = new_axes(
                figure, left + column * (wide + gap),
                height - top - tall - row * (tall + between), wide, tall,
            )  # fmt: skip
            for method, (steps, values) in panel.items():
                x, y = np.asarray(steps, float), np.asarray(values, float)
                require(
                    y.ndim == 2 and x.shape == y.shape[1:],
                    f"learning_curves: {game}, {method}: steps {x.shape} and values {y.shape}; "
                    "expected [P] and [seeds, P].",
                )
                middle, low, high = statistics.iqm_curve(y, reps=reps)
                colour, faint = colours[method], max(0.06, min(0.35, 3 / len(y)))
                lines = np.stack([np.broadcast_to(x, y.shape), y], axis=-1)
                axes.add_collection(
                    LineCollection(list(lines), colors=colour, alpha=faint, linewidths=0.6)
                )
                axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
                axes.plot(x, middle, color=colour, linewidth=1.8, solid_capstyle="round")
                for point in range(len(x)):
                    seeds = [*y[:, point], *[""] * (most - len(y))]
                    csv_rows.append([game, method, x[point], middle[point], low[point], high[point]])
                    csv_rows[-1].extend(seeds)
            if optima and game in optima:
                axes.axhline(optima[game], color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.autoscale_view()
            axes.margins(x=0.01)
            axes.set_title(game, size=8.5, weight="bold", loc="left", pad=5)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.tick_params(labelsize=7.5, length=2.5, color=MUTED, labelcolor=MUTED)
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(MUTED)
            if index + columns >= len(curves):
                axes.set_xlabel("environment steps", size=8, color=MUTED)
            if column == 0:
                axes.set_ylabel(label, size=8, color=MUTED)
        handles = [Line2D([], [], color=colours[m], linewidth=2.2, label=m) for m in methods]
        figure.legend(
            handles=handles, loc="upper left", ncols=min(len(methods), 7), frameon=False,
            bbox_to_anchor=(0.06 / WIDTH, 1 - (0.34 if title else 0.04) / height), fontsize=8.5,
            handlelength=1.4, columnspacing=1.4,
        )  # fmt: skip
        runs = counted((np.shape(v)[0] for p in curves.values() for _, v in p.values()), "seed")
        note = f"Interquartile mean of {runs} and its 95 % bootstrap interval; thin: single seeds"
        note += f"; dashed: {dashed}." if optima else "."
        caption(figure, title, note)
    header = ["game", "method", "step", "iqm", "low", "high", *(f"run_{i}" for i in range(most))]
    return twin(path, header, csv_rows)


def histograms(
    returns: Mapping[str, ArrayLike], path: str | Path, title: str | None = None, bins: int = 30
) -> Path:
    """How often episodes of each dataset have each return, one panel below the other.

    Args:
        returns: For each dataset the returns of its episodes, ``[E]``.
        path: Where the PNG goes.
        title: One line above the panels.
        bins: Equal stretches of the range of all returns; few distinct returns are drawn each apart.

    Returns:
        The path of the PNG.
    """
    require(len(returns) > 0, "histograms: returns is empty.")
    values = {name: np.asarray(each, float) for name, each in returns.items()}
    distinct = np.unique(np.concatenate(list(values.values())))
    if len(distinct) == 1:
        edges = distinct[0] + np.array([-0.5, 0.5])
    elif len(distinct) <= bins:
        middle = (distinct[1:] + distinct[:-1]) / 2
        thin = 0.2 * np.min(np.diff(distinct))
        edges = np.unique(np.concatenate([distinct - thin, distinct + thin, middle]))
    else:
        edges = np.linspace(distinct[0], distinct[-1], bins + 1)
    left, right, between, bottom, tall = 0.75, 0.2, 0.42, 0.72, 1.15
    top = 0.65 if title else 0.35
    height = top + bottom + len(values) * tall + (len(values) - 1) * between
    rows: list[list[Any]] = []
    with new_figure(WIDTH, height, path) as figure:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for index, (name, each) in enumerate(values.items()):
            up = height - top - tall - index * (tall + between)
            axes = new_axes(figure, left, up, WIDTH - left - right, tall)
            share = np.histogram(each, edges)[0] / len(each)
            axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=STRONG, linewidth=0)
            axes.axvline(each.mean(), color=METHODS[1], linewidth=1.2)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_title(name, size=8.5, weight="bold", loc="left", pad=4)
            told = f"{len(each):,} episodes, {each.mean():.4g} ± {each.std():.3g}"
            axes.set_title(told.replace("-", "−"), size=7.5, color=MUTED, loc="right", pad=4)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=7.5, length=2.5, color=MUTED, labelcolor=MUTED)
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(MUTED)
            if index + 1 == len(values):
                axes.set_xlabel("return of an episode", size=8, color=MUTED)
            low, high = edges[:-1], edges[1:]
            rows += [[name, *row] for row in zip(low, high, share, strict=True)]
        caption(figure, title, "Share of the episodes with each return; line: their mean.")
    return twin(path, ["dataset", "low", "high", "share"], rows)


def table(
    rows: Sequence[Mapping[str, Any] | Sequence[Any]],
    columns: Sequence[str] | None = None,
    path: str | Path | None = None,
) -> str:
    """Rows as an aligned plain-text table; with ``path`` also as a CSV at full precision.

    Args:
        rows: Dicts, or sequences in the order of ``columns``.
        columns: Names, and for dicts the selection and order of what is shown.
        path: Where the CSV goes, if anywhere.
    """
    if columns is None:
        require(
            len(rows) > 0 and isinstance(rows[0], Mapping),
            "table: columns may be left out only where rows are dicts.",
        )
        columns = unique(name for row in rows if isinstance(row, Mapping) for name in row)
    cells: list[list[Any]] = []
    for row in rows:
        cells.append([row.get(name) for name in columns] if isinstance(row, Mapping) else list(row))
        require(
            len(cells[-1]) == len(columns),
            f"table: a row has {len(cells[-1])} cells for {len(columns)} columns.",
        )
    if path is not None:
        write_csv(Path(path), columns, cells)
    body = [[_cell(value) for value in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(columns, *body, strict=True)]
    right = [all(_numeric(row[i]) for row in cells) and bool(cells) for i in range(len(columns))]
    lines = [list(columns), ["─" * width for width in widths], *body]
    return "\n".join(
        "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _cells(
    axes: Any, payoff: np.ndarray, mass: np.ndarray, corner: float, optimum: float, points: float
) -> None:
    """Payoffs written on one shaded table, its outline, and frames round the best cells."""
    rows, columns = payoff.shape
    axes.plot(
        [corner, corner + columns, corner + columns, corner, corner], [0, 0, rows, rows, 0],
        color=FAINT, linewidth=0.8, clip_on=False,
    )  # fmt: skip
    size = min(8.0, points / 2.7)
    for (a, b), value in np.ndenumerate(payoff):
        if size >= 4:
            axes.text(
                corner + b + 0.5, a + 0.5, as_text(value), ha="center", va="center", size=size,
                color="white" if mass[a, b] > 0.36 else MUTED,
            )  # fmt: skip
        if value == optimum:
            axes.plot(
                corner + b + np.array([0, 1, 1, 0, 0]), a + np.array([0, 0, 1, 1, 0]),
                color=METHODS[1], linewidth=1.1, clip_on=False, zorder=3,
            )  # fmt: skip


def _fitting(value: float, inches: float) -> str:
    """The return, as precise as there is room for at 7 points; empty if there is none."""
    for decimals in (3, 2, 1):
        text = as_text(value, decimals)
        if 0.055 * len(text) + 0.05 <= inches:
            return text
    return ""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, (tuple, list, np.ndarray)):
        return f"[{', '.join(_cell(v) for v in value)}]"
    return str(value)


def _numeric(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return value is None or number
