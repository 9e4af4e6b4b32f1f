"""A step of matching distributions and gradients, beside a plain loop over the classes as published code has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Report, Row, now
from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.losses import gradient_distance
from limbeck.condensation.matching import MatchingMethod
from limbeck.condensation.methods.dc import DC
from limbeck.condensation.methods.dm import DM
from limbeck.condensation.networks import features_of, fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages
from limbeck.data.arrays import ArraySource
from limbeck.data.base import DataSpec
from limbeck.engine.method import Clock, Parts
from limbeck.registry import Block

ABOUT = "a step of dm and of dsa: limbeck's, and a plain loop over the classes (32 x 32 pixels, 10 images a class)"
CLASSES, PER_CLASS, REAL, BATCH = 10, 10, 500, 32
NET = Block("convnet", {"width": 32, "depth": 3})
OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
GOAL = 1.0


def run(*, quick: bool = False) -> Report:
    """Both ways in turns."""
    rounds, per_class = (2, 40) if quick else (9, REAL)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CLASSES * per_class, 3, 32, 32, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    ways: dict[str, tuple[Callable[[int], None], Callable[[int], None]]] = {
        "dm": (_ours(DM(net=NET, batch_real=BATCH, augment=OPS), images, labels), _plain(images, labels, _by_mean)),
        "dsa": (
            _ours(DC(net=NET, batch_real=BATCH, augment=OPS, outer=1, inner=0), images, labels),
            _plain(images, labels, _by_gradient),
        ),
    }
    rows: list[Row] = []
    for name, pair in ways.items():
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds + 1):
            for step, seconds in zip(pair, times, strict=True):
                began = now()
                step(number)
                if number:
                    seconds.append((now() - began).cpu)
        rows.append(Row.ratio(f"{name}: limbeck / plain", *times, goal=GOAL))
        rows += [Row.of(f"{name}: {way}", t, "s") for way, t in zip(("limbeck", "plain"), times, strict=True)]
    note = (
        f"processor time, one thread; {BATCH} real images a class, the paper's ConvNet with 32 channels, all operations"
    )
    return Report("matching_step", ABOUT, rows, [note])


def _start(labels: Tensor) -> SyntheticImages:
    generator = torch.Generator().manual_seed(1)
    few = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return SyntheticImages(torch.randn(len(few), 3, 32, 32, generator=generator), few)


def _ours(method: MatchingMethod, images: Tensor, labels: Tensor) -> Callable[[int], None]:
    spec = DataSpec(shape=(3, 32, 32), classes=CLASSES)
    student = _start(labels)
    source = ArraySource({"input": images, "label": labels}, spec)
    method.setup(Parts(student, data=spec, offers=spec.offers(), streams={"data": source}))
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0, momentum=0.5)

    def step(number: int) -> None:
        optimizer.zero_grad()
        (term,) = method.terms(Clock(number, 100)).values()
        term.sum.backward()
        optimizer.step()
        method.after_step(Clock(number, 100))

    return step


Gap = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""From a network, a class's real images, the student's and the class to what is made small."""


def _plain(images: Tensor, labels: Tensor, gap: Gap) -> Callable[[int], None]:
    real, student = RealImages(images, labels, CLASSES), _start(labels)
    offers = DataSpec(shape=(3, 32, 32), classes=CLASSES).offers()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0, momentum=0.5)

    def step(number: int) -> None:
        network = fresh_network(NET, offers, number)
        optimizer.zero_grad()
        total = torch.zeros(())
        for c in range(CLASSES):
            of_class = real.of_class(c)
            chosen = of_class[torch.randperm(len(of_class))[:BATCH]]
            own = student.images[c * PER_CLASS : (c + 1) * PER_CLASS]
            draws = siamese(1, (number, c), OPS)
            total = total + gap(network, augment(chosen, draws, [BATCH]), augment(own, draws, [PER_CLASS]), c)
        total.backward()
        optimizer.step()

    return step


def _by_mean(network: nn.Module, real: Tensor, own: Tensor, label: int) -> Tensor:
    network.requires_grad_(False)
    with torch.no_grad():
        wanted = features_of(network)(real).mean(0)
    return (features_of(network)(own).mean(0) - wanted).square().sum()


def _by_gradient(network: nn.Module, real: Tensor, own: Tensor, label: int) -> Tensor:
    weights = [p for p in network.parameters() if p.dim() > 1]
    losses = [F.cross_entropy(network(x), torch.full((len(x),), label)) for x in (real, own)]
    wanted = torch.autograd.grad(losses[0], weights)
    given = torch.autograd.grad(losses[1], weights, create_graph=True)
    return gradient_distance([g.detach() for g in wanted], given)
