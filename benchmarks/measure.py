"""Measuring on a machine that others use too: contenders in turns, two clocks, medians with quartiles."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from unittest import mock

import torch


class Lap(NamedTuple):
    """Seconds on two clocks: what passed, and what this process computed (other users' work does not count)."""

    wall: float
    cpu: float

    def __sub__(self, other: Lap) -> Lap:
        return Lap(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Lap:
    """Both clocks."""
    return Lap(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Row:
    """One number of a report: a median, its quartiles, and the goal it is held against (at most ``goal``)."""

    what: str
    value: float
    unit: str = ""
    quartiles: tuple[float, float] | None = None
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        return None if self.goal is None else self.value <= self.goal

    @classmethod
    def of(cls, what: str, values: Sequence[float], unit: str = "", goal: float | None = None) -> Row:
        """The median of several measurements."""
        return cls(what, median(values), unit, quartiles(values), goal)

    @classmethod
    def ratio(cls, what: str, above: Sequence[float], below: Sequence[float], goal: float | None = None) -> Row:
        """The ratio of two measurements, round by round: a machine that slows down in a round slows both."""
        pairs = [a / b for a, b in zip(above, below, strict=True)]
        return cls(what, median(pairs), "x", quartiles(pairs), goal)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass
class Report:
    """What one benchmark found; ``skipped`` says why it found nothing."""

    name: str
    about: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        rows = [
            {"what": r.what, "value": r.value, "unit": r.unit, "quartiles": r.quartiles, "goal": r.goal, "met": r.met}
            for r in self.rows
        ]
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"benchmark": self.name, "about": self.about, "date": date, "machine": machine(), "rows": rows} | {
            k: v for k, v in {"notes": self.notes, "skipped": self.skipped}.items() if v
        }

    def write(self, folder: Path) -> Path:
        """``<folder>/<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf8")
        return path

    def table(self) -> str:
        """Lines for a terminal."""
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        cells = [("", "median", "quartiles", "goal", "")]
        for r in self.rows:
            spread = f"{r.quartiles[0]:.4g} .. {r.quartiles[1]:.4g}" if r.quartiles else ""
            goal = f"<= {r.goal:g}" if r.goal is not None else ""
            cells.append(
                (r.what, f"{r.value:.4g} {r.unit}", spread, goal, {True: "met", False: "MISSED", None: ""}[r.met])
            )
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([f"{self.name}: {self.about}", *lines, *(f"  {note}" for note in self.notes)])


def machine() -> dict[str, Any]:
    """The machine that measured; the load average says how busy it was."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning-fabric": metadata.version("lightning-fabric"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------------------
# In turns


TURN = 5
"""Steps of a turn."""
Contender = Callable[[Callable[[], None]], None]
"""A training that calls its argument after each step."""


def race(contenders: Mapping[str, Contender], rounds: int, length: int) -> dict[str, list[Lap]]:
    """Seconds per step of each contender in each round of ``length`` steps.

    Within a round they take turns of a few steps, A B A B ..., each in a thread of its own but only one at a time, so
    whatever slows the machine down meets all of them. One more round goes first and is not counted. A contender must
    make ``steps_of(rounds, length)`` steps.
    """
    turn = TURN if length % TURN == 0 else length
    runners = {name: _Runner(run, turn) for name, run in contenders.items()}
    for _ in range((rounds + 1) * length // turn):
        for runner in runners.values():
            runner.take_turn()
    for runner in runners.values():
        runner.finish()
    return {name: runner.rounds(length // turn)[1:] for name, runner in runners.items()}


def steps_of(rounds: int, length: int) -> int:
    """Steps that each contender of a race makes, those of the first round included."""
    return (rounds + 1) * length


class _Runner:
    """One contender, held at the end of each of its turns."""

    def __init__(self, run: Contender, length: int) -> None:
        self._laps: list[Lap] = []
        self._run, self._length, self._done = run, length, 0
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        self._began = now()
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take_turn(self) -> None:
        """Let it run to the end of its turn."""
        self._go.release()
        self._held.acquire()
        self._raise()

    def finish(self) -> None:
        """Let it come to its end."""
        self._go.release()
        self._thread.join()
        self._raise()

    def rounds(self, turns: int) -> list[Lap]:
        """Seconds per step in each round of so many turns."""
        grouped = [self._laps[i : i + turns] for i in range(0, len(self._laps), turns)]
        steps = turns * self._length
        return [Lap(sum(lap.wall for lap in g) / steps, sum(lap.cpu for lap in g) / steps) for g in grouped]

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # a setting of each thread
        self._wait()
        try:
            self._run(self._step)
        except BaseException as error:
            self._error = error
        self._held.release()

    def _step(self) -> None:
        self._done += 1
        if self._done % self._length == 0:
            self._laps.append(now() - self._began)
            self._held.release()
            self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        self._began = now()


class Meter:
    """Adds up the time that watched methods take."""

    def __init__(self) -> None:
        self.laps: dict[str, list[Lap]] = {}

    def cpu(self, *labels: str) -> float:
        """Seconds of processor time under these labels: each one's median call, times its calls."""
        series = [[lap.cpu for lap in self.laps.get(label, [])] for label in labels]
        return sum(median(seconds) * len(seconds) for seconds in series if seconds)

    @contextmanager
    def watch(self, label: str, owner: type, method: str) -> Iterator[None]:
        """Within the context, calls of ``owner.method`` are counted under ``label``."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return original(*args, **kwargs)
            finally:
                self.laps.setdefault(label, []).append(now() - began)

        with mock.patch.object(owner, method, timed):
            yield


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def in_a_bare_process(module: str, jobs: Sequence[Any]) -> list[float]:
    """What ``python -m MODULE JOBS`` prints in its last line, numbers as JSON, where glibc keeps its own rules.

    With these large blocks go back to the system as soon as they are freed.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory could not be measured: {done.stderr[-500:]}")
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def forked(measure: Callable[[], float]) -> float:
    """What a function finds in a copy of this process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(measure()))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return float(found)


def high_water() -> float:
    """The most memory that this process ever held, in MiB."""
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark / 1024 if sys.platform != "darwin" else mark / 2**20
