"""Fusion blocks against what they are said to compute."""

from __future__ import annotations

import pytest
import torch

from limbeck.vision.fusion import ABF, BatchNorm, Review


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_maps_are_weighed_cell_by_cell() -> None:
    block, own, deeper = ABF(3, 5, 7, (4, 4), "attention").eval(), maps(2, 3, 4, 4), maps(2, 5, 2, 2, seed=1)
    result, fused = block(own, deeper)
    entered = block.enter(own)
    large = torch.zeros(2, 5, 4, 4)
    for i in range(4):
        for j in range(4):
            large[:, :, i, j] = deeper[:, :, i // 2, j // 2]
    assert block.weigh is not None
    weights = torch.sigmoid(block.weigh(torch.cat([entered, large], 1)))
    wanted = entered * weights[:, 0][:, None] + large * weights[:, 1][:, None]
    torch.testing.assert_close(fused, wanted)
    torch.testing.assert_close(result, block.leave(wanted))


@pytest.mark.parametrize(("fusion", "share"), [("sum", 1.0), ("none", 0.0)])
def test_the_ablations_add_or_leave_out_what_is_deeper(fusion, share: float) -> None:
    block, own, deeper = ABF(3, 5, 7, (4, 4), fusion).eval(), maps(2, 3, 4, 4), maps(2, 5, 4, 4, seed=1)
    torch.testing.assert_close(block(own, deeper)[1], block.enter(own) + share * deeper)
    assert block.weigh is None


def test_a_review_goes_from_deep_to_shallow_into_the_teachers_shapes() -> None:
    own = [maps(2, 3, 8, 8), maps(2, 6, 4, 4), maps(2, 6, 1, 1)]
    other = [maps(2, 4, 8, 8), maps(2, 9, 2, 2), maps(2, 9, 1, 1)]
    review = Review(own, other, 5, "attention").eval()
    found = review(own)
    assert [f.shape for f in found] == [t.shape for t in other]
    third, down = review.blocks[2](own[2], None)
    second, down = review.blocks[1](own[1], down)
    torch.testing.assert_close(found, [review.blocks[0](own[0], down)[0], second, third])
    changed = review([own[0], own[1], own[2] + 1])
    assert all((a - b).abs().max() > 0 for a, b in zip(found, changed, strict=True)), "the deepest reaches every level"


def test_one_value_is_normalised_by_what_was_seen_before() -> None:
    norm = BatchNorm(3)
    norm(maps(4, 3, 2, 2) * 3 + 1)
    kept = {k: v.clone() for k, v in norm.state_dict().items()}
    single = maps(1, 3, 1, 1, seed=1)
    got = norm(single)
    assert all(torch.equal(v, kept[k]) for k, v in norm.state_dict().items())
    torch.testing.assert_close(got, norm.eval()(single))
