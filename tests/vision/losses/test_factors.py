"""The loss of factor transfer against its definition written out by hand, in float64."""

from __future__ import annotations

import pytest
import torch

from limbeck.vision.losses.factors import factor


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_directions_are_compared_entry_by_entry(p: float) -> None:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    wanted = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        a, b = s[i].flatten(), t[i].flatten()
        a, b = a / sum(x * x for x in a) ** 0.5, b / sum(x * x for x in b) ** 0.5
        wanted[i] = sum(abs(x - y) ** p for x, y in zip(a, b, strict=True)) / 32
    torch.testing.assert_close(factor(s, t, p=p), wanted)
    torch.testing.assert_close(factor(5 * s, t / 3, p=p), wanted)
    with pytest.raises(ValueError, match="same shape"):
        factor(s, t[:, :1])
