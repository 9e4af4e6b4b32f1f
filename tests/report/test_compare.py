from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.report.compare import entries, headline, paired, write_comparison
from limbeck.report.labels import info
from limbeck.report.units import GAP

Rows = list[dict[str, Any]]
ACCURACY = info("accuracy")


def made(**arms: list[float]) -> Rows:
    return [
        {"name": name, "seed": seed, "metrics": {"accuracy": value}, "labels": {}}
        for name, values in arms.items()
        for seed, value in enumerate(values)
    ]


def said(rows: Rows) -> str:
    ranked = sorted(entries(rows), key=lambda e: -(e.mean(ACCURACY) or 0))
    return headline(ranked, ACCURACY).replace(GAP, " ")


def test_the_leader_is_named_with_its_lead(rows: Rows, tmp_path: Path) -> None:
    html = write_comparison(rows, tmp_path / "new" / "compare.html").read_text(encoding="utf8")
    title = re.search(r"<h1>(.*?)</h1>", html)
    assert title is not None
    assert re.match(r"“dkd, width 16” leads with an accuracy of 97\.\d ± 0\.\d\s%, ", title[1])
    assert "the teacher reaches 98." in title[1]


def test_arms_that_the_seeds_cannot_tell_apart_are_level() -> None:
    assert said(made(a=[0.90, 0.94, 0.92], b=[0.93, 0.89, 0.92])).startswith("a and b are level in accuracy")


def test_a_lead_that_every_seed_shows_counts_though_the_seeds_differ_much() -> None:
    rows = made(a=[0.80, 0.90, 0.70], b=[0.79, 0.892, 0.688])
    assert said(rows).startswith("a leads with an accuracy of 80.0 ± 10.0 %, 1.0 points ahead of b")


def test_the_paired_test_is_that_of_the_differences() -> None:
    a, b = entries(made(a=[0.9, 0.8, 0.7], b=[0.88, 0.79, 0.66]))
    lead, certain = paired(a, b, ACCURACY)
    assert lead == pytest.approx((0.02 + 0.01 + 0.04) / 3)
    assert certain  # mean 0.0233, standard error 0.0088
    worse = entries(made(a=[0.9, 0.8], b=[0.88, 0.83]))
    assert paired(*worse, ACCURACY)[1] is False


def test_one_seed_is_called_one_seed(tmp_path: Path) -> None:
    html = write_comparison(made(a=[0.9], b=[0.8]), tmp_path / "c.html").read_text(encoding="utf8")
    assert "One seed for each" in html


def test_every_seed_is_drawn_and_listed(rows: Rows, tmp_path: Path) -> None:
    html = write_comparison(rows, tmp_path / "c.html").read_text(encoding="utf8")
    assert {"strip-0", "against-latency_ms", "against-parameters"} <= set(re.findall(r'<figure[^>]*id="([^"]+)"', html))
    assert html.count('<th scope="row" class="named">') == 6 + 30


def test_missing_metrics_and_odd_values_leave_gaps(tmp_path: Path) -> None:
    rows: Rows = [
        {"name": "a", "seed": 0, "metrics": {"accuracy": float("nan"), "latency_ms": 1.0}},
        {"name": "b", "seed": 0, "metrics": {"accuracy": 0.5}, "labels": None},
        {"name": "c", "seed": None, "metrics": None, "labels": {"data": "x"}},
    ]
    assert "–" in write_comparison(rows, tmp_path / "c.html").read_text(encoding="utf8")
    assert "Nothing was measured" in write_comparison([], tmp_path / "d.html").read_text(encoding="utf8")


def test_labels_replace_a_metrics_own_and_tags_that_differ_are_shown(tmp_path: Path) -> None:
    rows = made(a=[0.9, 0.91], b=[0.8, 0.81])
    for row in rows:
        row["labels"] = {"accuracy": ("Hits", "%"), "data": f"set {row['name']}", "same": "everywhere"}
    html = write_comparison(rows, tmp_path / "c.html").read_text(encoding="utf8")
    assert "Hits" in html
    assert "set b" in html
    assert "everywhere" not in html


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [{**row, "name": row["name"] + evil, "labels": {evil: evil + row["name"]}} for row in made(a=[0.9], b=[0.8])]
    html = write_comparison(rows, tmp_path / "c.html", title=evil).read_text(encoding="utf8")
    assert html.count("<script") == 1


def test_the_same_rows_give_the_same_bytes(rows: Rows, tmp_path: Path) -> None:
    first = write_comparison(rows, tmp_path / "a.html").read_bytes()
    assert write_comparison(rows, tmp_path / "b.html").read_bytes() == first
