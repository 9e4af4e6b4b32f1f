"""Training many experts stacked in one batched computation, one after the other, and with a plain torch loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.measure import Report, Row, now
from limbeck.condensation.experts import Course, stacks_well, trajectories
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages
from limbeck.condensation.unroll import Flat
from limbeck.registry import Block

ABOUT = "a step of an expert: stacked, one after the other, and in a plain loop of torch"
EXPERTS, BATCH, GOAL = 10, 64, 1.1
NETS = {
    "mlp 64, 8x8": (Block("mlp", {"hidden": 64}), 1, 8),
    "convnet 16, 8x8": (Block("convnet", {"width": 16, "depth": 2}), 1, 8),
    "convnet 32, 28x28": (Block("convnet", {"width": 32, "depth": 3}), 1, 28),
}


def run(*, quick: bool = False) -> Report:
    """Each network in turns of one epoch."""
    rounds, steps = (2, 1) if quick else (5, 4)
    rows: list[Row] = []
    for name, (block, channels, side) in list(NETS.items())[:2] if quick else NETS.items():
        times, chosen = _times(block, channels, side, rounds, steps)
        rows += [
            Row.ratio(f"{name}: {chosen}, as chosen / plain", times[chosen], times["plain"], GOAL),
            Row.ratio(f"{name}: stacked / alone", times["stacked"], times["alone"]),
            *(Row.of(f"{name}: {way}", seconds, "s") for way, seconds in times.items()),
        ]
    notes = ["processor time of a step of an expert, ten experts, batch 64, one thread; alone is one after the other"]
    return Report("expert_buffer", ABOUT, rows, notes)


def _times(block: Block, channels: int, side: int, rounds: int, steps: int) -> tuple[dict[str, list[float]], str]:
    shape = (channels, side, side)
    offers = {"shape": shape, "in_channels": channels, "image_size": side, "classes": 10, "in_features": side**2}
    generator = torch.Generator().manual_seed(0)
    count = BATCH * steps
    images = torch.randn(count, *shape, generator=generator)
    real = RealImages(images, torch.arange(count) % 10, 10)
    nets = [fresh_network(block, offers, n) for n in range(EXPERTS)]
    flat = Flat(nets[0])
    starts = torch.stack([flat.weights(net) for net in nets])
    course = Course(epochs=1, batch_size=BATCH)
    keys = list(range(EXPERTS))
    times: dict[str, list[float]] = {"stacked": [], "alone": [], "plain": []}
    for number in range(rounds + 1):
        for way, seconds in times.items():
            began = now()
            if way == "plain":
                _plain(nets, real, steps)
            else:
                trajectories(flat, starts, real, course, list(keys), until=1, stacked=way == "stacked")
            if number:
                seconds.append((now() - began).cpu / (steps * EXPERTS))
    return times, "stacked" if stacks_well(nets[0], torch.device("cpu")) else "alone"


def _plain(nets: list[torch.nn.Module], real: RealImages, steps: int) -> None:
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for rows in torch.randperm(len(real.labels)).split(BATCH)[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(net(real.images[rows]), real.labels[rows]).backward()
            optimizer.step()
