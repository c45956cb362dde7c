"""Episodes as animated pictures: of any environment with a ``scene``, without a display."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmarl_tad.types import Key, Memory, Policy
from tad_envs import Environment, Observation, State, TimeStep, nearest, require
from tad_envs.reference import random_action
from tad_envs.scene import Drawable, Point, Scene

COLOURS = {
    "agent": "#1f5fa8",
    "enemy": "#b5342b",
    "prey": "#c77d1a",
    "food": "#3f8f3f",
    "shelf": "#8a8178",
    "requested": "#c23b8f",
    "goal": "#3f8f3f",
    "landmark": "#9a9a9a",
    "signal": "#4a4a4a",
    "going": "#3f8f3f",
    "waiting": "#b5342b",
}
"""Of the kinds of points; black for others."""
_SQUARE = {"shelf", "requested", "goal"}
_SIDE = 4.0
"""Inches of the longer side of a picture."""
_DPI = 80
REFERENCES = ("random", "heuristic")
"""Policies that need no training; the second where an environment has one."""


class Actor(NamedTuple):
    """Who acts in an episode, as a function of the observation or, if scripted, of the state."""

    start: Callable[[], Memory]
    act: Callable[[Key, Memory, State, Observation], tuple[Any, Memory]]


class Episode(NamedTuple):
    """One episode on the host: its states, the first one included, and its rewards."""

    states: list[State]
    rewards: list[float]
    info: dict[str, float]
    """As it stood at the end."""


def actor(env: Environment, policy: Policy | str) -> Actor:
    """``"random"``, ``"heuristic"`` (the environment's own), or a trained policy."""
    if not isinstance(policy, str):
        return Actor(policy.start, lambda key, memory, state, seen: policy.act(key, memory, seen)[:2])
    require(policy in REFERENCES, f"unknown policy {policy!r}; {nearest(policy, REFERENCES)}")
    if policy == "random":
        return Actor(
            tuple, lambda key, memory, state, seen: (random_action(env.spec, key, seen), memory)
        )
    scripted = getattr(env, "heuristic", None)
    require(scripted is not None, f"{env.name} has no heuristic; policy=random needs none.")
    return Actor(tuple, lambda key, memory, state, seen: (scripted(key, state), memory))  # type: ignore[misc]


def episode(env: Environment, who: Actor, key: Key) -> Episode:
    """One episode from its start to its end."""
    first, states, step = jax.device_get(jax.jit(_played, static_argnums=1)(env, who, key))
    over = step.terminated | step.truncated
    length = int(over.argmax()) + 1 if over.any() else len(over)
    rows = [first, *(jax.tree.map(lambda x, t=t: x[t], states) for t in range(length))]
    info = {name: float(value[length - 1]) for name, value in step.info.items()}
    return Episode(rows, [float(r) for r in step.reward[:length]], info)


def _played(env: Environment, who: Actor, key: Key) -> tuple[State, State, TimeStep]:
    reset_key, run_key = jax.random.split(key)
    state, seen = env.reset(reset_key)

    def advance(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        state, memory, seen = carry
        act_key, step_key = jax.random.split(key)
        action, memory = who.act(act_key, memory, state, seen)
        state, step = env.step(step_key, state, action)
        return (state, memory, step.observation), (state, step)

    keys = jax.random.split(run_key, env.spec.horizon)
    _, (states, step) = jax.lax.scan(advance, (state, who.start(), seen), keys)
    return state, states, step


# --- pictures -------------------------------------------------------------------------------------


def check_drawable(env: Environment) -> None:
    """Refuse an environment that does not say what it looks like."""
    require(isinstance(env, Drawable), f"{env.name} cannot be drawn: it has no scene.")


def animate(
    env: Environment, played: Episode, path: str | os.PathLike[str], fps: int = 6
) -> pathlib.Path:
    """Write an episode as an animated GIF; the return so far stands above each picture."""
    check_drawable(env)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    scenes = [env.scene(state) for state in played.states]  # type: ignore[attr-defined]
    totals = np.concatenate([[0.0], np.cumsum(played.rewards)])
    wide, high = np.subtract(scenes[0].high, scenes[0].low)
    scale = _SIDE / max(wide, high)
    figure = Figure(
        (max(wide * scale, 2.0), max(high * scale, 0.8) + 0.4), dpi=_DPI, layout="constrained"
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    pictures = []
    for scene, total in zip(scenes, totals, strict=True):
        axes.clear()
        draw(axes, scene)
        axes.set_title(f"{scene.title}   return {total:.4g}".strip(), fontsize=9)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64))
    there = pathlib.Path(path)
    there.parent.mkdir(parents=True, exist_ok=True)
    show = [1000 // fps] * (len(pictures) - 1) + [1500]
    pictures[0].save(there, save_all=True, append_images=pictures[1:], duration=show, loop=0)
    return there


def draw(axes: Any, scene: Scene) -> None:
    """One scene on axes of matplotlib."""
    (left, low), (right, high) = scene.low, scene.high
    axes.set(xlim=(left, right), ylim=(high, low) if scene.grid else (low, high), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    if scene.grid:
        _draw_cells(axes, scene)
    for *begin, x, y in scene.lines:
        axes.plot([begin[0], x], [begin[1], y], color="#bbbbbb", linewidth=1, zorder=0)
    for point in scene.points:
        _draw_point(axes, point, downwards=scene.grid)


def _draw_cells(axes: Any, scene: Scene) -> None:
    from matplotlib.patches import Rectangle

    (left, low), (right, high) = scene.low, scene.high
    axes.vlines(np.arange(left + 1, right), low, high, color="#dddddd", linewidth=0.6, zorder=0)
    axes.hlines(np.arange(low + 1, high), left, right, color="#dddddd", linewidth=0.6, zorder=0)
    for row, column in scene.walls:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="#4a4a4a", zorder=1))


def _draw_point(axes: Any, point: Point, *, downwards: bool) -> None:
    from matplotlib.patches import Circle, Rectangle

    colour, size = COLOURS.get(point.kind, "black"), point.radius
    alpha = 1.0 if point.alive else 0.2
    if point.kind in _SQUARE:
        corner = (point.x - size, point.y - size)
        axes.add_patch(Rectangle(corner, 2 * size, 2 * size, color=colour, alpha=alpha, zorder=2))
    else:
        axes.add_patch(
            Circle((point.x, point.y), size, color=colour, alpha=alpha, linewidth=0, zorder=3)
        )
    if point.label:
        axes.text(
            point.x, point.y, point.label, color="white", alpha=alpha, fontsize=7, ha="center",
            va="center", zorder=5,
        )  # fmt: skip
    if point.value is not None and point.alive:
        above = point.y - 1.5 * size if downwards else point.y + 1.3 * size
        bar = (point.x - size, above)
        axes.add_patch(Rectangle(bar, 2 * size, 0.25 * size, color="#cccccc", linewidth=0, zorder=4))
        share = 2 * size * min(max(point.value, 0.0), 1.0)
        axes.add_patch(Rectangle(bar, share, 0.25 * size, color=colour, linewidth=0, zorder=4))
