"""Images whose pixels are decorrelated: what trajectory matching takes of CIFAR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.data.arrays import from_splits
from limbeck.data.base import Data, DataSpec, Source, unscaled
from limbeck.errors import UserError
from limbeck.registry import DataBlock, TransformBlock, build, register

CHUNK = 4096


@register("data")
def whitened(*, of: DataBlock, eps: float = 0.1, augment: list[TransformBlock] | None = None) -> Data:
    """The images of a data set, whitened by what its training images teach (ZCA; Krizhevsky 2009, appendix A).

    All splits are: what a set of images is learned from, what networks are trained on and what they are tested on. A
    report shows whitened pictures, zero as grey and the largest value of the training images as white or black.

    Args:
        of: the data set. It is taken without its own augmentation.
        eps: added to each variance, of pixels in [0, 1]: directions that vary less are not blown up.
        augment: transforms of the whitened training images.

    Raises:
        UserError: the set has no images or none to train on, or ``eps`` is not above 0.
    """
    if eps <= 0:
        raise UserError(f"whitened: eps must be above 0, not {eps:g}")
    given: Data = build("data", replace(of, args={k: v for k, v in of.args.items() if k != "augment"}))
    shape = given.spec.shape
    if len(shape) != 3 or given.train is None:
        raise UserError(f"whitened: '{of.name}' has no images [C, H, W] to learn from")
    splits = {"train": given.train, "val": given.val, "test": given.test}
    plain = {name: _rows(source) for name, source in splits.items() if source is not None}
    mean, matrix = zca(plain["train"][0], eps)
    made = {name: (whiten(images, mean, matrix), labels) for name, (images, labels) in plain.items()}
    return from_splits(made, _spec(given.spec, made["train"][0]), augment, f"whitened {of.name}")


def zca(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean [D] and symmetric matrix [D, D], ``U (S + eps)^(-1/2) U'``, that decorrelate images [N, ...] of D numbers.

    U and S are the eigenvectors and eigenvalues of the covariance; both results are float64.
    """
    rows = images.flatten(1).double()
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(len(rows) - 1, 1))
    return mean, (vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T


def whiten(images: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Images [N, ...] less the mean and times the matrix, float32."""
    return torch.cat([((x.flatten(1).double() - mean) @ matrix).float().view_as(x) for x in images.split(CHUNK)])


def _rows(source: Source) -> tuple[Tensor, Tensor]:
    """All images in [0, 1], and their labels."""
    parts: list[dict[str, Any]] = [source.batch(rows) for rows in torch.arange(len(source)).split(CHUNK)]
    images = torch.cat([unscaled(part["input"], source.spec) for part in parts])
    return images, torch.cat([part["label"] for part in parts])


def _spec(spec: DataSpec, images: Tensor) -> DataSpec:
    """With a mean and deviation that bring whitened values into [0, 1], for figures and for the range of pixels."""
    channels = spec.shape[0]
    return replace(spec, mean=(0.5,) * channels, std=(0.5 / float(images.abs().max()),) * channels)
