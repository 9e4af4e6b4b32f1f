"""Data to generate: the pictures of a classification set, and points of an exact mixture."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.arrays import from_splits
from limbeck.data.base import Data, Source
from limbeck.errors import UserError
from limbeck.registry import DataBlock, build, register

CHUNK = 4096


@register("data")
def pictures(*, of: DataBlock, size: int | None = None, labels: bool = True) -> Data:
    """The pictures of a data set, to generate more like them: normalised as they come, so of standard deviation 1.

    Args:
        of: the data set.
        size: height and width to shrink them to, by averaging; by default as they are.
        labels: whether their classes come with them.

    Raises:
        UserError: the set has no pictures.
    """
    given: Data = build("data", of)
    shape = given.spec.shape
    if len(shape) != 3:
        raise UserError(f"pictures: '{of.name}' has no pictures [C, H, W], its inputs are {list(shape)}")
    if size is not None and not 1 <= size <= min(shape[1:]):
        raise UserError(f"pictures: size must be from 1 to {min(shape[1:])}, not {size}")
    spec = replace(
        given.spec,
        task="generation",
        shape=shape if size is None else (shape[0], size, size),
        classes=given.spec.classes if labels else None,
        class_names=given.spec.class_names if labels else (),
    )
    splits = {"train": given.train, "val": given.val, "test": given.test}
    made = {name: _whole(source, size) for name, source in splits.items() if source is not None}
    return from_splits(made, spec, name=f"pictures of {of.name}")


def _whole(source: Source, size: int | None) -> tuple[Tensor, Tensor]:
    """All pictures, float32, and their labels."""
    parts = [source.batch(rows) for rows in torch.arange(len(source)).split(CHUNK)]
    images = torch.cat([p["input"] for p in parts])
    labels = torch.cat([p["label"] for p in parts])
    return (images if size is None else F.adaptive_avg_pool2d(images, size)), labels
