"""``python -m benchmarks [NAME ...] [--quick] [--results DIR]``: run, print a table, keep the numbers as JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SETTINGS = {
    "OMP_NUM_THREADS": "1",  # every thread computes alone
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}
"""What must be in the environment before a process starts. glibc gives large blocks back to the system, or does not, by
what the process did before: with its own rules one contender pays for pages that another one keeps, up to 15 % of a
step."""

NAMES = (
    "loop_overhead",
    "torchdistill_kd",
    "startup",
    "teacher_cache",
    "method_cost",
    "vocabulary_head",
    "expert_buffer",
    "block_contrast",
    "matching_step",
)
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the numbers mean nothing")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes (default {RESULTS.name}/ beside this file)")
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: there is {', '.join(NAMES)}")
    import torch

    torch.set_num_threads(1)
    missed = 0
    for name in parsed.names or NAMES:
        report = import_module(f"benchmarks.{name}").run(quick=parsed.quick)
        print(report.table(), end="\n\n", flush=True)
        missed += sum(row.met is False for row in report.rows)
        folder = parsed.results or (None if parsed.quick else RESULTS)
        if folder and not report.skipped:
            report.write(folder)
    return int(missed > 0 and not parsed.quick)


if __name__ == "__main__":
    if SETTINGS.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**SETTINGS, **os.environ})
    sys.exit(main())
