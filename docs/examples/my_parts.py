"""A model and a data set of one's own, for a recipe to name: ``my_parts:make_net`` and ``my_parts:load``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_net(*, in_features: int, classes: int, hidden: int = 16) -> nn.Module:
    """Any module; ``in_features`` and ``classes`` come from the data, ``hidden`` from the recipe."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def load(*, rows: int = 600) -> dict[str, tuple[Tensor, Tensor]]:
    """Two interleaved spirals, as (inputs, labels) for each split."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(rows) % 2
    angle = torch.rand(rows, generator=generator) * 6 + 1
    turned = angle + label * torch.pi
    x = torch.stack([angle * turned.cos(), angle * turned.sin()], 1) / 4 + 0.05 * torch.randn(
        rows, 2, generator=generator
    )
    return {"train": (x[: rows // 2], label[: rows // 2]), "test": (x[rows // 2 :], label[rows // 2 :])}
