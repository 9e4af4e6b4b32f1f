"""Starting several processes for one run, with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.recipe import Recipe


def relaunch(recipe: Recipe) -> int | None:
    """Run this same command in as many processes as the recipe asks for; None when this process is one of them.

    Under an outer ``torchrun`` (several nodes) nothing is started here.
    """
    if "WORLD_SIZE" in os.environ or recipe.train.devices == 1:
        return None
    from limbeck.engine.devices import wanted_processes
    from limbeck.run import placement_of

    count = wanted_processes(placement_of(recipe))
    if count == 1:
        return None
    environment = {"OMP_NUM_THREADS": threads_for(count), "TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    started = subprocess.Popen([*command, "-m", "limbeck.cli", *sys.argv[1:]], env=environment)
    try:
        return started.wait()
    except KeyboardInterrupt:
        # The terminal sent the signal to the workers too; they write their checkpoint.
        return started.wait() or 130


def threads_for(count: int) -> str:
    """Threads per process so that the processes together use the machine's cores."""
    return str(max((os.cpu_count() or 1) // count, 1))
