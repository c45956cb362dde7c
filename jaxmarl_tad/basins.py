"""The independent policy gradient of a 2x2 game: its flow, its basins, and a picture of both."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmarl_tad.drawing import (
    BASINS,
    FAINT,
    INK,
    METHODS,
    MUTED,
    STRONG,
    as_text,
    caption,
    new_axes,
    new_figure,
    payoff_table,
    twin,
)
from tad_envs.struct import require


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
    with new_figure(width, height, path) as figure:
        from matplotlib.colors import to_rgb
        from matplotlib.lines import Line2D

        axes = new_axes(figure, left, bottom, wide, wide)
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

        small = new_axes(figure, left + wide + 1.05, bottom + wide - 1.35, 1.1, 1.1)
        payoff_table(small, table, float(values.max()), size=11)
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
        caption(figure, title, "")
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
    return twin(path, ["kind", "number", "p", "q", "dp", "dq", "end_value"], csv_rows)


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


def _share(there: np.ndarray, value: float) -> str:
    return f"{100 * np.mean(there):.0f} % of starts end at {as_text(value)}"
