"""The loss of knowledge review against its definition written out by hand, in float64."""

from __future__ import annotations

import pytest
import torch

from limbeck.vision.losses.review import hcl


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled(feature: torch.Tensor, cells: int) -> torch.Tensor:
    """Means over blocks of a square map whose side the cells divide."""
    block = feature.shape[-1] // cells
    found = torch.zeros(*feature.shape[:2], cells, cells, dtype=feature.dtype)
    for i in range(cells):
        for j in range(cells):
            part = feature[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block]
            found[:, :, i, j] = part.sum((2, 3)) / block**2
    return found


def error(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.stack([((a - b) ** 2).sum() / a.numel() for a, b in zip(s, t, strict=True)])


def test_coarser_grids_weigh_a_half_a_quarter_and_an_eighth() -> None:
    s, t = maps(3, 2, 8, 8), maps(3, 2, 8, 8, seed=1)
    parts = [error(s, t), *(error(pooled(s, n), pooled(t, n)) for n in (4, 2, 1))]
    wanted = sum(part / 2**i for i, part in enumerate(parts)) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    torch.testing.assert_close(hcl(s, t), wanted)


def test_grids_that_are_not_coarser_are_left_out() -> None:
    s, t = maps(3, 2, 4, 4), maps(3, 2, 4, 4, seed=1)
    wanted = (error(s, t) + error(pooled(s, 2), pooled(t, 2)) / 2 + error(pooled(s, 1), pooled(t, 1)) / 4) / 1.75
    torch.testing.assert_close(hcl(s, t), wanted)
    torch.testing.assert_close(hcl(s, t, levels=()), error(s, t))
    torch.testing.assert_close(hcl(s[:, :, :1, :1], t[:, :, :1, :1]), error(s[:, :, :1, :1], t[:, :, :1, :1]))
    with pytest.raises(ValueError, match="same shape"):
        hcl(s, t[:, :, :2])
