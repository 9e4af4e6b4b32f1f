"""Condensed CIFAR-10 beside the published tables: the papers' settings, as far as a machine allows.

``python -m benchmarks.condensation_published`` runs what a processor can do: real images by the papers' own protocol,
and distribution matching for a few of its steps. ``PLAN`` says what is run; on a GPU take the settings out of it. Each
result goes beside the number in ``benchmarks/published/condensation.json``, with the gap and what differs, into
``benchmarks/results/condensation_published.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "condensation_published.json"
PUBLISHED = ROOT / "benchmarks" / "published" / "condensation.json"


@dataclass(frozen=True)
class Case:
    """A published number, and how ours is made.

    Attributes:
        method: as in the published table.
        per_class: images a class.
        recipe: of ``recipes/condensation/cifar10``.
        settings: overrides of the recipe.
        differs: what is not as in the paper, for the reader.
    """

    method: str
    per_class: int
    recipe: str
    settings: Sequence[str] = ()
    differs: str = ""


LOSSY = "lossy images"
SHORT = ("train.steps=100", "method.batch_real=64", "train.optimizer.lr=10")
PLAN = (
    Case("random", 1, "random", differs=LOSSY),
    Case("herding", 1, "random", ("method.selection=herding",), f"{LOSSY}; herding on pixels"),
    Case("k_center", 1, "random", ("method.selection=k_center",), f"{LOSSY}; on pixels"),
    Case("dm", 1, "dm", SHORT, f"{LOSSY}; 100 steps of 20,000, with a rate of 10, on 64 real images a class"),
)
QUICK = ("evaluate=[{name: fresh_networks, networks: 1, epochs: 2, architectures: [{name: convnet, width: 4}]}]",)


def published(method: str, per_class: int) -> float | None:
    """Accuracy in per cent of a method on CIFAR-10 with the papers' ConvNet."""
    for table in json.loads(PUBLISHED.read_text(encoding="utf8"))["tables"]:
        if table["data"] == "cifar10" and table["network"].startswith("ConvNet"):
            for row in table["rows"]:
                if row["method"] == method and str(per_class) in row["values"]:
                    return float(row["values"][str(per_class)]["accuracy"])
    return None


def measured(case: Case, further: Sequence[str] = ()) -> dict[str, Any]:
    """Run a case; accuracy and spread in per cent."""
    recipe = ROOT / "recipes" / "condensation" / "cifar10" / f"cifar10_{case.recipe}.yaml"
    settings = [f"student.per_class={case.per_class}", "controls=false", *case.settings, *further]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "limbeck.cli", "run", str(recipe), "--runs", folder]
        subprocess.run([*command, *[f"--set={s}" for s in settings]], check=True, stdout=sys.stderr)
        (found,) = Path(folder).glob("*/results.json")
        scores = json.loads(found.read_text(encoding="utf8"))["arms"]["student"]["metrics"]
    return {"accuracy": 100 * scores["fresh_accuracy"], "std": 100 * scores["fresh_accuracy_std"]}


def measure(quick: bool = False) -> dict[str, Any]:
    """Every case with its published number and the gap."""
    rows = []
    for case in PLAN[:1] if quick else PLAN:
        ours = measured(case, QUICK if quick else ())
        theirs = published(case.method, case.per_class)
        gap = None if theirs is None else ours["accuracy"] - theirs
        row = {"method": case.method, "per_class": case.per_class, "ours": ours, "published": theirs, "gap": gap}
        rows.append({**row, "differs": case.differs})
    return {"data": "cifar10", "network": "ConvNet-3, 128 channels", "machine": machine(), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.condensation_published", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case in small; the numbers mean nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that the JSON goes to")
    parsed = parser.parse_args(arguments)
    parsed.results.write_text(json.dumps(measure(parsed.quick), indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
