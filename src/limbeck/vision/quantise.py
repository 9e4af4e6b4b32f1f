"""Numbers on few levels: scaling in buckets, uniform and given levels, and what it takes to store them."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from limbeck.losses import wide


def scaled(values: Tensor, bucket_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values in [0, 1] by bucket [n, size], each bucket's least value [n, 1] and its span [n, 1].

    ``values = low + span * scaled``, row by row in order; the last bucket is filled up with its last value. A bucket of
    equal values is 0 everywhere (Polino et al. 2018, section 2.1: linear scaling).

    Args:
        values: of any shape.
        bucket_size: None for a single bucket.

    Raises:
        ValueError: a bucket of no value.
    """
    if bucket_size is not None and bucket_size < 1:
        raise ValueError(f"a bucket holds at least 1 value, not {bucket_size}")
    flat = wide(values).flatten()
    size = min(bucket_size or len(flat), len(flat))
    rows = torch.cat([flat, flat[-1:].expand(-len(flat) % size)]).view(-1, size)
    low, high = rows.aminmax(dim=1, keepdim=True)
    span = high - low
    return (rows - low) / torch.where(span > 0, span, torch.ones_like(span)), low, span


def unscaled(rows: Tensor, low: Tensor, span: Tensor, like: Tensor) -> Tensor:
    """The values in their old shape and type, from rows in [0, 1]."""
    return (low + span * rows).flatten()[: like.numel()].view_as(like).to(like.dtype)


def on_grid(rows: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """Values in [0, 1] on ``2^bits`` uniform levels, same shape (Polino et al. 2018, section 2.2).

    Args:
        rows: in [0, 1].
        bits: at least 1.
        noise: uniform in [0, 1), of the same shape: a value goes up with the probability that keeps its mean. Without
            it each goes to the nearest level.

    Raises:
        ValueError: fewer than one bit.
    """
    if bits < 1:
        raise ValueError(f"a level needs at least 1 bit, not {bits}")
    steps = 2**bits - 1
    below = (rows * steps).floor()
    rest = rows * steps - below
    return (below + (rest > (0.5 if noise is None else noise)).to(rows.dtype)) / steps


def quantised(values: Tensor, bits: int, bucket_size: int | None = 256, noise: Tensor | None = None) -> Tensor:
    """The values on ``2^bits`` uniform levels between each bucket's least and largest, same shape and type.

    Args:
        values: of any shape.
        bits: at least 1.
        bucket_size: how many values share a scale; None for all.
        noise: uniform in [0, 1), one for each value, for stochastic rounding.

    Raises:
        ValueError: fewer than one bit, or a bucket of no value.
    """
    rows, low, span = scaled(values, bucket_size)
    draws = None if noise is None else _padded(noise, rows)
    return unscaled(on_grid(rows, bits, draws), low, span, values)


def _padded(noise: Tensor, rows: Tensor) -> Tensor:
    flat = noise.flatten()
    return torch.cat([flat, flat.new_zeros(rows.numel() - len(flat))]).view_as(rows)


def at_points(values: Tensor, points: Tensor, bucket_size: int | None = 256) -> Tensor:
    """Each value at the nearest point of its bucket's scale, with the gradient of the points.

    The gradient of a point is the sum over its values of the bucket's span times theirs (Polino et al. 2018, eq. 8).

    Args:
        values: of any shape.
        points: levels in [0, 1], [n].
        bucket_size: how many values share a scale; None for all.
    """
    rows, low, span = scaled(values, bucket_size)
    sorted_points, order = points.detach().to(rows.dtype).sort()
    middles = (sorted_points[1:] + sorted_points[:-1]) / 2
    nearest = order[torch.bucketize(rows, middles)]
    return unscaled(points[nearest], low, span, values)


def quantile_points(values: Tensor, count: int, bucket_size: int | None = 256) -> Tensor:
    """``count`` levels in [0, 1] with as many scaled values around each: the quantiles at ``(i + 1/2) / count``."""
    rows, _, _ = scaled(values, bucket_size)
    ordered = rows.flatten()[: values.numel()].sort().values
    places = (torch.arange(count, device=ordered.device, dtype=torch.float64) + 0.5) / count * len(ordered)
    return ordered[places.long().clamp(max=len(ordered) - 1)]


def huffman_bits(counts: list[int]) -> int:
    """Length of the best prefix code of symbols that occur so often; a single symbol takes one bit each time."""
    if len(counts) == 1:
        return counts[0]
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def packed_bits(values: Tensor, bucket_size: int | None = 256, levels: int = 256) -> int:
    """Bits to store a tensor: Huffman-coded levels, two floats a bucket and one a level; 32 a value if that is less.

    Args:
        values: of any shape.
        bucket_size: how many values share a scale.
        levels: a tensor with more distinct scaled values than this is taken for floats.
    """
    rows, low, _ = scaled(values.detach(), bucket_size)
    # Scaling back leaves rounding errors; four digits tell 256 levels apart.
    found, counts = (rows.flatten()[: values.numel()] * 1e4).round().unique(return_counts=True)
    whole = 32 * values.numel()
    if len(found) > levels:
        return whole
    return min(whole, huffman_bits(counts.tolist()) + 64 * len(low) + 32 * len(found))
