"""A learnable set of images, and the real images it is made from and compared with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.data.base import DataSpec, Source
from limbeck.engine.noise import normal, uniform
from limbeck.errors import UserError


class SyntheticImages(nn.Module):
    """The student of data-set condensation: ``per_class`` images for each of ``classes`` classes.

    Calling it gives what a network is trained on, ``(images [N, ...], labels [N])``; that is :meth:`decode`, which a
    subclass with a denser store (tiles, latents) overrides. The state that is delivered is ``images`` and ``labels``.

    Args:
        images: first values, [classes * per_class, ...], sorted by class.
        labels: int64 [classes * per_class].
        limits: lowest and highest value that a real image can have, each broadcastable to one image.
        seed: what random initial images were drawn with.

    Raises:
        ValueError: not one label per image.
    """

    images: nn.Parameter
    labels: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, images: Tensor, labels: Tensor, limits: tuple[Tensor, Tensor] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        self.images = nn.Parameter(images.clone())
        self.register_buffer("labels", labels.clone())
        low, high = limits or (torch.tensor(-torch.inf), torch.tensor(torch.inf))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.seed = seed

    def forward(self) -> tuple[Tensor, Tensor]:
        """Images and labels to train on."""
        return self.decode()

    def decode(self) -> tuple[Tensor, Tensor]:
        """Images and labels to train on, differentiable in what is stored."""
        return self.images, self.labels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    @property
    def per_class(self) -> int:
        """Stored images of each class (IPC)."""
        return len(self.labels) // self.classes

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the stored pixels back to the range that real images have."""
        torch.clamp(self.images, self.low, self.high, out=self.images)

    @torch.no_grad()
    def replace_(self, images: Tensor) -> None:
        """Store these images instead.

        Raises:
            ValueError: their shape is not the stored one.
        """
        if images.shape != self.images.shape:
            raise ValueError(f"stored {tuple(self.images.shape)}, given {tuple(images.shape)}")
        self.images.copy_(images)


def image_set(student: nn.Module) -> SyntheticImages:
    """The student as a set of images.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(student, SyntheticImages):
        name = type(student).__name__
        raise UserError(f"condensation learns images: the student must be a set like synthetic_images, not {name}")
    return student


class RealImages:
    """A labelled source in memory, for methods that draw their own batches class by class.

    It holds the whole source as one tensor, so it is for data that fits, and shows each image as its first view (give
    the data no augmentation of its own). Unlabelled rows (-100) are left out.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        kept = (labels >= 0).nonzero()[:, 0]
        order = kept[labels[kept].argsort(stable=True)]
        self.images, self.labels, self.classes = images[order], labels[order], classes
        self.counts = torch.bincount(self.labels, minlength=classes).tolist()

    @classmethod
    def of(cls, source: Source, classes: int | None = None) -> RealImages:
        """All rows of a source.

        Raises:
            UserError: the source has no labels.
        """
        batch = source.batch(torch.arange(len(source)))
        if "label" not in batch:
            raise UserError("condensation works class by class: its training data needs a label for each image")
        found = int(batch["label"].max()) + 1
        return cls(batch["input"], batch["label"], classes or source.spec.classes or found)

    @classmethod
    def of_streams(cls, streams: Mapping[str, Source], classes: int | None = None) -> RealImages:
        """All rows of a run's training data: its only stream, or the one called ``labelled``.

        Raises:
            UserError: there is no such stream, or it has no labels.
        """
        if len(streams) != 1 and "labelled" not in streams:
            raise UserError("condensation needs labelled training data: one stream, or one of several named 'labelled'")
        return cls.of(streams.get("labelled", next(iter(streams.values()))), classes)

    def to(self, device: torch.device) -> RealImages:
        """Move the images and labels, in place."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self

    def of_class(self, label: int) -> Tensor:
        """All images of a class, [N_c, ...]."""
        start = sum(self.counts[:label])
        return self.images[start : start + self.counts[label]]

    def rows(self, per_class: int, key: Hashable) -> Tensor:
        """Row numbers of ``per_class`` images of each class (all, where there are fewer), drawn from a key alone.

        Drawn without replacement; int64, sorted by class.
        """
        if per_class >= max(self.counts):
            return torch.arange(len(self.labels), device=self.labels.device)
        rank = uniform(torch.arange(sum(self.counts)), (1,), key)[:, 0]
        shares = rank.split(self.counts)
        starts = [sum(self.counts[:c]) for c in range(self.classes)]
        picks = [start + share.argsort()[:per_class] for start, share in zip(starts, shares, strict=True)]
        return torch.cat(picks).to(self.labels.device)

    def draw(self, per_class: int, key: Hashable) -> tuple[Tensor, Tensor]:
        """Images and labels of :meth:`rows`."""
        rows = self.rows(per_class, key)
        return self.images[rows], self.labels[rows]

    def require(self, per_class: int) -> None:
        """Refuse to go on when a class has fewer images.

        Raises:
            UserError: naming the class.
        """
        for label, count in enumerate(self.counts):
            if count < per_class:
                raise UserError(
                    f"{per_class} images of each class are needed, but class {label} has {count} to train on"
                )


def first_images(real: RealImages, per_class: int, init: Literal["real", "mean"], seed: int) -> Tensor:
    """Initial images [classes * per_class, ...], sorted by class.

    ``real`` are random real images; ``mean`` deals each class at random into ``per_class`` shares and averages each
    (so images of a class differ, and one image is the class mean).

    Raises:
        UserError: a class has fewer real images than are asked for.
    """
    real.require(per_class)
    if init == "real":
        return real.draw(per_class, (seed, "first images"))[0]
    means = []
    for label in range(real.classes):
        images = real.of_class(label)
        order = uniform(torch.arange(len(images)), (1,), (seed, label, "shares"))[:, 0].argsort()
        means += [images[share].mean(0) for share in order.tensor_split(per_class)]
    return torch.stack(means)


def noise_images(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal images [count, *shape]."""
    return normal(torch.arange(count), tuple(shape), (seed, "first images"))


def valid_range(spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each channel of normalised images: (0 - m) / s and (1 - m) / s, else 0 and 1."""
    if not spec.mean or not spec.std:
        return torch.tensor(0.0), torch.tensor(1.0)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    view = (-1, *[1] * (len(spec.shape) - 1))
    return ((0 - mean) / std).view(view), ((1 - mean) / std).view(view)
