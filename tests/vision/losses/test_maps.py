"""Losses between maps against definitions written out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.vision.losses import attention
from limbeck.vision.losses.maps import (
    activation_boundary,
    class_attention,
    cwd,
    fsp_matrix,
    nst,
    partial_l2,
    squared_error,
)


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


# -- neuron selectivity ------------------------------------------------------------------------------------------------


def mmd_by_hand(s: torch.Tensor, t: torch.Tensor, k) -> float:
    """Of one sample: the channels' directions, compared pair by pair."""
    a, b = ([row / row.norm() for row in side.flatten(1)] for side in (s, t))

    def mean(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> float:
        return sum(k(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


@pytest.mark.parametrize(("degree", "constant"), [(2, 0.0), (1, 0.0), (3, 0.7)])
def test_neuron_selectivity_is_the_papers_discrepancy(degree: int, constant: float) -> None:
    s, t = features(3, 4, 3, 3), features(3, 6, 3, 3, seed=1)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) + constant) ** degree

    got = nst(s, t, degree=degree, constant=constant)
    wanted = [mmd_by_hand(a, b, k) for a, b in zip(s, t, strict=True)]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_the_gaussian_kernel_has_the_mean_squared_distance_of_all_pairs() -> None:
    s, t = features(3, 4, 3, 3), features(3, 6, 3, 3, seed=1)
    for i, got in enumerate(nst(s, t, kernel="gaussian").tolist()):
        pooled = [row / row.norm() for side in (s[i], t[i]) for row in side.flatten(1)]
        apart = [float((x - y).square().sum()) for n, x in enumerate(pooled) for y in pooled[:n]]
        variance = sum(apart) / len(apart)

        def k(x: torch.Tensor, y: torch.Tensor, variance: float = variance) -> float:
            return math.exp(-float((x - y).square().sum()) / (2 * variance))

        assert got == pytest.approx(mmd_by_hand(s[i], t[i], k), rel=1e-9)


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_channels_in_another_order_or_scale_are_the_same_selectivity(kernel) -> None:
    s = features(2, 4, 3, 3)
    scaled = s.flip(1) * torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(nst(scaled, s, kernel=kernel), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert (nst(s, features(2, 4, 3, 3, seed=1), kernel=kernel) > 0).all()
    dead = torch.zeros(2, 4, 3, 3, requires_grad=True)
    nst(dead, s.float(), kernel=kernel).sum().backward()
    assert dead.grad is not None and dead.grad.isfinite().all()


# -- flows -------------------------------------------------------------------------------------------------------------


def test_a_flow_is_the_mean_over_cells_of_the_products_of_channels() -> None:
    first, second = features(2, 3, 4, 4), features(2, 5, 2, 2, seed=1)
    got = fsp_matrix(first, second)
    wanted = torch.zeros(2, 3, 5, dtype=torch.float64)
    for n, i, j in ((n, i, j) for n in range(2) for i in range(3) for j in range(5)):
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            block = first[n, i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            wanted[n, i, j] += block.max() * second[n, j, y, x] / 4
    torch.testing.assert_close(got, wanted)
    other = fsp_matrix(features(2, 3, 4, 4, seed=2), second)
    for i, distance in enumerate(squared_error(got, other).tolist()):
        pairs = zip(got[i].flatten().tolist(), other[i].flatten().tolist(), strict=True)
        assert distance == pytest.approx(sum((a - b) ** 2 for a, b in pairs))
    with pytest.raises(ValueError, match="as many samples"):
        fsp_matrix(first, second[:1])


# -- before the activation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_boundaries_are_the_papers_cases(margin: float) -> None:
    s, t = features(3, 4, 2, 2) * 2, features(3, 4, 2, 2, seed=1)
    wanted = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for a, b in zip(s[i].flatten().tolist(), t[i].flatten().tolist(), strict=True):
            if b <= 0 and a > -margin:
                wanted[i] += (a + margin) ** 2
            if b > 0 and a <= margin:
                wanted[i] += (a - margin) ** 2
    torch.testing.assert_close(activation_boundary(s, t, margin=margin), wanted)
    assert not activation_boundary(t.sign() * (margin + 0.1), t * 100, margin=margin).any()


def test_the_partial_distance_leaves_out_where_both_are_off() -> None:
    s, t = features(3, 4, 2, 2), features(3, 4, 2, 2, seed=1)
    wanted = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for a, b in zip(s[i].flatten().tolist(), t[i].flatten().tolist(), strict=True):
            wanted[i] += 0.0 if a <= b <= 0 else (b - a) ** 2
    torch.testing.assert_close(partial_l2(s, t), wanted)
    assert not partial_l2(-t.abs() - 1, -t.abs()).any()


# -- class maps and channels -------------------------------------------------------------------------------------------


def test_class_attention_is_the_mean_square_of_small_maps_of_length_one() -> None:
    s, t = features(3, 5, 4, 4), features(3, 5, 6, 6, seed=1)
    wanted = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for k in range(5):
            rows = []
            for m in (s[i, k], t[i, k]):
                half = m.shape[0] // 2
                small = torch.stack([q.mean() for r in m.split(half) for q in r.split(half, 1)])
                rows.append(small / small.norm())
            wanted[i] += (rows[0] - rows[1]).square().sum() / (5 * 4)
    torch.testing.assert_close(class_attention(s, t), wanted)
    assert not class_attention(s * 3, s, size=4).round(decimals=12).any(), "the length of a map does not matter"
    with pytest.raises(ValueError, match="samples and classes"):
        class_attention(s, t[:, :3])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_divergence_is_the_papers(temperature: float) -> None:
    s, t = features(3, 4, 3, 3) * 3, features(3, 4, 3, 3, seed=1) * 3
    wanted = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for c in range(4):
            p, q = ((m[i, c].flatten() / temperature).exp() for m in (t, s))
            p, q = p / p.sum(), q / q.sum()
            wanted[i] += temperature**2 / 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(cwd(s, t, temperature=temperature), wanted)
    tokens = [m.flatten(2).transpose(1, 2) for m in (s, t)]
    torch.testing.assert_close(cwd(*tokens, temperature=temperature), wanted)


@pytest.mark.parametrize("loss", [attention, nst, class_attention, cwd])
def test_a_single_cell_is_refused(loss) -> None:
    with pytest.raises(ValueError, match="more than one cell"):
        loss(features(3, 4), features(3, 4))
