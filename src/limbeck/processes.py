"""Several processes for one run: starting them, stopping them together, and doing once what only one may do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from limbeck.recipe import Recipe

SAID = "LIMBECK_SAID"
"""Names the folder where the processes of one command leave their last words, which are then printed once."""
GRACE = 30.0
"""Seconds that the others have to end once one process has failed."""


def relaunch(recipe: Recipe, arguments: Sequence[str]) -> int | None:
    """Run this same command in as many processes as the recipe asks for; None when this process is one of them.

    Under an outer ``torchrun`` (several nodes) nothing is started here.

    Raises:
        UserError: several nodes, which a command on one of them cannot start.
    """
    if "WORLD_SIZE" in os.environ or (recipe.train.devices == 1 and recipe.train.nodes == 1):
        return None
    if recipe.train.nodes > 1:
        command = f"torchrun --nnodes={recipe.train.nodes} --nproc-per-node={recipe.train.devices} ... -m limbeck.cli"
        raise UserError(f"train.nodes is {recipe.train.nodes}: start it on every node, with {command} run RECIPE")
    from limbeck.engine.devices import wanted_processes
    from limbeck.run import placement_of

    count = wanted_processes(placement_of(recipe))
    return start(count, ["-m", "limbeck.cli", *arguments]) if count > 1 else None


def start(count: int, command: Sequence[str]) -> int:
    """Run ``python *command`` in ``count`` processes of one group, as ``torchrun`` would; returns the exit code.

    The processes get each signal once, from here. What they had to say at the end is printed once.
    """
    with tempfile.TemporaryDirectory(prefix="limbeck-") as said:
        shared = {
            "OMP_NUM_THREADS": threads_for(count),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "limbeck",
            SAID: said,
        }
        workers = [
            subprocess.Popen(
                [sys.executable, *command],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # else the terminal's Ctrl-C would reach them beside the one passed on here
            )
            for rank in range(count)
        ]
        with _passing_on_signals(workers):
            code = _wait(workers)
        for words in dict.fromkeys(p.read_text(encoding="utf8") for p in sorted(Path(said).iterdir())):
            print(words, file=sys.stderr)
    return code


def say_last(text: str) -> None:
    """Print why this process ends: at once, or by the process that started it, once for all that say the same."""
    folder = os.environ.get(SAID)
    if folder is None:
        print(text, file=sys.stderr)
    else:
        (Path(folder) / os.environ.get("RANK", "0").zfill(6)).write_text(text, encoding="utf8")


def once(fabric: Fabric, work: Callable[[], Any]) -> None:
    """Let the first process do something while the others wait; its :class:`UserError` is raised in all of them."""
    failed: tuple[type[UserError], str] | None = None
    error: UserError | None = None
    if fabric.global_rank == 0:
        try:
            work()
        except UserError as found:
            failed, error = (UserError, str(found)), found
    if fabric.world_size > 1:
        failed = fabric.broadcast(failed)
    if error is not None:
        raise error
    if failed is not None:
        raise UserError(failed[1])


def threads_for(count: int) -> str:
    """Threads per process so that the processes together use the machine's cores."""
    return str(max((os.cpu_count() or 1) // count, 1))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _passing_on_signals(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, frame: Any) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        before = {n: signal.signal(n, pass_on) for n in (signal.Signals[name] for name in names)}
    except ValueError:  # not the main thread: signals are the caller's
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of those that failed, 0 when none did; once one has failed, the others are ended after a while."""
    deadline: float | None = None
    while [worker for worker in workers if worker.poll() is None]:  # all of them, so that each code is known
        if deadline is None and any(worker.returncode for worker in workers):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    failed = [worker.returncode for worker in workers if worker.returncode]
    return max(1, *failed) if failed else 0
