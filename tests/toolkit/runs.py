"""Small recipes run through the command line, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from limbeck.cli import main

STAGES = ["teacher", "cache", "train", "controls", "evaluate", "export"]
"""A run without its report, whose figures take most of the time of a small run."""

DIGITS = {"name": "digits", "train_size": 80, "test_size": 50}
TINY: dict[str, Any] = {
    "title": "Tiny",
    "data": DIGITS,
    "teacher": {"name": "mlp", "hidden": 12, "train": {"steps": 4}},
    "student": {"name": "mlp", "hidden": 4},
    "method": {"name": "kd"},
    "train": {"steps": 4, "batch_size": 16},
    "evaluate": ["accuracy", "agreement"],
    "stages": STAGES,
}


def tiny(**changes: Any) -> dict[str, Any]:
    """A recipe that runs in a moment; None leaves a block out."""
    return {k: v for k, v in {**TINY, **changes}.items() if v is not None}


def written(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    """The file of a :func:`tiny` recipe."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tiny(**changes), sort_keys=False), encoding="utf8")
    return path


@dataclass
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def folder(self) -> Path:
        """The run directory of ``run --json``."""
        return Path(self.json["folder"])

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """The arms of the results of ``run --json``."""
        return self.json["results"]["arms"]


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Said:
    """``limbeck ARGUMENTS`` in this process."""
    capsys.readouterr()
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as left:  # argparse
        code = int(left.code or 0)
    said = capsys.readouterr()
    return Said(code, said.out, said.err)


def refused(said: Said, *words: str) -> None:
    """Assert that a command ended as bad input does: exit code 2, one line on standard error, nothing printed."""
    lines = said.err.strip().splitlines()
    assert (said.code, said.out, len(lines)) == (2, "", 1), said
    assert all(word in lines[0] for word in words), lines[0]


def pictures(count: int, channels: int = 1, size: int = 8, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Made pictures uint8 [N, S, S(, 3)] that are brighter the higher their class, and labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    shape = (count, size, size, channels) if channels > 1 else (count, size, size)
    shade = (60 * labels).reshape(-1, *[1] * (len(shape) - 1))
    return (random.integers(0, 80, shape) + shade).astype(np.uint8), labels
