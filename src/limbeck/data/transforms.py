"""Augmentations whose randomness belongs to the sample, not to the batch.

A transform is called with a batch of normalised images, the samples' ids, the number of the view and a seed. Every
draw is a hash of (seed, view, the transform's name, sample id), so the same (id, view) is augmented the same way in
whatever batch, micro-batch or rank it sits and after a resume; teacher and student see the same picture. All of them
are differentiable in the images.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.noise import key_of, normal, uniform
from limbeck.errors import UserError
from limbeck.registry import register

Augmentation = Callable[[Tensor, Tensor, int, int], Tensor]
"""``(images [B, C, H, W], ids [B], view, seed) -> images``."""


class Transform(ABC):
    """Base of the augmentations: checks the images, and writes itself as it would be built (a fingerprint uses it)."""

    name: str

    def __call__(self, images: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """Augmented copies of ``images`` (float [B, C, H, W]); one draw per id (int64 [B]).

        Raises:
            UserError: the inputs are not images.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise UserError(f"'{self.name}' augments float images [B, C, H, W]; it was given {describe_tensor(images)}")
        return self.apply(images, ids, (seed, view, self.name))

    @abstractmethod
    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """The augmentation itself; ``key`` names its draws."""

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in sorted(vars(self).items()))})"


class Chain:
    """Transforms one after the other. Each place draws from a seed of its own, so two alike do not act alike."""

    def __init__(self, transforms: Sequence[Augmentation]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, images: Tensor, ids: Tensor, view: int, seed: int) -> Tensor:
        """The images after all transforms."""
        for place, transform in enumerate(self.transforms):
            images = transform(images, ids, view, key_of(seed, place))
        return images

    def __repr__(self) -> str:
        return " > ".join(describe(t) for t in self.transforms)


@register("transform", "flip")
class Flip(Transform):
    """Mirror an image left to right with probability ``p``. Not for digits or text."""

    name = "flip"

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = probability("flip", p)

    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """Mirrored where the draw is below ``p``."""
        chosen = uniform(ids, (1, 1, 1), key) < self.p
        return torch.where(chosen, images.flip(-1), images)


@register("transform", "crop")
class Crop(Transform):
    """Shift an image by up to ``padding`` pixels each way (pad, then cut the original size out at a random place).

    ``fill="zero"`` fills with the mean colour, which is zero after normalising; ``"reflect"`` mirrors the border.
    """

    name = "crop"

    def __init__(self, *, padding: int = 2, fill: Literal["zero", "reflect"] = "zero") -> None:
        if padding < 0 or fill not in ("zero", "reflect"):
            raise UserError(f"crop: padding must be at least 0 and fill zero or reflect; got {padding} and '{fill}'")
        self.padding = padding
        self.fill = fill

    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """Shifted by (dy, dx), each uniform in -padding..padding."""
        B, C, H, W = images.shape
        pad = self.padding
        if self.fill == "reflect" and pad >= min(H, W):
            raise UserError(f"crop: padding {pad} cannot reflect images of {H} x {W} pixels; it must be smaller")
        padded = F.pad(images, (pad,) * 4, mode="reflect" if self.fill == "reflect" else "constant")
        corner = (uniform(ids, (2,), key) * (2 * pad + 1)).long()
        rows = corner[:, :1] + torch.arange(H, device=images.device)
        columns = corner[:, 1:] + torch.arange(W, device=images.device)
        # One flat gather: several times faster than indexing by four tensors, and its backward is a plain scatter.
        flat = rows[:, :, None] * (W + 2 * pad) + columns[:, None, :]
        return padded.flatten(2).gather(2, flat.view(B, 1, H * W).expand(B, C, H * W)).view(B, C, H, W)


@register("transform", "cutout")
class Cutout(Transform):
    """Blank one square of side ``ratio`` times the image's, centred anywhere (so it may stick out over the border).

    The square becomes zero, the mean colour. Source: DeVries and Taylor 2017, arXiv 1708.04552.
    """

    name = "cutout"

    def __init__(self, *, ratio: float = 0.5, p: float = 1.0) -> None:
        if not 0.0 < ratio <= 1.0:
            raise UserError(f"cutout: ratio is the square's share of the image's side, in (0, 1]; got {ratio}")
        self.ratio = ratio
        self.p = probability("cutout", p)

    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """Zero inside the square, untouched outside."""
        H, W = images.shape[-2:]
        draw = uniform(ids, (3, 1, 1, 1), key)
        rows = _within(H, draw[:, 0], max(1, round(self.ratio * H)), images.device).view(-1, 1, H, 1)
        columns = _within(W, draw[:, 1], max(1, round(self.ratio * W)), images.device).view(-1, 1, 1, W)
        return images.masked_fill(rows & columns & (draw[:, 2] < self.p), 0.0)


@register("transform", "noise")
class Noise(Transform):
    """Add Gaussian noise of standard deviation ``std``, in units of the normalised images."""

    name = "noise"

    def __init__(self, *, std: float = 0.1) -> None:
        if std < 0:
            raise UserError(f"noise: std must be at least 0; got {std}")
        self.std = std

    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """Images plus noise."""
        return images + self.std * normal(ids, tuple(images.shape[1:]), key).to(images.dtype)


@register("transform", "brightness_contrast")
class BrightnessContrast(Transform):
    """Scale the contrast about the image's own mean by 1 +- ``contrast`` and shift the brightness by +- ``brightness``.

    Both are uniform draws; brightness is in units of the normalised images. Values are not clipped.
    """

    name = "brightness_contrast"

    def __init__(self, *, brightness: float = 0.2, contrast: float = 0.2) -> None:
        if brightness < 0 or not 0.0 <= contrast < 1.0:
            says = f"got brightness {brightness} and contrast {contrast}"
            raise UserError(f"brightness_contrast: brightness must be at least 0 and contrast in [0, 1); {says}")
        self.brightness = brightness
        self.contrast = contrast

    def apply(self, images: Tensor, ids: Tensor, key: tuple[int, int, str]) -> Tensor:
        """``mean + (x - mean) (1 + c) + b`` with c and b drawn per image."""
        draw = (2 * uniform(ids, (2, 1, 1, 1), key) - 1).to(images.dtype)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return mean + (images - mean) * (1 + self.contrast * draw[:, 0]) + self.brightness * draw[:, 1]


def describe(transform: Any) -> str:
    """A text that changes when what a transform does changes, as far as can be told: what fingerprints hash."""
    if transform is None:
        return ""
    kind = type(transform)
    if kind.__repr__ is not object.__repr__ and not inspect.isroutine(transform):
        return repr(transform)
    named = transform if inspect.isroutine(transform) else kind
    says = f"{named.__module__}.{named.__qualname__}"
    with suppress(OSError, TypeError):
        says += inspect.getsource(named)
    return says if named is transform else says + repr(sorted(vars(transform).items()))


def describe_tensor(tensor: Tensor) -> str:
    """Type and shape for a message: ``float32 [8, 64]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def probability(name: str, p: float) -> float:
    """``p``, once it is known to be a probability.

    Raises:
        UserError: it is not in [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise UserError(f"{name}: p is a probability, in [0, 1]; got {p}")
    return p


def _within(size: int, draw: Tensor, side: int, device: torch.device) -> Tensor:
    """Which of ``size`` positions lie in a stretch of ``side`` about a uniformly drawn centre: bool [B, size]."""
    centre = (draw.reshape(-1, 1) * size).long()
    place = torch.arange(size, device=device)
    start = centre - side // 2
    return (place >= start) & (place < start + side)
