"""Figures and tables of results: what each method found, how it got there, and why.

Every figure is a PNG with a CSV of the plotted numbers beside it (same stem), and is a function of
its arguments alone: the same numbers give the same bytes. Figures are as wide as a README column.
matplotlib is imported when the first figure is drawn.
"""

import contextlib
import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmarl_tad import statistics
from tad_envs.struct import require

WIDTH, DPI = 9.0, 120
INK, MUTED, FAINT = "#1b1f24", "#6a737d", "#d5dade"
STRONG = "#0b5fa5"
WORSE = ("#8fb7d6", "#bcd0de", "#d7dde2", "#e6e8ea", "#f0f1f2")
"""Outcomes below the optimum, from the second best downwards."""
BASINS = ("#cfe3f3", "#f1e7da", "#e7e9eb", "#f6f6f6")
METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c", "#b8a800")
"""After Okabe and Ito (2008): told apart also by colour-blind readers."""


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
    games = _distinct(row["game"] for row in outcomes)
    methods = _distinct(row["method"] for row in outcomes)
    panels: dict[str, dict[str, np.ndarray]] = {game: {} for game in games}
    for row in outcomes:
        panels[row["game"]][row["method"]] = np.asarray(row["values"], float)
    best = {
        game: max(float(statistics.shares(values)[0][0]) for values in panel.values())
        for game, panel in panels.items()
    } | {game: float(value) for game, value in (optima or {}).items() if game in panels}

    columns = _columns(len(games))
    rows = math.ceil(len(games) / columns)
    left = 0.2 + 0.075 * max(map(len, methods))
    right, gap, between, bottom, top = 0.45, 0.52, 0.4, 0.36, 0.62 if title else 0.32
    wide, tall = (WIDTH - left - right - gap * (columns - 1)) / columns, 0.23 * len(methods)
    height = top + bottom + rows * tall + (rows - 1) * between
    csv_rows: list[list[Any]] = []
    with _figure(WIDTH, height, path) as figure:
        for index, (game, panel) in enumerate(panels.items()):
            row, column = divmod(index, columns)
            y = height - top - tall - row * (tall + between)
            axes = _axes(figure, left + column * (wide + gap), y, wide, tall)
            drawn = _bars(axes, panel, methods, best[game], wide)
            csv_rows.extend([game, *bar] for bar in drawn)
            if column == 0:
                axes.set_yticks(range(len(methods)), methods, size=8.5)
            name = min(8.5, 72 * wide / (0.68 * len(game)))
            axes.text(0, -0.6, game, size=name, weight="bold", va="bottom")
            axes.text(1.02, -0.6, _number(best[game]), size=8.5, color=STRONG, va="bottom")
        seeds = _span((np.size(v) for panel in panels.values() for v in panel.values()), "seed")
        reference = "optimal return" if optima else "best return that any reached"
        note = f"Shares of {seeds} by final return (inside). Blue: the {reference}, and its share."
        _frame(figure, title, note)
    header = ["game", "method", "return", "share", "count", "seeds", "optimal"]
    return _twin(path, header, csv_rows)


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
    with _figure(WIDTH, height, path) as figure:
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm

        shade = LinearSegmentedColormap.from_list("mass", ["#ffffff", "#a9cbe4", STRONG, "#06345c"])
        middle = bottom + (height - top - bottom) / 2
        axes = _axes(figure, 0.12, middle - 0.75 * tall, 1.5 * side, 1.5 * tall)
        _payoff_table(axes, table, optimum, size=min(11.0, 1.5 * side * 72 / columns / 2.6))
        axes.set_title("payoff", size=8.5, pad=4)
        for line, (method, strip) in enumerate(strips.items()):
            y = height - top - tall - line * (tall + gap)
            axes = _axes(figure, 0.12 + 1.5 * side + left, y, count * (side + gap) - gap, tall)
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
        _frame(figure, title, note)
    header = ["method", "snapshot", "action_1", "action_2", "payoff", "probability"]
    return _twin(path, header, csv_rows)


def learning_curves(
    curves: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    path: str | Path,
    title: str | None = None,
    optima: Mapping[str, float] | None = None,
    label: str = "return",
    reps: int = 500,
) -> Path:
    """Return over environment steps: interquartile mean, its 95 % interval, and every seed.

    Args:
        curves: For each game and method ``(steps [P], values [seeds, P])``.
        path: Where the PNG goes.
        title: One line above the panels.
        optima: The optimal return of each game, drawn as a dashed line.
        label: What the values are.
        reps: Redraws of the bootstrap.

    Returns:
        The path of the PNG.
    """
    require(len(curves) > 0, "learning_curves: curves is empty.")
    methods = _distinct(method for panel in curves.values() for method in panel)
    columns = _columns(len(curves), most=4)
    rows = math.ceil(len(curves) / columns)
    left, right, gap, between, bottom = 0.62, 0.15, 0.5, 0.62, 0.68
    top = 0.92 if title else 0.62
    wide = (WIDTH - left - right - gap * (columns - 1)) / columns
    tall = min(0.72 * wide, 2.6)
    height = top + bottom + rows * tall + (rows - 1) * between
    colours = {method: METHODS[i % len(METHODS)] for i, method in enumerate(methods)}
    most = max(np.shape(v)[0] for panel in curves.values() for _, v in panel.values())
    csv_rows: list[list[Any]] = []
    with _figure(WIDTH, height, path) as figure:
        from matplotlib.collections import LineCollection
        from matplotlib.lines import Line2D
        from matplotlib.ticker import EngFormatter, MaxNLocator

        for index, (game, panel) in enumerate(curves.items()):
            row, column = divmod(index, columns)
            axes = _axes(
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
        runs = _span((np.shape(v)[0] for p in curves.values() for _, v in p.values()), "seed")
        note = f"Interquartile mean of {runs} and its 95 % bootstrap interval; thin: single seeds"
        note += "; dashed: the optimum." if optima else "."
        _frame(figure, title, note)
    header = ["game", "method", "step", "iqm", "low", "high", *(f"run_{i}" for i in range(most))]
    return _twin(path, header, csv_rows)


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
    with _figure(WIDTH, height, path) as figure:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        for index, (name, each) in enumerate(values.items()):
            up = height - top - tall - index * (tall + between)
            axes = _axes(figure, left, up, WIDTH - left - right, tall)
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
        _frame(figure, title, "Share of the episodes with each return; line: their mean.")
    return _twin(path, ["dataset", "low", "high", "share"], rows)


def gradient_field(
    payoff: ArrayLike,
    path: str | Path,
    starts: ArrayLike | None = None,
    title: str | None = None,
    trajectories: Iterable[ArrayLike] = (),
    actions: Sequence[str] = ("first", "second"),
) -> Path:
    """The exact independent policy gradient of a common-payoff 2x2 game, and the basins it makes.

    Each agent holds two logits and ascends ``V(p, q)``, where p and q are the probabilities of its
    first action: ``dp ∝ (p(1-p))² ∂V/∂p`` and likewise q. Basins are found by following that flow
    from a grid of starts; the curve between them is the stable manifold of the mixed equilibrium.

    Args:
        payoff: ``[2, 2]``: row, the action of agent 1; column, that of agent 2.
        path: Where the PNG goes.
        starts: ``[K, 2]`` points (p, q) from which the flow is drawn.
        title: One line above the picture.
        trajectories: Measured paths ``[T, 2]`` of (p, q) to draw, e.g. one per seed.
        actions: Names of the two actions.

    Returns:
        The path of the PNG.
    """
    table = np.asarray(payoff, float)
    require(table.shape == (2, 2), f"gradient_field: payoff has shape {table.shape}, not [2, 2].")
    corners, values = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), table.ravel()
    grid, arrows = _lattice(64), _lattice(15)  # [q, p, 2]
    ends = _follow(table, grid, steps=110, size=0.02)
    basin = np.argmin(np.linalg.norm(ends[..., None, :] - corners, axis=-1), axis=-1)
    reached = np.unique(basin)
    reached = reached[np.argsort(-values[reached], kind="stable")]
    stable = [corner for corner in range(4) if _strict(table, corner)]
    flows = [] if starts is None else list(_orbit(table, np.asarray(starts, float), 400, 0.005))
    measured = [np.asarray(t, float) for t in trajectories]
    border = _separatrix(table)

    left, bottom, side, wide = 0.72, 0.62, 2.55, 4.6
    width, height = left + wide + side, bottom + wide + (0.62 if title else 0.2)
    with _figure(width, height, path) as figure:
        from matplotlib.colors import to_rgb
        from matplotlib.lines import Line2D

        axes = _axes(figure, left, bottom, wide, wide)
        shades = np.zeros((4, 3))
        shades[reached] = [to_rgb(shade) for shade in BASINS[: len(reached)]]
        axes.imshow(shades[basin], origin="lower", extent=(0, 1, 0, 1), interpolation="bilinear")
        slope = _gradient(table, arrows)
        length = np.linalg.norm(slope, axis=-1, keepdims=True)
        slope = slope / np.maximum(length, 1e-12) * (length / max(length.max(), 1e-12)) ** 0.25
        axes.quiver(
            *np.moveaxis(arrows, -1, 0), *np.moveaxis(slope, -1, 0), angles="xy", scale=19,
            scale_units="xy", width=0.0032, color="#4a5560", pivot="mid", headwidth=4.5,
        )  # fmt: skip
        styles: dict[str, dict[str, Any]] = {}
        for corner in stable:
            best = values[corner] == values.max()
            name = "best equilibrium" if best else "other equilibrium"
            styles[name] = {
                "marker": "*" if best else "o", "color": STRONG if best else MUTED,
                "markersize": 17 if best else 10, "markeredgecolor": "white", "linestyle": "",
            }  # fmt: skip
            axes.plot(*corners[corner], **styles[name], clip_on=False, zorder=5)
        if len(border):
            styles["mixed equilibrium"] = {
                "marker": "o", "color": "white", "markeredgecolor": INK, "markersize": 7,
                "linestyle": "",
            }  # fmt: skip
            axes.plot(*_mixed(table), **styles["mixed equilibrium"], zorder=4)
        for name, paths, colour, dashes in (
            ("border of the basins", [border] if len(border) else [], INK, (0, (5, 2.5))),
            ("exact gradient flow", flows, METHODS[1], "-"),
            ("measured runs", measured, METHODS[2], "-"),
        ):
            for points in paths:
                styles[name] = {"color": colour, "linewidth": 1.6, "linestyle": dashes}
                axes.plot(*points.T, **styles[name])
                if name != "border of the basins":
                    axes.plot(*points[0], "o", color=colour, markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel(f"p: agent 1 plays {actions[0]}", size=9)
        axes.set_ylabel(f"q: agent 2 plays {actions[0]}", size=9)
        axes.tick_params(labelsize=8, length=0, pad=7, labelcolor=MUTED)
        axes.spines[:].set_color(FAINT)

        small = _axes(figure, left + wide + 1.05, bottom + wide - 1.35, 1.1, 1.1)
        _payoff_table(small, table, float(values.max()), size=11)
        small.set_xticks([0.5, 1.5], actions, size=7.5)
        small.set_yticks([0.5, 1.5], actions, size=7.5)
        small.xaxis.tick_top()
        small.tick_params(length=0)
        swatch = {"marker": "s", "markersize": 11, "markeredgecolor": MUTED, "linestyle": ""}
        handles = [
            Line2D([], [], **swatch, color=tuple(shades[corner]), label=_share(basin == corner, value))
            for corner, value in zip(reached, values[reached], strict=True)
        ]
        for name, style in styles.items():
            handles.append(
                Line2D([], [], label=name, **{**style, "markersize": 9 + 4 * ("best" in name)})
            )
        figure.legend(
            handles=handles, loc="upper left", frameon=False, fontsize=8.5, labelspacing=0.75,
            bbox_to_anchor=((left + wide + 0.3) / width, (bottom + wide - 1.6) / height),
        )  # fmt: skip
        _frame(figure, title, "")
    csv_rows: list[list[Any]] = [
        ["grid", 0, *point, *velocity, values[corner]]
        for point, velocity, corner in zip(
            grid.reshape(-1, 2), _gradient(table, grid).reshape(-1, 2), basin.ravel(), strict=True
        )
    ]
    for kind, paths in (("border", [border]), ("flow", flows), ("measured", measured)):
        for number, points in enumerate(paths):
            csv_rows.extend([kind, number, p, q, "", "", ""] for p, q in points)
    csv_rows.extend(["equilibrium", c, *corners[c], 0, 0, values[c]] for c in stable)
    return _twin(path, ["kind", "number", "p", "q", "dp", "dq", "end_value"], csv_rows)


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
        columns = _distinct(name for row in rows if isinstance(row, Mapping) for name in row)
    cells: list[list[Any]] = []
    for row in rows:
        cells.append([row.get(name) for name in columns] if isinstance(row, Mapping) else list(row))
        require(
            len(cells[-1]) == len(columns),
            f"table: a row has {len(cells[-1])} cells for {len(columns)} columns.",
        )
    if path is not None:
        _write_csv(Path(path), columns, cells)
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


# --- the flow of a 2x2 game -----------------------------------------------------------------------


def _lattice(count: int) -> np.ndarray:
    """Cell centres of the unit square, ``[q, p, 2]``."""
    line = (np.arange(count) + 0.5) / count
    return np.stack(np.meshgrid(line, line), axis=-1)


def _gradient(payoff: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Velocity of (p, q) when both logit pairs follow the exact gradient of V; ``[..., 2]``."""
    (a, b), (c, d) = payoff
    p, q = point[..., 0], point[..., 1]
    slope_p = q * (a - c) + (1 - q) * (b - d)
    slope_q = p * (a - b) + (1 - p) * (c - d)
    # p = softmax(θ)_1 moves by p(1-p) per unit of θ_1 - θ_2, whose own gradient is 2 p(1-p) ∂V/∂p
    return np.stack([2 * (p * (1 - p)) ** 2 * slope_p, 2 * (q * (1 - q)) ** 2 * slope_q], axis=-1)


def _follow(payoff: np.ndarray, point: np.ndarray, steps: int, size: float) -> np.ndarray:
    """Where the flow leads after ``steps`` of length ``size``; backwards if that is negative.

    At unit speed, by the midpoint rule: the orbits are those of the gradient, and neither the
    plateau near a corner nor that near the mixed equilibrium slows them.
    """

    def step(at: np.ndarray, length: float) -> np.ndarray:
        velocity = _gradient(payoff, at)
        speed = np.sqrt(velocity[..., 0] ** 2 + velocity[..., 1] ** 2)[..., None]
        return length * velocity / np.maximum(speed, 1e-300)

    for _ in range(steps):
        middle = np.clip(point + step(point, size / 2), 0, 1)
        point = np.clip(point + step(middle, size), 0, 1)
    return point


def _orbit(payoff: np.ndarray, starts: np.ndarray, steps: int, size: float) -> np.ndarray:
    """The flow from each of the starts, ``[K, steps + 1, 2]``."""
    points = [starts]
    for _ in range(steps):
        points.append(_follow(payoff, points[-1], 1, size))
    return np.stack(points, axis=1)


def _mixed(payoff: np.ndarray) -> np.ndarray:
    """(p, q) of the interior critical point; outside the square, or infinite, if there is none."""
    (a, b), (c, d) = payoff
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array([d - c, d - b]) / (a - b - c + d)


def _separatrix(payoff: np.ndarray) -> np.ndarray:
    """The curve between two basins, ``[points, 2]``; empty if one strategy is best throughout."""
    saddle = _mixed(payoff)
    if not (np.isfinite(saddle).all() and (saddle > 0).all() and (saddle < 1).all()):
        return np.empty((0, 2))
    # At the saddle dp' = P k dq and dq' = Q k dp, so the stable direction is (√P, -sign(k) √Q).
    (a, b), (c, d) = payoff
    direction = saddle * (1 - saddle) * [1, -np.sign(a - b - c + d)]
    start = saddle + 1e-4 * np.array([[1], [-1]]) * direction / np.linalg.norm(direction)
    one, other = _orbit(payoff, start, 600, -0.003)
    return np.concatenate([one[::-1], saddle[None], other])


def _strict(payoff: np.ndarray, corner: int) -> bool:
    """Whether neither agent gains or ties by leaving the pure joint action alone."""
    i, j = divmod(corner, 2)
    return bool(payoff[i, j] > payoff[1 - i, j] and payoff[i, j] > payoff[i, 1 - j])


# --- drawing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _figure(width: float, height: float, path: str | Path) -> Iterator[Any]:
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


def _frame(figure: Any, title: str | None, note: str) -> None:
    """The line above the panels and the one below."""
    across, up = figure.get_size_inches()
    if title:
        figure.text(0.12 / across, 1 - 0.1 / up, title, size=11, weight="bold", va="top")
    if note:
        figure.text(0.12 / across, 0.1 / up, note, size=7.5, color=MUTED, va="bottom")


def _axes(figure: Any, x: float, y: float, width: float, height: float) -> Any:
    """Axes placed in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, width / across, height / up))


def _payoff_table(axes: Any, payoff: np.ndarray, optimum: float, size: float) -> None:
    rows, columns = payoff.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    for (a, b), value in np.ndenumerate(payoff):
        best = value == optimum
        axes.text(
            b + 0.5, a + 0.5, _number(value), ha="center", va="center", size=size,
            color=STRONG if best else INK, weight="bold" if best else "normal",
        )  # fmt: skip
    axes.hlines(range(1, rows), 0, columns, color=FAINT, linewidth=0.8)
    axes.vlines(range(1, columns), 0, rows, color=FAINT, linewidth=0.8)
    axes.spines[:].set_color(MUTED)


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
                corner + b + 0.5, a + 0.5, _number(value), ha="center", va="center", size=size,
                color="white" if mass[a, b] > 0.36 else MUTED,
            )  # fmt: skip
        if value == optimum:
            axes.plot(
                corner + b + np.array([0, 1, 1, 0, 0]), a + np.array([0, 0, 1, 1, 0]),
                color=METHODS[1], linewidth=1.1, clip_on=False, zorder=3,
            )  # fmt: skip


def _columns(count: int, most: int = 5) -> int:
    """Panels per row: all in one row if they fit, else the width that leaves the fewest empty."""
    if count <= most:
        return count
    return min(range(most, 2, -1), key=lambda n: (-count % n, math.ceil(count / n)))


def _number(value: float, decimals: int = 3) -> str:
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return ("0" if text == "-0" else text).replace("-", "−")


def _fitting(value: float, inches: float) -> str:
    """The return, as precise as there is room for at 7 points; empty if there is none."""
    for decimals in (3, 2, 1):
        text = _number(value, decimals)
        if 0.055 * len(text) + 0.05 <= inches:
            return text
    return ""


def _share(there: np.ndarray, value: float) -> str:
    return f"{100 * np.mean(there):.0f} % of starts end at {_number(value)}"


def _span(counts: Iterable[int], noun: str) -> str:
    low, high = min(counts := list(counts)), max(counts)
    return f"{low}-{high} {noun}s" if low < high else f"{low} {noun}{'s' * (low != 1)}"


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


# --- text -----------------------------------------------------------------------------------------


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


def _twin(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    _write_csv(Path(path).with_suffix(".csv"), header, rows)
    return Path(path)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in rows)
