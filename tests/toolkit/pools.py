"""Making a pool of pairs: alone in a process that can be killed, and in two that share a teacher."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.diffusion import base
from limbeck.engine import pools
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, batch, made, student

CHUNK = 8
PAIRS = 20
PRELOADED = ["limbeck.diffusion.trajectories", "limbeck.engine.loop", "torch.distributed.fsdp"]
FLOOR = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02})


def network(seed: int = 0, **args: Any) -> nn.Module:
    """A teacher with parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build("model", Block("mlp_denoiser", {"width": 16, "depth": 1, **args}))


def learner(teacher: nn.Module | None = None, net: Block = FLOOR, **args: Any) -> Any:
    """A method that learns on pairs, with the numbers of those that it asks its teacher for in ``asked``."""
    given = {"pairs": PAIRS, "pair_steps": 3, **args}
    method = made("consistency", network() if teacher is None else teacher, student(net), from_teacher=False, **given)
    sampled, method.asked = method._sampled, []

    def watched(ids: Tensor, seed: int) -> Tensor:
        method.asked.append(ids.tolist())
        return sampled(ids, seed)

    method._sampled = watched
    return method


def drawn(method: Any) -> Tensor:
    """Samples of some pairs."""
    return method.pair(batch(), CLOCK)[2]


def process(work: Callable[..., None], *args: Any) -> BaseProcess:
    """A process of its own that does some work; a server imports the library once, and forks for each."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    made = server.Process(target=work, args=args)
    made.start()
    return made


def slowly(home: str) -> None:
    """Make two chunks of pairs, and be at the third for ever; for a process that is killed."""
    os.environ["LIMBECK_HOME"] = home
    method = learner()
    sampled = method._sampled

    def slow(ids: Tensor, seed: int) -> Tensor:
        if ids[0] >= 2 * CHUNK:
            time.sleep(600)
        return sampled(ids, seed)

    method._sampled = slow
    with mock.patch.object(base, "CHUNK", CHUNK):
        drawn(method)


# -- two processes -----------------------------------------------------------------------------------------------------


def together(out: Path, environment: dict[str, str]) -> None:
    """What one of the processes makes: with whole teachers, with a sharded one, after damage, and on a full disk."""
    from limbeck.engine.devices import Placement, launch

    os.environ.update(environment)
    sys.stderr = (out / f"stderr-{environment['RANK']}").open("w", encoding="utf8")
    for job in ("ddp", "fsdp", "damaged", "full"):
        strategy = "ddp" if job == "ddp" else "fsdp"
        fabric = launch(Placement(accelerator="cpu", devices=2, strategy=strategy))
        os.environ["LIMBECK_HOME"] = str(out / ("fsdp" if job == "damaged" else job))
        method = learner()
        assert method.teacher.hash  # as a run takes it, before anything is sharded
        if strategy == "fsdp":
            method.teacher.module = fabric.setup_module(method.teacher.module)
        if job == "damaged" and fabric.global_rank == 0:
            damage(sorted(out.glob("fsdp/pairs/*/*.safetensors"))[1])
        fabric.barrier()
        save_file(_outcome(method, job, fabric.global_rank), out / f"{job}-{fabric.global_rank}.safetensors")
        fabric.barrier()
    sys.stderr.close()


def _outcome(method: Any, job: str, rank: int) -> dict[str, Tensor]:
    refused = mock.Mock(side_effect=UserError("cannot write: the disk is full"))
    with mock.patch.object(base, "CHUNK", CHUNK), mock.patch.object(pools, "HELD", 0 if job == "damaged" else 1 << 20):
        if rank > 0:  # looks for nothing and writes nothing
            with mock.patch.object(pools._Store, "_whole", None), mock.patch.object(pools, "atomic", None):
                return _found(method)
        if job == "full":
            with mock.patch.object(pools, "atomic", refused):
                return _found(method)
        return _found(method)


def _found(method: Any) -> dict[str, Tensor]:
    try:
        samples = drawn(method)
    except UserError as error:
        assert "disk is full" in str(error), error
        samples = torch.zeros(0)
    return {"samples": samples, "asked": torch.tensor([n for ids in method.asked for n in ids])}


def damage(path: Path) -> None:
    """Change the last byte of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
