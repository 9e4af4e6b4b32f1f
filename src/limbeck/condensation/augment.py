"""Differentiable Siamese augmentation (DSA; Zhao and Bilen, ICML 2021, arXiv 2102.08259).

Gradients flow through every operation to the pixels. Random numbers are drawn apart from the images, as
:class:`Draws`, from a key alone: two batches augmented with the same draws get the same transformation, and a resumed
run draws what the uninterrupted one would have.

Paired use (:func:`siamese`): one draw per group, usually a class. Its operation *and* its numbers are shared by every
image of the group, in the real and in the synthetic batch, as the published code does it: within a class-batch all
images turn by the same angle. Unpaired use (:func:`unpaired`), for training on the finished set: one operation for
the batch, and for each image its own numbers. Contrast is about each image's own mean in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.noise import uniform

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The published strategy. Leave ``flip`` out where left and right differ in meaning (digits, text)."""

NUMBERS = 3
"""Random numbers that one operation may use."""


@dataclass(frozen=True)
class Strength:
    """How far each operation may go; the defaults are the published ones, and zero is the identity.

    Attributes:
        brightness: added, uniform in +- this (in units of the normalised image).
        saturation: distance to the grey image is multiplied by 1 +- this.
        contrast: distance to the image's mean is multiplied by 1 +- this.
        crop: shift of each axis, up to this share of the side; the border is zero.
        cutout: side of the square set to zero, as a share of the image's.
        flip: probability of a left-right flip.
        scale: each axis is magnified or shrunk by up to 1 + this.
        rotate: degrees, uniform in +- this.
    """

    brightness: float = 0.5
    saturation: float = 1.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 0.2
    rotate: float = 15.0


PUBLISHED = Strength()


@dataclass(frozen=True)
class Draws:
    """Random choices for G groups of images.

    Attributes:
        ops: names of the operations in play.
        op: which one each group gets, int64 [G], an index into ``ops``.
        numbers: the parameters' randomness in [0, 1), float32 [G, NUMBERS].
    """

    ops: tuple[str, ...]
    op: Tensor
    numbers: Tensor

    def group(self, number: int) -> Draws:
        """Those of one group alone."""
        return Draws(self.ops, self.op[number : number + 1], self.numbers[number : number + 1])


def siamese(groups: int, key: Hashable, ops: tuple[str, ...] = OPS) -> Draws:
    """One operation and one set of numbers for each of ``groups`` groups."""
    raw = uniform(torch.arange(groups), (1 + NUMBERS,), (key, "siamese"))
    return Draws(_known(ops), _pick(raw[:, 0], len(ops)), raw[:, 1:])


def unpaired(count: int, key: Hashable, ops: tuple[str, ...] = OPS) -> Draws:
    """One operation for all, and each of ``count`` images its own numbers."""
    one = _pick(uniform(torch.zeros(1, dtype=torch.int64), (1,), (key, "op"))[:, 0], len(ops))
    return Draws(_known(ops), one.expand(count), uniform(torch.arange(count), (NUMBERS,), (key, "numbers")))


def augment(
    images: Tensor, draws: Draws, groups: Tensor | Sequence[int] | None = None, strength: Strength = PUBLISHED
) -> Tensor:
    """Augment images [B, C, H, W]; differentiable in the pixels.

    Args:
        images: [B, C, H, W].
        draws: what to do for each group.
        groups: int64 [B], the group of each image (its label, in the paired use); or how many images each group has,
            of images that are sorted by group, so that nothing waits for a device; by default image i is group i.
        strength: limits of the operations.

    Raises:
        ValueError: the images are not four-dimensional, or there is not one group per image.
    """
    if images.dim() != 4:
        raise ValueError(f"images must be [B, C, H, W], got {tuple(images.shape)}")
    if groups is not None and not isinstance(groups, Tensor):
        groups = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
    count = len(draws.op) if groups is None else len(groups)
    if count != len(images):
        raise ValueError(f"{len(images)} images but {count} groups")
    op, numbers = draws.op, draws.numbers
    if groups is not None:
        op, numbers = op[groups.cpu()], numbers[groups.cpu()]
    numbers = numbers.to(images.device, images.dtype)
    used = draws.op.unique().tolist()
    if len(used) == 1:
        return OPERATIONS[draws.ops[used[0]]](images, numbers, strength)
    out = images
    for index in used:
        rows = (op == index).nonzero()[:, 0].to(images.device)
        if len(rows):
            out = out.index_copy(0, rows, OPERATIONS[draws.ops[index]](images[rows], numbers[rows], strength))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# From numbers in [0, 1) to an operation: each takes images [B, C, H, W], numbers [B, NUMBERS] and the limits


def _color(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    x = brighten(x, _symmetric(u[:, 0], s.brightness))
    x = saturate(x, 1 + _symmetric(u[:, 1], s.saturation))
    return contrast(x, 1 + _symmetric(u[:, 2], s.contrast))


def _crop(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    reach = [int(side * s.crop + 0.5) for side in x.shape[2:]]
    down, right = (_pick(u[:, i], 2 * m + 1) - m for i, m in enumerate(reach))
    return shift(x, down, right)


def _cutout(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    size = [int(side * s.cutout + 0.5) for side in x.shape[2:]]
    sides = zip(x.shape[2:], size, strict=True)
    # An even square may centre on either edge, an odd one on a pixel: the cut share is symmetric.
    y, z = (_pick(u[:, i], side + (1 - cut % 2)) for i, (side, cut) in enumerate(sides))
    return cutout(x, y, z, (size[0], size[1]))


def _flip(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    return torch.where((u[:, 0] < s.flip).view(-1, 1, 1, 1), x.flip(3), x)


def _scale(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    most = 1 + s.scale
    factor = 1 / most + u[:, :2] * (most - 1 / most)
    return affine(x, torch.diag_embed(factor))


def _rotate(x: Tensor, u: Tensor, s: Strength) -> Tensor:
    return rotate(x, _symmetric(u[:, 0], s.rotate))


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Strength], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


# ---------------------------------------------------------------------------------------------------------------------
# The operations, with explicit parameters [B]


def brighten(x: Tensor, amount: Tensor) -> Tensor:
    """Add ``amount`` [B] to each image [B, C, H, W]."""
    return x + amount.view(-1, 1, 1, 1)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Scale by ``factor`` [B] the distance of each pixel to its mean over channels (no effect on one channel)."""
    grey = x.mean(dim=1, keepdim=True)
    return grey + (x - grey) * factor.view(-1, 1, 1, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale by ``factor`` [B] the distance of each image to its own mean."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * factor.view(-1, 1, 1, 1)


def shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each image by whole pixels, int64 [B] each; what comes in is zero."""
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) - down[:, None] + 1).clamp(0, height + 1)
    columns = (torch.arange(width, device=x.device) - right[:, None] + 1).clamp(0, width + 1)
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    # The border of zeros gives the clamped positions their value.
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def cutout(x: Tensor, row: Tensor, column: Tensor, size: tuple[int, int]) -> Tensor:
    """Set to zero a rectangle of ``size`` centred at (row, column), int64 [B] each, cut at the image's edge."""
    inside = []
    for centre, side, cut in zip((row, column), x.shape[2:], size, strict=True):
        offset = torch.arange(side, device=x.device) - (centre[:, None] - cut // 2)
        inside.append((offset >= 0) & (offset < cut))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, 0.0)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image about its centre by ``degrees`` [B], anticlockwise; bilinear, zero outside."""
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The sampling grid spans [-1, 1] on both axes, so a turn in pixels needs the ratio of the sides.
    ratio = x.shape[2] / x.shape[3]
    return affine(x, torch.stack([cos, -sin * ratio, sin / ratio, cos], dim=1).view(-1, 2, 2))


def affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample each image at ``matrix`` [B, 2, 2] times the output position (x, y) in [-1, 1]; bilinear, zero outside."""
    theta = F.pad(matrix, (0, 1))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _symmetric(u: Tensor, limit: float) -> Tensor:
    return (2 * u - 1) * limit


def _pick(u: Tensor, choices: int) -> Tensor:
    """Uniform integer in 0 .. choices - 1 from a number in [0, 1)."""
    return (u * choices).long().clamp(max=choices - 1)


def _known(ops: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [op for op in ops if op not in OPERATIONS]
    if unknown or not ops:
        raise ValueError(f"augmentation operations must be among {', '.join(OPS)}; got {', '.join(ops) or 'none'}")
    return ops
