"""Segments of a trajectory: which places belong to one, and how stages share the training."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.segments import places_in_segments, stage_of

U = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("segments", "skip"), [(1, 1), (3, 1), (4, 2), (12, 5)])
def test_a_pair_and_its_end_are_in_one_segment(segments, skip):
    now, then, end = places_in_segments(U, 12, segments, skip)
    assert now.unique().tolist() == list(range(1, 13))
    edges = torch.arange(segments + 1) * 12 / segments
    start = torch.stack([edges[edges < n].max() for n in now])  # an edge is the top of the segment below it
    assert torch.equal(end, start)
    assert torch.equal(then, torch.maximum(now - skip, start))


def test_any_end_is_uniform_down_to_the_start():
    now, then, end = places_in_segments(U, 12, 2, 1, any_end=True)
    assert bool(((end <= then) & (end >= (now > 6) * 6)).all())
    shares = [float((end[now == 6] == k).float().mean()) for k in range(6)]
    assert shares == pytest.approx([1 / 6] * 6, abs=0.06)


def test_stages_are_of_the_same_length():
    assert [stage_of(k / 8, 4) for k in range(8)] == [(k // 2, k % 2 / 2) for k in range(8)]
    assert stage_of(1.0, 4) == (3, 1.0)
