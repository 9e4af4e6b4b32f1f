"""The crops of real images that a trained network finds most like their class (Sun et al. 2024, arXiv 2312.03526)."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.relabel import random_crop
from limbeck.condensation.synthetic import RealImages
from limbeck.engine.noise import uniform
from limbeck.errors import UserError

CHUNK = 1024
"""Crops that are judged at a time."""


@torch.no_grad()
def realistic_crops(
    real: RealImages,
    count: int,
    judge: Callable[[Tensor], Tensor],
    key: Hashable,
    *,
    pool: int = 300,
    crops: int = 5,
    least: float = 0.08,
) -> Tensor:
    """``count`` crops of each class, [classes * count, ...], sorted by class and the best first.

    Of each class ``pool`` images are drawn (all, where it has fewer). Of ``crops`` random crops of an image the one
    with the highest realism ``-CE(judge(crop), class)`` stays, and of these the best ``count``.

    Args:
        real: the images.
        count: how many of each class.
        judge: from images [B, ...] to logits [B, K].
        key: of all draws.
        pool: images of each class that are looked at.
        crops: of each of them.
        least: share of the area that a crop has at least.

    Raises:
        UserError: a class has fewer than ``count`` images to look at.
    """
    if pool < count:
        raise UserError(f"{count} crops of each class are needed, one of each image, but the pool is of {pool} images")
    real.require(count)
    chosen = []
    for label in range(real.classes):
        images = real.of_class(label)
        drawn = images[uniform(torch.arange(len(images)), (1,), (key, label, "pool"))[:, 0].argsort()[:pool]]
        tried = torch.stack([random_crop(drawn, least, (key, label, n), flip=False) for n in range(crops)], 1)
        flat = tried.flatten(0, 1)
        logits = torch.cat([judge(piece).float() for piece in flat.split(CHUNK)])
        score = -F.cross_entropy(logits, torch.full((len(flat),), label, device=logits.device), reduction="none")
        best, place = score.view(len(drawn), crops).max(1)
        rows = best.argsort(descending=True, stable=True)[:count]
        chosen.append(tried[rows, place[rows]])
    return torch.cat(chosen)
