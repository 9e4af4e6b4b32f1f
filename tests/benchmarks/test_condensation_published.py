"""Published numbers are found, and ours go beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_every_table_says_whose_and_how_sure_its_numbers_are() -> None:
    told = json.loads((ROOT / "benchmarks/published/condensation.json").read_text("utf8"))
    assert len(told["tables"]) >= 8
    for table in told["tables"]:
        for row in table["rows"]:
            assert row["paper"]["title"] and row["paper"]["arxiv"].count(".") == 1
            assert row["status"] in told["status"]
            assert row["values"] and all(0 < v["accuracy"] < 100 for v in row["values"].values())


def test_each_case_has_a_recipe_and_a_published_number() -> None:
    from benchmarks.condensation_published import PLAN, published

    for case in PLAN:
        assert (ROOT / f"recipes/condensation/cifar10/cifar10_{case.recipe}.yaml").is_file()
        assert published(case.method, case.per_class) is not None
    assert published("dm", 10) == 48.9
    assert published("dm", 7) is None


def test_the_gap_is_ours_less_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import condensation_published as bench

    monkeypatch.setattr(bench, "measured", lambda case, further=(): {"accuracy": 15.0, "std": 0.5})
    bench.main(["--results", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text("utf8"))["rows"]
    assert rows[0]["gap"] == pytest.approx(15.0 - 14.4)
    assert [row["method"] for row in rows] == [case.method for case in bench.PLAN]


def test_a_row_that_is_measured_again_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import condensation_published as bench

    results = tmp_path / "out.json"
    for options, accuracy in ([], 15.0), (["--only", "dm"], 27.0):
        monkeypatch.setattr(bench, "measured", lambda case, further=(), a=accuracy: {"accuracy": a, "std": 0.5})
        bench.main([*options, "--results", str(results)])
    rows = json.loads(results.read_text("utf8"))["rows"]
    assert {row["method"] for row in rows if row["ours"]["accuracy"] == 27.0} == {"dm"}
    assert [(row["method"], row["per_class"]) for row in rows] == [(case.method, case.per_class) for case in bench.PLAN]


def test_a_case_that_fails_leaves_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import condensation_published as bench

    def breaks_at_dm(case, further=()):
        if case.method == "dm":
            raise RuntimeError("out of memory")
        return {"accuracy": 15.0, "std": 0.5}

    monkeypatch.setattr(bench, "measured", breaks_at_dm)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.main(["--results", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text("utf8"))["rows"]
    assert [row["method"] for row in rows] == [c.method for c in bench.PLAN][: len(rows)] and rows
