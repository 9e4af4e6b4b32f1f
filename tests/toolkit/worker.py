"""What each process of a distributed test runs: ``python -m torch.distributed.run ... worker.py OUT STRATEGY...``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from limbeck.engine.devices import Placement, launch
from limbeck.engine.learner import LearnerSettings
from limbeck.registry import Block, build
from toolkit import set_up, toy_loop, toy_net, toy_teacher

LEARNER = LearnerSettings(optimizer=Block("adamw", {"lr": 0.01}), ema=(0.9,), clip=0.5)


def train(out: Path, strategy: str, method: str, accumulate: int, resume: bool) -> None:
    """Train the toy problem under a strategy; the first process writes the weights."""
    fabric = launch(Placement(accelerator="cpu", devices=2, strategy=strategy))
    name = f"{method}-{strategy}-{accumulate}"
    teachers = {"teacher": toy_teacher()} if method != "dml" else {}
    made = set_up(build("method", Block(method)), torch.nn.Sequential(toy_net()), teachers)
    if method == "dml":
        made.learners["peer_1"].load_state_dict(torch.nn.Sequential(toy_net(7)).state_dict())
    steps = 6 if resume else 3
    loop = toy_loop(out / "runs" / name, made, steps=steps, fabric=fabric, accumulate=accumulate, learner=LEARNER)
    outcome = loop.fit()
    if fabric.global_rank == 0:
        weights = {f"{k}.{n}": v for k, state in outcome.student.items() for n, v in state.items()}
        save_file(weights, out / f"{name}-{steps}.safetensors")
    fabric.barrier()


if __name__ == "__main__":
    folder, *jobs = sys.argv[1:]
    for job in jobs:
        strategy, method, accumulate, resume = job.split(":")
        train(Path(folder), strategy, method, int(accumulate), resume == "resume")
