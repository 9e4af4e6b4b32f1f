"""Losses between maps against definitions written out by hand, in float64."""

from __future__ import annotations

import pytest
import torch

from limbeck.vision.losses import attention


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_by_hand(s: torch.Tensor, t: torch.Tensor, p: float) -> torch.Tensor:
    def q(feature: torch.Tensor) -> torch.Tensor:
        found = torch.stack([(feature[:, c].abs() ** p) for c in range(feature.shape[1])]).sum(0).flatten(1)
        return found / found.pow(2).sum(1, keepdim=True).sqrt()

    return (q(s) - q(t)).square().mean(1)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_attention_is_the_papers(p: float) -> None:
    s, t = features(3, 4, 5, 5), features(3, 7, 5, 5, seed=1)
    torch.testing.assert_close(attention(s, t, p=p), attention_by_hand(s, t, p))


def test_attention_of_a_finer_grid_is_averaged_and_tokens_are_maps() -> None:
    s, t = features(3, 4, 4, 4), features(3, 7, 2, 2, seed=1)
    coarse = s.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close(attention(s, t), attention_by_hand(coarse, t, 2.0))
    tokens = torch.cat([features(3, 1, 4, seed=9), s.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(attention(tokens, t), attention(s, t))
    with pytest.raises(ValueError, match="as many samples"):
        attention(s, t[:2])
