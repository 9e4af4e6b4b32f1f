"""Soft labels for every sight of an image: squeeze, recover and *relabel* (Yin et al. 2023, arXiv 2306.13092).

A set that is learnt for E epochs shows each image in E crops, mirrored or not and mixed with another. Which ones
follows from a seed alone, so that what is stored are the teachers' logits (half precision) and nothing of the sights:
FKD (Shen and Xing 2022, arXiv 2112.01528) without boxes on disk. :class:`Views` makes the sights, :class:`Lessons` puts
targets to them, and :func:`learn` trains a network on these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.noise import uniform

Mix = Literal["none", "cutmix", "mixup"]
Loss = Literal["kl", "mse"]
BETA = 0.8
"""Both parameters of MixUp's share."""
TRIES = 64
"""Pairs drawn for a Beta number; about six in ten are accepted."""
ASPECT = 4 / 3
"""Widest and, inverted, narrowest crop."""


@dataclass(frozen=True)
class Sight:
    """A batch as it is learnt.

    Attributes:
        places: where its images stand in the epoch, a slice.
        images: [B, C, H, W], cropped, mirrored and mixed.
        rows: int64 [B], which images of the set they are.
        partners: int64 [B], which are mixed into them; the same as ``rows`` where nothing is.
        share: float of ``rows`` in each; the rest is of ``partners``.
    """

    places: slice
    images: Tensor
    rows: Tensor
    partners: Tensor
    share: float


@dataclass(frozen=True)
class Views:
    """In what order, crops and mixtures a set is seen; all of it follows from ``seed`` and the epoch.

    Attributes:
        seed: of all randomness.
        batch_size: images in a batch.
        crop: least share of an image's area that a crop has; 1 shows whole images.
        flip: mirror half of the images.
        mix: what a batch's images are mixed by. ``cutmix`` puts one rectangle of another image into each, the same
            place for all (Yun et al. 2019), ``mixup`` adds up two (Zhang et al. 2018).
    """

    seed: int
    batch_size: int = 100
    crop: float = 0.08
    flip: bool = True
    mix: Mix = "cutmix"

    def epoch(self, images: Tensor, number: int) -> Iterator[Sight]:
        """The batches of an epoch over images [N, C, H, W]."""
        key = (self.seed, "sights", number)
        order = uniform(torch.arange(len(images)), (1,), (key, "order"))[:, 0].argsort()
        start = 0
        for batch, on_host in enumerate(order.split(self.batch_size)):
            rows = on_host.to(images.device)
            seen = random_crop(images[rows], self.crop, (key, batch), flip=self.flip)
            stop = start + len(rows)
            yield self._mixed(Sight(slice(start, stop), seen, rows, rows, 1.0), (key, batch, "mix"))
            start = stop

    def _mixed(self, sight: Sight, key: Hashable) -> Sight:
        if self.mix == "none" or len(sight.rows) < 2:
            return sight
        if self.mix == "cutmix":
            mixed, partner, share = cut_mixed(sight.images, key)
        else:
            partner, share = partners(sight.images, key), beta(key, BETA)
            mixed = share * sight.images + (1 - share) * sight.images[partner]
        return Sight(sight.places, mixed, sight.rows, sight.rows[partner], share)


def partners(images: Tensor, key: Hashable) -> Tensor:
    """For each image of a batch another to mix it with, a permutation, int64 [B]."""
    return uniform(torch.arange(len(images)), (1,), (key, "partner"))[:, 0].argsort().to(images.device)


def cut_mixed(images: Tensor, key: Hashable) -> tuple[Tensor, Tensor, float]:
    """Images with one rectangle of another in them, which other [B], and the share of the area that is their own."""
    partner, mixed = partners(images, key), images.clone()
    top, bottom, left, right = rectangle(tuple(images.shape[2:]), key)
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / mixed[0, 0].numel()


def random_crop(
    images: Tensor,
    least: float,
    key: Hashable,
    *,
    flip: bool = True,
    most: float = 1.0,
    ids: Tensor | None = None,
) -> Tensor:
    """A crop of each image [B, C, H, W], enlarged to its size (bilinear), half of them mirrored; differentiable.

    The area's share is uniform in [``least``, ``most``], the logarithm of the aspect in +- log 4/3 as far as the image
    is wide and high enough, and the place uniform. Images with the same of the ``ids`` (int64 [B]) are cropped alike.
    """
    draws = uniform(torch.arange(len(images)) if ids is None else ids, (5,), (key, "crop"))
    area = least + (most - least) * draws[:, 0]
    # A crop no wider and no higher than the image has sqrt(aspect) within sqrt(area) and its inverse.
    bound = torch.minimum(torch.full_like(area, math.log(ASPECT)), -torch.log(area)).clamp(min=0)
    ratio = torch.exp((2 * draws[:, 1] - 1) * bound / 2)
    wide, high = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    # In a grid from -1 to 1 a crop of relative width w has its centre in +- (1 - w).
    x, y = (2 * draws[:, 2] - 1) * (1 - wide), (2 * draws[:, 3] - 1) * (1 - high)
    mirrored = torch.where(draws[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(wide)
    if least >= 1 and not flip:
        return images
    zero = torch.zeros_like(wide)
    theta = torch.stack([wide * mirrored, zero, x, zero, high, y], 1).view(-1, 2, 3)
    theta = theta.to(images.device, images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rectangle(size: tuple[int, ...], key: Hashable) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of CutMix's rectangle, whose area is a uniform share before it is cut at the edge."""
    cut, y, x = uniform(torch.zeros(1, dtype=torch.int64), (3,), (key, "rectangle"))[0].tolist()
    edges = []
    for side, at in zip(size, (y, x), strict=True):
        length, centre = int(side * math.sqrt(cut)), int(side * at)
        edges += [max(0, centre - length // 2), min(side, centre + length // 2)]
    return edges[0], edges[1], edges[2], edges[3]


def beta(key: Hashable, parameter: float) -> float:
    """A number from Beta(a, a), a at most 1, by Jöhnk's method: u^(1/a) / (u^(1/a) + v^(1/a)) if that sum is <= 1."""
    u, v = (uniform(torch.arange(TRIES), (2,), (key, "beta")).double() ** (1 / parameter)).unbind(1)
    first = int(((u + v <= 1) & (u + v > 0)).long().argmax())
    return float(u[first] / (u[first] + v[first]))


@dataclass(frozen=True)
class Lessons:
    """How a set asks to be learnt: its sights, and the targets of each.

    Attributes:
        images: [N, C, H, W], as they are before they are cropped.
        views: the sights.
        epochs: passes over the images.
        target: from the epoch and a sight to logits [B, K] of the teachers, or, where ``temperature`` is None, to
            probabilities.
        temperature: of the divergence KL(teacher || student), which is not multiplied by its square; None for the
            cross-entropy with the targets.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        smooth: the rate falls as ``(1 + cos(pi e / (smooth E))) / 2``: with 1 to zero, with 2 to a half.
        labels: hard ones of the images, int64 [N]; with them the loss is the mean squared error of the logits and
            ``gamma`` times the cross-entropy with a sight's own labels (G-VBSM; arXiv 2311.17950).
        gamma: of that cross-entropy.
    """

    images: Tensor
    views: Views
    epochs: int
    target: Callable[[int, Sight], Tensor]
    temperature: float | None = 20.0
    lr: float = 1e-3
    weight_decay: float = 0.01
    smooth: float = 1.0
    labels: Tensor | None = None
    gamma: float = 0.1

    def loss(self, logits: Tensor, target: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean over the batch, a scalar; ``rows`` says which images it is of, where hard labels count."""
        if self.labels is not None:
            return F.mse_loss(logits, target) + self.gamma * F.cross_entropy(logits, self.labels[rows])
        if self.temperature is None:
            return F.cross_entropy(logits, target)
        said, wanted = (F.log_softmax(z / self.temperature, 1) for z in (logits, target))
        return F.kl_div(said, wanted, reduction="batchmean", log_target=True)


def learn(network: nn.Module, lessons: Lessons) -> nn.Module:
    """Train a network by a set's own lessons, and return it in evaluation mode."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lessons.lr, weight_decay=lessons.weight_decay)
    for epoch in range(lessons.epochs):
        for group in optimizer.param_groups:
            group["lr"] = lessons.lr * (1 + math.cos(math.pi * epoch / (lessons.smooth * lessons.epochs))) / 2
        for sight in lessons.views.epoch(lessons.images, epoch):
            optimizer.zero_grad()
            lessons.loss(network(sight.images), lessons.target(epoch, sight), sight.rows).backward()
            optimizer.step()
    return network.eval()


def mixed_classes(labels: Tensor, classes: int, sight: Sight) -> Tensor:
    """The hard labels [N] of a sight's images, mixed as these are: probabilities [B, classes]."""
    own, other = (F.one_hot(labels[rows], classes).float() for rows in (sight.rows, sight.partners))
    return sight.share * own + (1 - sight.share) * other


@torch.no_grad()
def relabelled(images: Tensor, views: Views, epochs: int, label: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of every sight, float16 [epochs, N, K], in the order in which it is seen.

    Args:
        images: [N, C, H, W].
        views: the sights.
        epochs: how many times all are seen.
        label: from images [B, C, H, W] to logits [B, K].
    """
    told = (torch.cat([label(s.images).to(torch.float16) for s in views.epoch(images, e)]) for e in range(epochs))
    return torch.stack(list(told))
