from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.report.proof import write_proof

Json = dict[str, Any]


def page(evidence: Json, tmp_path: Path) -> str:
    return write_proof(evidence, tmp_path / "proof.html").read_text(encoding="utf8")


def test_the_page_says_what_is_claimed_and_what_came_out(evidence: Json, tmp_path: Path) -> None:
    html = page(evidence, tmp_path)
    assert "<h1>The decoupled loss is no worse than the classical one, and both beat training alone.</h1>" in html
    assert "2 of 3 expectations hold, on the means of 3 seeds." in html
    stamps = re.findall(r"</span>(Holds|Does not hold)</span>", html)
    assert stamps == ["Does not hold", "Holds", "Holds", "Does not hold"]
    assert "Why it does not hold: At this scale" in html


def test_both_sides_are_shown_in_their_metrics_unit(evidence: Json, tmp_path: Path) -> None:
    evidence["checks"] = [
        {"text": "accuracy.dkd > accuracy.kd - 0.005", "left": 0.9688, "right": 0.9573, "holds": True},
        {"text": "latency_ms.dkd / latency_ms.alone < 1.2", "left": 1.013, "right": 1.2, "holds": True},
        {"text": "accuracy.dkd > ece.kd", "left": 0.9, "right": float("nan"), "holds": False},
    ]
    html = page(evidence, tmp_path)
    sides = re.findall(r'<span class="big">(.*?)</span>', html)
    assert sides == ["96.9\u202f%", "95.7\u202f%", "1.01", "1.2", "90.0\u202f%", "not finite"]


def test_every_seed_of_the_metrics_in_question_is_listed_and_drawn(evidence: Json, tmp_path: Path) -> None:
    html = page(evidence, tmp_path)
    assert "Accuracy by seed" in html
    assert "Latency by seed" not in html
    assert {"seeds-0", "seeds-1"} == set(re.findall(r'<figure[^>]*id="([^"]+)"', html))
    for value in evidence["arms"]["kd"]["accuracy"]["values"]:
        assert f"{100 * value:.1f}\u202f%" in html


def test_a_stale_record_is_marked(evidence: Json, tmp_path: Path) -> None:
    assert "This record is stale" not in page(evidence, tmp_path)
    assert "This record is stale" in page({**evidence, "state": "stale"}, tmp_path)


def test_a_claim_that_holds_needs_no_excuse(evidence: Json, tmp_path: Path) -> None:
    html = page({**evidence, "holds": True, "checks": evidence["checks"][:2]}, tmp_path)
    assert "Why it does not hold" not in html
    assert "Does not hold" not in html


@pytest.mark.parametrize("left_out", ["checks", "arms", "paper", "machine", "hashes", "seeds", "says", "title"])
def test_missing_pieces_are_left_out(evidence: Json, tmp_path: Path, left_out: str) -> None:
    del evidence[left_out]
    assert "<h1>" in page(evidence, tmp_path)


def test_odd_values_leave_gaps(evidence: Json, tmp_path: Path) -> None:
    evidence["arms"]["kd"]["accuracy"]["values"] = [float("nan"), None, 0.9]
    evidence["arms"]["alone"]["accuracy"] = None
    evidence["checks"].append({"text": "what is this", "left": "x", "right": None, "holds": False})
    assert page(evidence, tmp_path).count("–") >= 2


def test_nothing_in_the_ledger_becomes_markup(evidence: Json, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    evidence |= {"title": evil, "says": evil, "because": evil, "hashes": {evil: evil}, "recorded": evil, "method": evil}
    evidence["arms"] = {name + evil: metrics for name, metrics in evidence["arms"].items()}
    evidence["checks"] = [{"text": evil, "left": 1.0, "right": 2.0, "holds": False}]
    assert page(evidence, tmp_path).count("<script") == 1


def test_the_same_evidence_gives_the_same_bytes(evidence: Json, tmp_path: Path) -> None:
    assert page(evidence, tmp_path) == page(evidence, tmp_path)
