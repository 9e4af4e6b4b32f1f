"""Progress on the terminal and metrics on disk. Everything a person reads goes to standard error."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from limbeck.engine.checkpoint import read_jsonl, write_text
from limbeck.errors import UserError


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
        """Append a row and flush it.

        Raises:
            UserError: it cannot be written (a full disk).
        """
        with _writing(self._file):
            self._file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()


class TensorBoard:
    """Metrics as TensorBoard scalars; used when the package ``tensorboard`` is installed.

    Written here and now: TensorBoard's own writer does it in a thread, whose failure (a full disk) nobody catches.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def log(self, row: Mapping[str, Any]) -> None:
        """Add each number of the row.

        Raises:
            UserError: it cannot be written (a full disk).
        """
        numbers = {k: v for k, v in row.items() if k not in ("step", "split") and isinstance(v, int | float)}
        value = self._summaries.Summary.Value
        values = [value(tag=f"{row['split']}/{k}", simple_value=v) for k, v in numbers.items() if math.isfinite(v)]
        self._write(step=row["step"], summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()

    def _write(self, **fields: Any) -> None:
        with _writing(self._file):
            self._records.write(self._events.Event(wall_time=time.time(), **fields).SerializeToString())


@contextmanager
def _writing(file: IO[Any]) -> Iterator[None]:
    """Within the context something is written to a file, which is then flushed."""
    try:
        yield
        file.flush()
    except OSError as error:
        says = error.strerror or str(error)
        raise UserError(
            f"cannot write {file.name}: {says}; the same command goes on from the last checkpoint"
        ) from error


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
