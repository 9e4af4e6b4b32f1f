"""Progress on the terminal and metrics on disk. Everything a person reads goes to standard error."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from limbeck.engine.checkpoint import read_jsonl, write_text


class Logger(Protocol):
    """Where metrics go."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row; ``step`` and ``split`` are always in it."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class JsonLines:
    """Metrics as one JSON object a line. ``resume_at`` drops rows of steps that will be done again."""

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_jsonl(path) if resume_at is not None and r.get("step", 0) <= resume_at]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = path.open("a", encoding="utf8")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row and flush it."""
        self._file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Metrics as TensorBoard scalars; used when the package ``tensorboard`` is installed."""

    def __init__(self, folder: Path, resume_at: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_at)

    def log(self, row: Mapping[str, Any]) -> None:
        """Add each number of the row."""
        for key, value in row.items():
            if key not in ("step", "split") and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{row['split']}/{key}", value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Progress:
    """One line of progress with rate and time left: live on a terminal, now and then in a log."""

    def __init__(self, label: str, total: int, *, start: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.start, self.quiet = label, total, start, quiet
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total is done (at most five times a second live, every ten seconds in a log)."""
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.2 if self.live else 10.0):
            return
        self.shown = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else math.inf
        text = f"{self.label}: {done}/{self.total}  {rate:.1f}/s  {duration(left)} left  {note}"
        print(f"\r{text:<110.110}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self, note: str = "") -> None:
        """Say that it is done and how long it took."""
        if not self.quiet:
            text = f"{self.label}: done in {duration(time.monotonic() - self.began)}  {note}"
            print(f"\r{text:<110.110}" if self.live else text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people read them: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(text: str) -> None:
    """Tell the person at the terminal something."""
    print(text, file=sys.stderr, flush=True)


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value
