"""Condensed CIFAR-10 beside the published tables: the papers' settings, as far as a machine allows.

``python -m benchmarks.condensation_published`` runs what a processor can do: real images by the papers' own protocol,
and matching methods for a few of their steps. ``PLAN`` says what is run; on a GPU take the settings out of it. Each
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
TENTH = ("train.steps=100", "method.batch_real=64", "train.optimizer.lr=1")
EPOCHS = "evaluate=[{name: fresh_networks, networks: 5, epochs: 1000}]"
PLAN = (
    Case("random", 1, "random", differs=LOSSY),
    Case("herding", 1, "random", ("method.selection=herding",), f"{LOSSY}; herding on pixels"),
    Case("k_center", 1, "random", ("method.selection=k_center",), f"{LOSSY}; on pixels"),
    Case("random", 10, "random", differs=LOSSY),
    Case("dm", 1, "dm", SHORT, f"{LOSSY}; 100 steps of 20,000, with a rate of 10, on 64 real images a class"),
    Case("datadam", 1, "datadam", (*SHORT, EPOCHS), f"{LOSSY}; 100 steps of 20,000, with a rate of 10; 1,000 epochs"),
    Case("dc", 1, "dc", TENTH, f"{LOSSY}; 100 steps of 1,000, with a rate of 1, on 64 real images a class"),
    Case("dsa", 1, "dsa", TENTH, f"{LOSSY}; 100 steps of 1,000, with a rate of 1, on 64 real images a class"),
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


def row_of(case: Case, further: Sequence[str] = ()) -> dict[str, Any]:
    """A case's number beside the published one, in per cent, with the gap."""
    ours, theirs = measured(case, further), published(case.method, case.per_class)
    gap = None if theirs is None else ours["accuracy"] - theirs
    told = {"method": case.method, "per_class": case.per_class, "ours": ours, "published": theirs, "gap": gap}
    return {**told, "differs": case.differs, "machine": machine()}


def kept(results: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows that were measured before, by method and images a class."""
    rows = json.loads(results.read_text(encoding="utf8"))["rows"] if results.is_file() else []
    return {(row["method"], row["per_class"]): row for row in rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write each number as soon as it is found, beside those that are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.condensation_published", description=__doc__)
    methods = list(dict.fromkeys(case.method for case in PLAN))
    parser.add_argument("--only", nargs="+", choices=methods, default=methods, help="the methods that are measured")
    parser.add_argument("--quick", action="store_true", help="one case in small; the numbers mean nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that the JSON goes to")
    parsed = parser.parse_args(arguments)
    chosen = [case for case in PLAN if case.method in parsed.only]
    rows = kept(parsed.results)
    for case in chosen[:1] if parsed.quick else chosen:
        rows[case.method, case.per_class] = row_of(case, QUICK if parsed.quick else ())
        order = {(c.method, c.per_class): place for place, c in enumerate(PLAN)}
        listed = [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]
        told = {"data": "cifar10", "network": "ConvNet-3, 128 channels", "rows": listed}
        parsed.results.write_text(json.dumps(told, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
