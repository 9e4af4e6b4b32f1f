from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report.charts import Row, Spot, dots, log_ticks, tradeoff
from limbeck.report.figures import apart, canvas, chart, inline, shorten, width_of, write
from limbeck.report.labels import info
from limbeck.report.palette import ROLES
from limbeck.report.results import Curve
from limbeck.report.training import Line, lines, thinned

ACCURACY = info("accuracy")


def standing(label: str = "Student") -> str:
    rows = [Row("Teacher", ROLES["teacher"], (0.98,)), Row(label, ROLES["student"], (0.97,), (0.95, 0.98))]
    drawn = dots("standing", "Accuracy", rows, ACCURACY)
    assert drawn is not None
    return str(drawn.svg)


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter("text")]


def test_a_figure_takes_its_colours_and_its_font_from_the_page() -> None:
    svg = standing()
    assert "var(--student)" in svg
    assert not re.search(r"#fe01|#[0-9a-f]{6}", svg)
    assert "font-family" not in svg


def test_a_figure_fetches_nothing_and_styles_nothing_but_itself() -> None:
    svg = standing()
    assert "http" not in svg
    assert "xmlns" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_text_of_a_figure_stays_text() -> None:
    assert {"Teacher", "Student"} <= set(texts(standing()))


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "]]><b>", '"onload="x', "$\\frac{1}{2}$", "a & b"])
def test_labels_are_escaped_and_never_read_as_formulas(evil: str) -> None:
    svg = standing(evil)
    kinds = {element.tag for element in ElementTree.fromstring(svg).iter()}
    assert kinds <= {"svg", "g", "path", "use", "defs", "text", "clipPath", "rect"}
    assert shorten(evil, 128, 12) in texts(svg)


def test_ids_of_two_figures_do_not_meet() -> None:
    def ids(key: str) -> set[str]:
        rows = [Row("A", ROLES["teacher"], (0.1, 0.2)), Row("B", ROLES["student"], (0.3, 0.4))]
        drawn = dots(key, "A", rows, ACCURACY)
        assert drawn is not None
        return {e.attrib["id"] for e in ElementTree.fromstring(drawn.svg).iter() if "id" in e.attrib}

    assert ids("one")
    assert not ids("one") & ids("two")


def test_every_reference_of_a_figure_has_its_target() -> None:
    svg = standing()
    root = ElementTree.fromstring(svg)
    ids = {e.attrib["id"] for e in root.iter() if "id" in e.attrib}
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert used
    assert {a or b for a, b in used} == ids


def test_the_users_matplotlib_settings_change_nothing() -> None:
    before = standing()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.grid": True, "svg.fonttype": "path"}):
        assert standing() == before


def test_a_figure_says_what_it_shows() -> None:
    root = ElementTree.fromstring(standing())
    assert root.attrib["role"] == "img"
    assert "Student 97.0" in root.attrib["aria-label"]


@given(st.lists(st.floats(-50, 250), min_size=1, max_size=12), st.floats(1, 30))
def test_labels_moved_apart_keep_their_gap_order_and_bounds(places: list[float], gap: float) -> None:
    low, high = 0.0, 200.0
    moved = apart(places, gap, low, high)
    room = min(gap, (high - low) / max(1, len(places) - 1))
    ordered = sorted(moved)
    assert all(b - a >= room - 1e-6 for a, b in pairwise(ordered))
    assert all(low - 1e-6 <= m <= high + 1e-6 for m in moved)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert [moved[i] for i in order] == ordered


def test_labels_that_do_not_touch_stay_where_they_are() -> None:
    assert apart([30.0, 90.0, 60.0], 15, 0, 200) == pytest.approx([30.0, 90.0, 60.0])


def test_a_long_label_is_cut_to_its_place() -> None:
    cut = shorten("a very long name of an arm, number 7", 80)
    assert "…" in cut
    assert cut.startswith("a v")
    assert cut.endswith("7")
    assert width_of(cut) <= 80
    assert shorten("short", 80) == "short"
    assert shorten("W" * 99, 0) == "…"


@pytest.mark.parametrize(("low", "high"), [(0.09, 1.2), (8e3, 2e5), (1.0, 1e12), (0.3, 40.0), (1e-6, 3e6)])
def test_log_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 4
    assert all(low <= t <= high for t in ticks)


def test_the_frontier_joins_exactly_what_nothing_beats() -> None:
    from limbeck.report.charts import _frontier

    points = [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (4.0, 0.9), (5.0, 0.9), (1.0, 0.4)]
    spots = [Spot(str(p), ROLES["student"], *p) for p in points]
    figure = canvas(100)
    best = _frontier(figure.add_axes((0, 0, 1, 1)), spots, ACCURACY, info("latency_ms"))
    beaten = {
        p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1] and (q[0] < p[0] or q[1] > p[1])
    }
    assert {(s.x, s.y) for s in best} == set(points) - beaten


def test_one_point_makes_no_plot_against_cost() -> None:
    assert tradeoff("a", "b", [Spot("x", ROLES["student"], 1.0, 1.0)], info("latency_ms"), ACCURACY) is None


def test_long_logs_are_averaged_not_sampled() -> None:
    y = np.tile([0.0, 2.0], 5000)
    thin = thinned(Curve(np.arange(10_000.0), y))
    assert len(thin.x) <= 120
    assert thin.y == pytest.approx(np.ones_like(thin.y), abs=0.05)
    assert (thin.x[0], thin.x[-1]) == (0.0, 9999.0)


def test_curves_that_span_decades_are_drawn_on_a_log_scale() -> None:
    x = np.linspace(0, 10, 50)
    steep = lines("a", "Loss", [Line("Student", ROLES["student"], Curve(x, np.exp(-x)))], "", "epoch")
    flat = lines("a", "Loss", [Line("Student", ROLES["student"], Curve(x, 1 + 0.1 * x))], "", "epoch")
    assert steep is not None
    assert flat is not None
    assert {"0.0001", "0.01", "1"} <= set(texts(str(steep.svg)))
    assert "1" in texts(str(flat.svg))


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.0, 0.0), (1e-9, 1e9), (-3.0, 7.0)])
def test_equal_and_extreme_values_are_drawn(values: tuple[float, float]) -> None:
    rows = [Row("a", ROLES["teacher"], values[:1]), Row("b", ROLES["student"], values[1:])]
    assert dots("k", "t", rows, info("my_score")) is not None


def test_drawing_outside_the_house_style_is_not_needed_for_size() -> None:
    @chart
    def two() -> None:
        figure = canvas(50)
        write(figure, 10, 10, "x")
        svg = inline(figure, "k", "says")
        assert 'viewBox="0 0 372 50"' in svg
        assert len(svg) < 700

    two()


@pytest.mark.parametrize(
    ("style", "kept"),
    [
        ("font: 11px 'DejaVu Sans', sans-serif; text-anchor: end", "font-size:11px;text-anchor:end"),
        ("font: bold 12px 'DejaVu Sans'; fill: #fe0103", "font-weight:bold;font-size:12px;fill:var(--ink)"),
        ("font-size: 11px; font-family: 'DejaVu Sans'", "font-size:11px"),
    ],
)
def test_every_matplotlib_leaves_the_font_to_the_page(style: str, kept: str) -> None:
    from limbeck.report.figures import _css

    assert _css(style) == kept
