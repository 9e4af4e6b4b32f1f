"""Choosing what to learn from in a pool of samples without labels, by what a teacher says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.devices import device_of, to_device
from limbeck.engine.teacher import Teacher

ROWS = 256
"""Samples that the teacher is asked about at once."""


def top_per_class(probabilities: Tensor, k: int) -> Tensor:
    """Rows (int64, ascending) that are among the ``k`` surest of their predicted class, [N, K] -> [n].

    A class with fewer rows gives all it has. Equally sure rows are taken in their order.

    Raises:
        ValueError: ``k`` is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort(descending=True, stable=True)
    by_class = order[predicted[order].argsort(stable=True)]
    sizes = torch.bincount(predicted, minlength=probabilities.shape[1])
    first = (sizes.cumsum(0) - sizes)[predicted[by_class]]
    rank = torch.arange(len(by_class), device=by_class.device) - first
    return by_class[rank < k].sort().values


def predictions(teacher: Teacher, source: Source) -> tuple[Tensor, Tensor]:
    """Ids [N] and the teacher's probabilities [N, K] of all samples of a source, in its order, on the CPU."""
    ids, found = [], []
    for rows in torch.arange(len(source)).split(ROWS):
        batch = source.batch(rows)
        ids.append(batch["id"].cpu())
        found.append(teacher.compute(to_device(batch, device_of(teacher.module))).logits.float().softmax(-1).cpu())
    return torch.cat(ids), torch.cat(found)
