"""Figures hold the numbers they were given; the flow of a 2x2 game is the exact one."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmarl_tad import basins, report


def read(png):
    with png.with_suffix(".csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_bars(path):
    outcomes = [
        {"game": "climbing", "method": "ippo", "values": np.array([5.0] * 12 + [11.0] * 4)},
        {"game": "climbing", "method": "tad", "values": np.full(16, 11.0)},
        {"game": "lever", "method": "tad", "values": np.array([1.0, 0.0])},
    ]
    return report.outcome_bars(outcomes, path, title="Outcomes", optima={"climbing": 11, "lever": 2})


def draw_mass(path):
    mass = np.stack([np.full((2, 3), 1 / 6), np.eye(2, 3) / 2])
    payoff = np.array([[1.0, -30.0, 0.5], [0.0, 7.0, 6.0]])
    return report.payoff_mass(payoff, {"ippo": mass}, path, snapshots=[0, 400])


def draw_curves(path):
    steps = np.array([100, 200, 300])
    values = np.linspace(0, 1, 24).reshape(8, 3)
    curves = {"climbing": {"ippo": (steps, values), "vdn": (steps, values[:4])}}
    return report.learning_curves(curves, path, optima={"climbing": 1.0})


def draw_field(path):
    return report.gradient_field(
        [[10, -10], [-10, 5]],
        path,
        starts=[[0.5, 0.5]],
        trajectories=[np.array([[0.2, 0.2], [0.1, 0.1]])],
    )


DRAWINGS = [draw_bars, draw_mass, draw_curves, draw_field]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_same_numbers_give_the_same_bytes(draw, tmp_path):
    first, again = draw(tmp_path / "a" / "one.png"), draw(tmp_path / "two.png")
    assert first == tmp_path / "a" / "one.png"
    assert first.read_bytes() == again.read_bytes()
    assert first.with_suffix(".csv").read_bytes() == again.with_suffix(".csv").read_bytes()
    with Image.open(first) as image:
        assert 800 <= image.width <= 1200
        assert np.asarray(image.convert("L")).std() > 5  # something is drawn


def test_bars_count_outcomes(tmp_path):
    rows = read(draw_bars(tmp_path / "bars.png"))
    ippo = [r for r in rows if r["method"] == "ippo"]
    assert [(r["return"], r["share"], r["count"], r["optimal"]) for r in ippo] == [
        ("11", "0.25", "4", "1"),
        ("5", "0.75", "12", "0"),
    ]
    lever = [r for r in rows if r["game"] == "lever"]  # nobody reached its optimum of 2
    assert {r["optimal"] for r in lever} == {"0"}


def test_bars_without_optima_compare_with_the_best_found(tmp_path):
    outcomes = [{"game": "g", "method": m, "values": [v]} for m, v in (("a", 1.0), ("b", 3.0))]
    rows = read(report.outcome_bars(outcomes, tmp_path / "bars.png"))
    assert [r["optimal"] for r in rows] == ["0", "1"]


def test_bars_take_many_panels_and_continuous_values(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = [
        {"game": f"game {g}", "method": f"method {m}", "values": rng.normal(size=16)}
        for g in range(10)
        for m in range(7)
    ]
    with Image.open(report.outcome_bars(outcomes, tmp_path / "bars.png")) as image:
        assert image.height < 700


def test_mass_lists_every_cell(tmp_path):
    rows = read(draw_mass(tmp_path / "mass.png"))
    assert len(rows) == 2 * 6
    last = {(r["action_1"], r["action_2"]): r for r in rows if r["snapshot"] == "400"}
    assert float(last["1", "1"]["probability"]) == 0.5
    assert float(last["1", "1"]["payoff"]) == 7.0
    with pytest.raises(ValueError, match="2 snapshots"):
        report.payoff_mass(np.eye(2), {"a": np.zeros((1, 2, 2))}, tmp_path / "x.png", None, [0, 1])
    with pytest.raises(ValueError, match="every method"):
        report.payoff_mass(np.eye(2), {"a": np.zeros((1, 2, 3))}, tmp_path / "x.png")


def test_curves_list_the_band_and_every_seed(tmp_path):
    rows = read(draw_curves(tmp_path / "curves.png"))
    assert len(rows) == 6
    first = rows[0]
    values = [float(first[f"run_{i}"]) for i in range(8)]
    assert float(first["iqm"]) == pytest.approx(np.mean(sorted(values)[2:6]), rel=1e-5)
    assert float(first["low"]) < float(first["iqm"]) < float(first["high"])
    assert [r["run_7"] for r in rows if r["method"] == "vdn"] == ["", "", ""]
    with pytest.raises(ValueError, match="seeds, P"):
        report.learning_curves({"g": {"m": ([1, 2], np.zeros(2))}}, tmp_path / "x.png")


# --- the flow -------------------------------------------------------------------------------------


def test_field_is_the_softmax_policy_gradient():
    payoff = np.array([[10.0, -10.0], [-10.0, 5.0]])

    def value(logits):
        p, q = jax.nn.softmax(logits, axis=-1)
        return p @ payoff @ q

    def chances(logits):
        return jax.nn.softmax(logits, axis=-1)[:, 0]

    for p, q in [(0.3, 0.6), (0.5, 0.5), (0.9, 0.2)]:
        logits = jnp.log(jnp.array([[p, 1 - p], [q, 1 - q]]))
        _, velocity = jax.jvp(chances, (logits,), (jax.grad(value)(logits),))
        ours = basins._gradient(payoff, np.array([p, q]))
        np.testing.assert_allclose(ours, velocity, rtol=2e-5)


def test_basins_of_the_symmetric_game_are_halves(tmp_path):
    rows = read(report.gradient_field([[3, 0], [0, 3]], tmp_path / "f.png"))
    border = np.array([[float(r["p"]), float(r["q"])] for r in rows if r["kind"] == "border"])
    np.testing.assert_allclose(border.sum(axis=1), 1, atol=1e-6)  # the anti-diagonal, by symmetry
    for r in rows:
        if r["kind"] == "grid" and abs(float(r["p"]) + float(r["q"]) - 1) > 0.02:
            # both corners are worth 3; arrows on either side point away from the border
            outward = np.sign(float(r["p"]) + float(r["q"]) - 1)
            assert outward * (float(r["dp"]) + float(r["dq"])) > 0


def test_basins_agree_with_the_border(tmp_path):
    rows = read(draw_field(tmp_path / "field.png"))
    border = np.array([[float(r["p"]), float(r["q"])] for r in rows if r["kind"] == "border"])
    assert (np.diff(border[:, 0]) * np.diff(border[:, 1]) <= 0).all()  # it falls throughout
    order = np.argsort(border[:, 0])
    for r in rows:
        if r["kind"] != "grid":
            continue
        p, q = float(r["p"]), float(r["q"])
        height = np.interp(p, border[order, 0], border[order, 1])
        if abs(q - height) > 0.03:
            assert float(r["end_value"]) == (10 if q > height else 5), (p, q)
    stable = {(r["p"], r["q"], r["end_value"]) for r in rows if r["kind"] == "equilibrium"}
    assert stable == {("1", "1", "10"), ("0", "0", "5")}
    flow = [r for r in rows if r["kind"] == "flow"]
    np.testing.assert_allclose([float(flow[-1]["p"]), float(flow[-1]["q"])], 1, atol=0.01)


def test_a_dominant_action_leaves_no_border(tmp_path):
    rows = read(report.gradient_field([[4, 3], [2, 1]], tmp_path / "field.png"))
    assert {r["end_value"] for r in rows if r["kind"] == "grid"} == {"4"}
    assert not [r for r in rows if r["kind"] == "border"]


@pytest.mark.parametrize("payoff", [[[0, 0], [0, 0]], [[0, 4], [4, 0]], [[1, 1], [0, 0]]])
def test_odd_games_are_drawn(payoff, tmp_path):
    assert report.gradient_field(payoff, tmp_path / "field.png").exists()


# --- tables ---------------------------------------------------------------------------------------


def test_table_aligns_and_keeps_full_precision_in_the_file(tmp_path):
    rows = [
        {"method": "tad_ppo", "share": 0.984375, "ci": (0.917, 0.997), "n": 64},
        {"method": "ippo", "share": 0.25, "ci": (0.16, 0.37), "n": 8, "better": True},
    ]
    text = report.table(rows, path=tmp_path / "t.csv")
    assert text.splitlines() == [
        "method    share  ci               n  better",
        "───────  ──────  ──────────────  ──  ──────",
        "tad_ppo  0.9844  [0.917, 0.997]  64  –",
        "ippo       0.25  [0.16, 0.37]     8  yes",
    ]
    assert "0.984375" in (tmp_path / "t.csv").read_text()


def test_table_takes_sequences_and_selects_columns():
    assert report.table([[1, 2.5], [10, None]], ["a", "b"]).splitlines() == [
        " a    b",
        "──  ───",
        " 1  2.5",
        "10    –",
    ]
    assert report.table([{"a": 1, "b": 2}], ["b"]).splitlines()[-1] == "2"
    assert report.table([], ["a", "b"]).splitlines()[0] == "a  b"
    with pytest.raises(ValueError, match="3 cells for 2"):
        report.table([[1, 2, 3]], ["a", "b"])
    with pytest.raises(ValueError, match="columns"):
        report.table([[1, 2, 3]])


def test_figures_are_png(tmp_path):
    with pytest.raises(ValueError, match="png"):
        report.outcome_bars([{"game": "g", "method": "m", "values": [1.0]}], tmp_path / "x.pdf")
