"""Being asked to stop: Ctrl-C and SIGTERM let the step finish and a checkpoint be written."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818 (it is not an error)
    """The run was asked to stop; a checkpoint was written first. ``code`` is the exit code that says by what."""

    def __init__(self, step: int, code: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.code = code


class StopRequest:
    """Within the context, SIGINT and SIGTERM only note that they came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.code: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        try:
            self._handlers = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are the caller's
            self._handlers = {}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = 128 + number
