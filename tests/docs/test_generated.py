"""The generated parts of the documentation, on input that is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import ROOT

RECORD: dict[str, Any] = {
    "slug": "kd", "family": "vision", "title": "KD", "method": "kd", "says": "distillation beats training alone",
    "holds": False, "because": "the test set is too small", "seeds": [0, 1], "seconds": 12.3, "recorded": "2026-01-01",
    "checks": [{"text": "accuracy.kd > accuracy.alone + 0.01", "left": 0.9, "right": 0.91, "holds": False}],
    "arms": {
        "kd": {"accuracy": {"mean": 0.9, "std": 0.01, "values": [0.89, 0.91]}, "nll": {"mean": 1, "std": 0}},
        "alone": {"accuracy": {"mean": 0.9, "std": 0.02, "values": [0.88, 0.92]}},
    },
    "hashes": {}, "machine": {"device": "cpu", "torch": "2.13.0"}, "paper": None,
}  # fmt: skip


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_record_shows_both_sides_the_spread_and_the_reason(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evidence" / "vision").mkdir(parents=True)
    (tmp_path / "evidence" / "vision" / "kd.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    row = {"family": "vision", "slug": "kd", "evidence": "fails", "recipe": "kd.yaml"}
    monkeypatch.setattr(generate.gallery, "rows", lambda: [row])
    page = generate.evidence()
    assert "| [vision/kd](#vision-kd) | distillation beats training alone | does not hold | 2 | 2026-01-01 |" in page
    assert "| `accuracy.kd > accuracy.alone + 0.01` | 0.9 | 0.91 | **does not hold** |" in page
    assert "| `kd` | 0.9 ± 0.01 |" in page, "metrics that no inequality names are left out"
    assert "Why it does not hold: the test set is too small" in page


def test_an_empty_ledger_says_so(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.evidence() == "No claim has been recorded yet."


def test_cells_cannot_break_a_table(generate: ModuleType) -> None:
    assert generate.table(["A"], [["x | y\nz"]]).splitlines()[-1] == "| x \\| y z |"


def test_a_docstring_gives_its_text_and_each_argument(generate: ModuleType) -> None:
    doc = "What it is.\n\nMore of :func:`~a.b.c`.\n\nArgs:\n    mean, std: per channel,\n        of images."
    doc += "\n    k: how many.\n\nRaises:\n    E: no.\n"
    says, arguments = generate.split_docstring(doc)
    assert says == "What it is.\n\nMore of `c`."
    assert arguments == {"mean": "per channel, of images.", "std": "per channel, of images.", "k": "how many."}


def test_every_marker_of_the_pages_is_known(generate: ModuleType) -> None:
    said = {name for page in (ROOT / "docs").rglob("*.md") for name in generate.MARKER.findall(page.read_text("utf8"))}
    assert said == set(generate.GENERATED) - {"families"}
