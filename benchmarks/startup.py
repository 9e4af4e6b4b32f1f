"""How long the command line takes to answer: ``limbeck --help``, and ``limbeck check`` of a recipe full of mistakes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Report, Row

ABOUT = "seconds from the command to its answer, wall clock"
BAD = """\
data: {name: digitz}
teacher: {name: cnn, widht: 64}
student: {name: mlp}
method: {name: dkd, temprature: 4}
train: {optimizer: {name: adamv}, epoch: 3}
evaluate: [acuracy]
"""


def run(*, quick: bool = False) -> Report:
    """Both commands, in turns."""
    runs = 1 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "bad.yaml"
        recipe.write_text(BAD, encoding="utf8")
        commands = {"--help": (["--help"], 0, 0.3), "check of a bad recipe": (["check", str(recipe)], 2, 0.5)}
        times: dict[str, list[float]] = {name: [] for name in [*commands, "bare"]}
        for _ in range(runs + 1):
            times["bare"].append(_seconds([sys.executable, "-c", "pass"], 0))
            for name, (arguments, code, _goal) in commands.items():
                times[name].append(_seconds([sys.executable, "-m", "limbeck.cli", *arguments], code))
    rows = [Row.of(f"limbeck {name}", times[name][1:], "s", goal) for name, (_, _, goal) in commands.items()]
    return Report("startup", ABOUT, [*rows, Row.of("(python -c pass)", times["bare"][1:], "s")])


def _seconds(command: list[str], code: int) -> float:
    """Wall time of a command that must end with this exit code."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}, not {code}: {done.stderr[-500:]}")
    return seconds
