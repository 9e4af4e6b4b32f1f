"""A small labelled data set: three classes of blobs, 8 x 8."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.base import Batch, Data, DataSpec

SPEC = DataSpec(shape=(1, 8, 8), classes=3, class_names=("a", "b", "c"), mean=(0.5,), std=(0.25,))


class Rows:
    """A source in memory."""

    fingerprint = "rows"

    def __init__(self, images: torch.Tensor, labels: torch.Tensor | None, spec: DataSpec = SPEC) -> None:
        self.images, self.labels, self.spec = images, labels, spec

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: torch.Tensor, view: int = 0) -> Batch:
        label = {} if self.labels is None else {"label": self.labels[indices]}
        return {"input": self.images[indices], "id": indices, "view": view, **label}


def blobs(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label : 2 * label + 3, 1:6] += 2
    return Rows(images, labels)


@pytest.fixture
def data() -> Data:
    return Data(SPEC, train=blobs(45, 0), test=blobs(30, 1))
