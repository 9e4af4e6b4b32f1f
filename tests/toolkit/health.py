"""A small generator's training for tests of health, in one process or in two: ``... torch.distributed.run health.py``.

Each process of the second is started with an output folder and jobs, as ``fsdp-sid``; the first one writes what was
seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.stream import NoData
from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.engine.devices import Placement, launch
from limbeck.engine.learner import LearnerSettings
from limbeck.engine.loop import Loop, LoopSettings
from limbeck.registry import Block, build
from toolkit.diffusion import made

STEPS, ROWS = 4, 32


def train(folder: Path, placement: Placement, name: str) -> Loop:
    """A generator of two steps, trained for a little while by SGD with this method; the loop afterwards."""
    torch.manual_seed(0)
    net: nn.Module = build("model", Block("mlp_denoiser", {"width": 16, "depth": 2, "sigma_data": 1.5}))
    generator = FewStep(net, few_levels(2, 0.02, 10.0), sigma_min=0.02)
    args: dict[str, Any] = {"gan_weight": 0.0, "discriminator_weight": 0.0} if name == "dmd2" else {}
    method = made(name, mixture.ring(4, 2.0, 0.5).float(), generator, critic_updates=2, **args)
    fabric = launch(placement)
    default = LearnerSettings(optimizer=Block("sgd", {"lr": 0.01}))
    settings = LoopSettings(steps=STEPS, default=default, log_every=1, quiet=True)
    loop = Loop(method, NoData(ROWS, rank=fabric.global_rank, world=fabric.world_size), settings, folder, fabric)
    loop.fit()
    return loop


if __name__ == "__main__":
    out, *jobs = sys.argv[1:]
    for job in jobs:
        strategy, name = job.split("-")
        loop = train(Path(out) / job, Placement(accelerator="cpu", devices=2, strategy=strategy), name)
        if loop.fabric.global_rank == 0:
            (Path(out) / f"{job}.json").write_text(json.dumps(loop.journal.health))
        loop.fabric.barrier()
