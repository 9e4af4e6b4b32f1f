"""Running the command line in processes of its own that a test can kill, without the start-up time of each.

A server process imports the library once and forks for every command, so a command starts in milliseconds; it is a
process like any other, with its own signals, exit code and output.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["limbeck.cli", "limbeck.run", "limbeck.report.page", "limbeck.stages.export", "sklearn.datasets"]
PATIENCE = 120.0


@dataclass
class Command:
    """A command that was started."""

    process: BaseProcess
    folder: Path

    @property
    def code(self) -> int | None:
        """Exit code, negative for the signal that killed it."""
        return self.process.exitcode

    @property
    def out(self) -> str:
        """Standard output."""
        return (self.folder / "stdout").read_text(encoding="utf8")

    @property
    def err(self) -> str:
        """Standard error."""
        return (self.folder / "stderr").read_text(encoding="utf8")

    @property
    def lines(self) -> list[str]:
        """Lines of standard error, without the warnings and remarks about the recipe."""
        return [line for line in self.err.splitlines() if not line.startswith(("warning: ", "note: "))]

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        self.process.join(PATIENCE)
        assert self.code is not None, "it did not end"
        return self.code

    def send(self, number: signal.Signals, when: Callable[[], bool]) -> int:
        """Send a signal as soon as something is so; returns the exit code."""
        pid = self.process.pid
        assert pid is not None
        deadline = time.monotonic() + PATIENCE
        while not when():
            assert self.process.is_alive(), f"it ended (code {self.code}) before the accident: {self.err}"
            assert time.monotonic() < deadline, "the moment for the accident never came"
            time.sleep(0.002)
        os.kill(pid, number)
        return self.wait()


@contextlib.contextmanager
def started(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """``limbeck ARGUMENTS`` in the folder ``folder``; a command that still runs at the end is killed."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder.parent / f"{folder.name}-{time.monotonic_ns()}"
    output.mkdir()
    process = server.Process(target=_work, args=(str(folder), str(output), arguments, dict(environment or {})))
    process.start()
    try:
        yield Command(process, output)
    finally:
        process.kill()
        process.join()


def _work(folder: str, output: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(Path(output) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from limbeck.cli import main

    sys.exit(main(arguments))
