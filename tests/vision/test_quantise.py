"""Quantisation against loops in float64, and its gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from limbeck.vision.quantise import (
    at_points,
    huffman_bits,
    on_grid,
    packed_bits,
    quantile_points,
    quantised,
    scaled,
    unscaled,
)

G = torch.Generator().manual_seed(0)
VALUES = torch.randn(3, 7, generator=G, dtype=torch.float64)


def bucket_of(i: int, size: int) -> list[float]:
    flat = VALUES.flatten().tolist()
    return flat[i // size * size : i // size * size + size]


@pytest.mark.parametrize("size", [4, 5, 21, 100])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_each_value_goes_to_the_nearest_uniform_level_of_its_bucket(size: int, bits: int) -> None:
    got = quantised(VALUES, bits, size).flatten()
    for i, v in enumerate(VALUES.flatten().tolist()):
        low, high = min(bucket_of(i, size)), max(bucket_of(i, size))
        levels = [low + (high - low) * k / (2**bits - 1) for k in range(2**bits)]
        assert got[i].item() == pytest.approx(min(levels, key=lambda x: abs(x - v)), abs=1e-12)


def test_stochastic_rounding_keeps_the_mean_and_stays_next_to_the_value() -> None:
    rows = torch.rand(50, 1, generator=G, dtype=torch.float64).expand(50, 4000)
    got = on_grid(rows, 2, torch.rand(50, 4000, generator=G, dtype=torch.float64))
    torch.testing.assert_close(got.mean(1), rows[:, 0], atol=0.02, rtol=0)
    assert ((got - rows).abs() < 1 / 3).all()
    noise = torch.rand(3, 7, generator=G, dtype=torch.float64)
    one = quantised(VALUES, 2, 5, noise)
    assert not torch.equal(one, quantised(VALUES, 2, 5)) and torch.equal(one, quantised(VALUES, 2, 5, noise))


def test_scaling_is_undone_and_equal_values_stay() -> None:
    for size in (4, None):
        torch.testing.assert_close(unscaled(*scaled(VALUES, size), VALUES), VALUES)
    flat = torch.full((5,), 0.3)
    assert torch.equal(quantised(flat, 2, 2), flat)
    assert quantised(VALUES.half(), 8).dtype == torch.float16


def test_the_gradient_of_a_point_is_the_span_weighted_sum_over_its_values() -> None:
    points = torch.tensor([0.8, 0.1, 0.45], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 7, generator=G, dtype=torch.float64)
    (at_points(VALUES, points, 5) * weights).sum().backward()
    wanted = [0.0, 0.0, 0.0]
    for i, v in enumerate(VALUES.flatten().tolist()):
        low, span = min(bucket_of(i, 5)), max(bucket_of(i, 5)) - min(bucket_of(i, 5))
        place = (v - low) / (span or 1)
        j = min(range(3), key=lambda k: abs(points[k].item() - place))
        wanted[j] += span * weights.flatten()[i].item()
    torch.testing.assert_close(points.grad, torch.tensor(wanted, dtype=torch.float64))


def test_uniform_points_are_the_grid() -> None:
    torch.testing.assert_close(at_points(VALUES, torch.linspace(0, 1, 8).double(), 5), quantised(VALUES, 3, 5))


def test_quantile_points_share_the_values_evenly() -> None:
    points = quantile_points(torch.arange(80.0), 4, None)
    torch.testing.assert_close(points * 79, torch.tensor([10.0, 30.0, 50.0, 70.0]))


def test_huffman_is_the_best_prefix_code() -> None:
    counts = [5, 1, 2, 7]
    lengths = [c for c in product(range(1, 4), repeat=4) if sum(2.0**-n for n in c) <= 1]
    assert huffman_bits(counts) == min(sum(n * k for n, k in zip(c, counts, strict=True)) for c in lengths)
    assert huffman_bits([9]) == 9


def test_packing_tells_levels_from_floats() -> None:
    w = torch.randn(64, 64, generator=G)
    assert packed_bits(w, 256) == 32 * 4096
    four = packed_bits(quantised(w, 4, 256), 256)
    assert 2 * 4096 < four <= 4 * 4096 + 16 * 64 + 16 * 32
    assert packed_bits(quantised(w, 2, 256), 256) < four


def test_senseless_sizes_are_refused() -> None:
    for wrong in (lambda: quantised(VALUES, 0), lambda: quantised(VALUES, 2, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            wrong()
