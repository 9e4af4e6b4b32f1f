"""Two uses of a condensed set: what a network that goes on learning remembers by, and what candidates are compared on.

``python condensed_uses.py STUDENT`` takes the folder of a condensed set of digits, as a run leaves it.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import limbeck
from limbeck.condensation.networks import accuracy, descend, fresh_network, post_train
from limbeck.condensation.synthetic import RealImages
from limbeck.registry import Block, build

DIGITS = build("data", Block("digits", {}))
REAL = RealImages.of(DIGITS.train)
TEST = DIGITS.test.batch(torch.arange(len(DIGITS.test)))
OPS = ("color", "crop", "cutout", "scale", "rotate")
TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def continual(buffer: tuple[Tensor, Tensor] | None, seed: int) -> float:
    """Accuracy on all ten digits after five tasks of two, with a few images of the earlier ones to go on seeing."""
    block = Block("convnet", {"width": 32, "depth": 2})
    network = fresh_network(block, DIGITS.spec.offers(), ("continual", seed))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for number, task in enumerate(TASKS):
        images, labels = (torch.cat(parts) for parts in zip(*(_of_digit(digit) for digit in task), strict=True))
        for epoch in range(20):
            if buffer is not None and number:
                old = buffer[1] < task[0]
                # As many old rows as new ones, so that no task counts for more.
                rows = old.nonzero()[:, 0].repeat(1 + len(labels) // int(old.sum()))[: len(labels)]
                shown = torch.cat([images, buffer[0][rows]]), torch.cat([labels, buffer[1][rows]])
            else:
                shown = images, labels
            descend(network, optimizer, *shown, 64, OPS, (("continual", seed, number), epoch))
    return accuracy(network.eval(), TEST["input"], TEST["label"], 256)


def proxy(train: tuple[Tensor, Tensor], seed: int) -> list[float]:
    """Accuracies of twelve candidate networks that were trained on these images."""
    found = []
    for width, depth, norm in product((4, 16), (1, 2, 3), ("instance", "none")):
        block = Block("convnet", {"width": width, "depth": depth, "norm": norm})
        network = fresh_network(block, DIGITS.spec.offers(), ("proxy", seed))
        epochs = max(5, 6000 // len(train[1]))  # as many images in all, whatever the set
        post_train(network, *train, epochs=epochs, lr=0.01, batch_size=64, ops=OPS, key=("proxy", seed))
        found.append(accuracy(network, TEST["input"], TEST["label"], 256))
    return found


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's."""
    ranks = torch.stack([torch.tensor(x).argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _of_digit(digit: int) -> tuple[Tensor, Tensor]:
    images = REAL.of_class(digit)
    return images, torch.full((len(images),), digit)


def main(folder: str) -> None:
    """Print both comparisons, means over three seeds."""
    with torch.no_grad():
        condensed = tuple(t.detach() for t in limbeck.load(Path(folder))())
    few = len(condensed[1]) // 10
    for name in ("nothing", "random", "condensed"):
        scores = []
        for seed in range(3):
            buffer = {"nothing": None, "random": REAL.draw(few, seed), "condensed": condensed}[name]
            scores.append(continual(buffer, seed))
        print(f"continual, remembering by {name}: {sum(scores) / 3:.3f}  {[round(s, 3) for s in scores]}")
    whole = [proxy((REAL.images, REAL.labels), seed) for seed in range(3)]
    for name in ("random", "condensed"):
        found = [
            rank_correlation(proxy(REAL.draw(few, seed) if name == "random" else condensed, seed), whole[seed])
            for seed in range(3)
        ]
        print(f"candidates ranked on {name}: {sum(found) / 3:.3f}  {[round(f, 3) for f in found]}")


if __name__ == "__main__":
    main(sys.argv[1])
