"""Differentiable Siamese augmentation: paired draws, gradients to pixels, and each operation against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.condensation.augment import (
    OPERATIONS,
    OPS,
    Strength,
    affine,
    augment,
    brighten,
    contrast,
    cutout,
    rotate,
    saturate,
    shift,
    siamese,
    unpaired,
)

ZERO = Strength(0, 0, 0, 0, 0, 0, 0, 0)


def images(count: int = 6, channels: int = 3, size: int = 8, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


# -- pairing


def test_real_and_synthetic_images_of_a_class_get_the_same_transformation():
    x = images(4)
    draws = siamese(10, ("run", 3))
    real = augment(x, draws, torch.tensor([7, 2, 7, 5]))
    synthetic = augment(x[[1, 3, 2]], draws, torch.tensor([2, 5, 7]))
    assert torch.allclose(synthetic, real[[1, 3, 2]], atol=1e-6)


def test_every_image_of_a_class_shares_the_draw():
    x = images(1).expand(5, -1, -1, -1)
    for key in range(20):
        out = augment(x, siamese(3, key), torch.full((5,), 1))
        assert (out - out[:1]).abs().max() < 1e-6


def test_classes_and_keys_draw_apart():
    x = images(1).expand(8, -1, -1, -1)
    first = augment(x, siamese(8, 0, ("rotate",)), torch.arange(8))
    assert len({tuple(o.flatten().tolist()) for o in first}) == 8
    assert not torch.equal(first, augment(x, siamese(8, 1, ("rotate",)), torch.arange(8)))
    assert torch.equal(first, augment(x, siamese(8, 0, ("rotate",)), torch.arange(8)))


def test_unpaired_draws_share_the_operation_but_not_its_numbers():
    operations = {op: unpaired(50, op).op.unique().numel() for op in range(30)}
    assert set(operations.values()) == {1}
    assert len({int(unpaired(1, key).op) for key in range(60)}) == len(OPS)
    assert unpaired(50, 0).numbers.unique(dim=0).shape[0] == 50


def test_a_mixed_batch_equals_one_call_per_group():
    x, groups, draws = images(12), torch.arange(12) % 4, siamese(4, "mixed")
    assert draws.op.unique().numel() > 1
    whole = augment(x, draws, groups)
    for group in range(4):
        assert torch.allclose(whole[groups == group], augment(x[groups == group], draws, groups[groups == group]))
        assert torch.allclose(whole[groups == group], augment(x[groups == group], draws.group(group), [3]))


def test_sizes_of_groups_say_what_numbers_of_groups_do():
    x, draws = images(12), siamese(4, "mixed")
    groups = torch.tensor([0] * 5 + [2] * 6 + [3])
    assert torch.equal(augment(x, draws, [5, 0, 6, 1]), augment(x, draws, groups))


# -- gradients and identity


@pytest.mark.parametrize("op", OPS)
def test_gradient_reaches_the_pixels_and_is_right(op):
    x = images(3, 2, 5, torch.float64).requires_grad_()
    draws = siamese(3, "gradient", (op,))
    assert torch.autograd.gradcheck(lambda v: augment(v, draws, torch.arange(3)), (x,))


@pytest.mark.parametrize("op", OPS)
def test_zero_strength_is_the_identity(op):
    x = images()
    assert torch.allclose(augment(x, unpaired(6, 1, (op,)), strength=ZERO), x, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_default_strength_is_not_the_identity(op):
    assert not torch.allclose(augment(images(), unpaired(6, 2, (op,))), images(), atol=1e-3)


def test_draws_stay_within_the_published_limits():
    u = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1))
    one = torch.ones(2000, 1, 1, 1)
    shifted = OPERATIONS["color"](one, u, Strength(saturation=0, contrast=0)) - 1
    assert -0.5 <= shifted.min() < -0.49
    assert 0.49 < shifted.max() <= 0.5
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand(2000, 1, 2, 2)
    factor = OPERATIONS["color"](checker, u, Strength(brightness=0, saturation=0))[:, 0, 0, 0]
    assert 0.5 <= factor.min() < 0.51
    assert 1.49 < factor.max() <= 1.5


def test_crop_reaches_every_shift_and_no_further():
    x = torch.zeros(400, 1, 16, 16)
    x[:, :, 8, 8] = 1
    at = OPERATIONS["crop"](x, torch.rand(400, 3, generator=torch.Generator().manual_seed(1)), Strength()).nonzero()
    assert set((at[:, 2] - 8).tolist()) == set((at[:, 3] - 8).tolist()) == {-2, -1, 0, 1, 2}


# -- operations against independent definitions


def test_shift_moves_by_whole_pixels():
    x = images(2)
    out = shift(x, torch.tensor([2, -1]), torch.tensor([-3, 0]))
    expected = np.zeros_like(x.numpy())
    expected[0, :, 2:, :-3] = x[0, :, :-2, 3:].numpy()
    expected[1, :, :-1, :] = x[1, :, 1:, :].numpy()
    assert np.array_equal(out.numpy(), expected)


def test_shift_by_the_whole_side_leaves_nothing():
    assert shift(images(1), torch.tensor([8]), torch.tensor([0])).abs().sum() == 0


def test_cutout_zeroes_the_square():
    out = cutout(torch.ones(3, 1, 6, 6), torch.tensor([3, 0, 6]), torch.tensor([2, 0, 3]), (4, 3))
    expected = np.ones((3, 1, 6, 6))
    expected[0, 0, 1:5, 1:4] = 0
    expected[1, 0, 0:2, 0:2] = 0
    expected[2, 0, 4:6, 2:5] = 0
    assert np.array_equal(out.numpy(), expected)


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 8])
def test_rotation_by_quarters_is_rot90(quarter, size):
    x = images(2, size=size)
    turned = rotate(x, torch.full((2,), 90.0 * quarter))
    assert torch.allclose(turned, torch.rot90(x, quarter, (2, 3)), atol=1e-4)


def test_rotation_keeps_shapes_in_oblong_images():
    x = torch.zeros(1, 1, 9, 17)
    x[0, 0, 4, 10] = 1  # two pixels right of the centre
    turned = rotate(x, torch.tensor([90.0]))
    assert turned[0, 0, 2, 8] == pytest.approx(1, abs=1e-4)  # two pixels above it


def test_affine_by_half_magnifies_twice():
    x = images(1, 1, 8, torch.float64)
    out = affine(x, torch.eye(2, dtype=torch.float64)[None] * 0.5)
    centre = x[0, 0, 2:6, 2:6].numpy()
    # Output pixel i lies at (i - 3.5) / 2 from the centre, a quarter of a pixel off the input's.
    position = (np.arange(8) - 3.5) / 2 + 1.5
    low = np.clip(np.floor(position).astype(int), 0, 2)
    share = position - low
    rows = centre[low] * (1 - share)[:, None] + centre[low + 1] * share[:, None]
    both = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    assert np.allclose(out[0, 0, 1:7, 1:7].numpy(), both[1:7, 1:7])


def test_colour_operations_keep_what_they_should():
    x, factor = images(4), torch.tensor([0.0, 0.5, 1.0, 1.7])
    assert torch.allclose(brighten(x, factor).mean((1, 2, 3)), x.mean((1, 2, 3)) + factor, atol=1e-6)
    assert torch.allclose(saturate(x, factor).mean(1), x.mean(1), atol=1e-6)
    assert torch.allclose(saturate(x, factor)[0], x[0].mean(0).expand(3, -1, -1), atol=1e-6)
    assert torch.allclose(contrast(x, factor).std((1, 2, 3)), x.std((1, 2, 3)) * factor, atol=1e-6)
    grey = x[:, :1]
    assert torch.allclose(saturate(grey, factor), grey)


# -- mistakes


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="crops"):
        siamese(2, 0, ("crops",))
    with pytest.raises(ValueError, match="none"):
        unpaired(2, 0, ())
    with pytest.raises(ValueError, match="2 images but 3 groups"):
        augment(images(2), unpaired(3, 0))
    with pytest.raises(ValueError, match="must be"):
        augment(torch.zeros(2, 8), unpaired(2, 0))
