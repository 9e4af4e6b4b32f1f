import pytest
import torch

from limbeck.data.transforms import BrightnessContrast, Chain, Crop, Cutout, Flip, Noise, describe
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import Block, build, names

ALL = [Flip(), Crop(), Crop(padding=3, fill="reflect"), Cutout(), Noise(), BrightnessContrast()]
IDS = torch.arange(40) * 7 + 3


def pictures(dtype=torch.float32, n=40):
    return torch.randn(n, 3, 8, 10, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_a_sample_is_augmented_alike_in_any_batch(transform):
    x = pictures()
    whole = transform(x, IDS, 2, 5)
    order = torch.tensor([31, 4, 4, 0])
    assert torch.equal(transform(x[order], IDS[order], 2, 5), whole[order])
    assert torch.equal(transform(x, IDS, 2, 5), whole)
    assert whole.shape == x.shape and whole.dtype == x.dtype
    assert not torch.equal(transform(x, IDS, 3, 5), whole), "another view"
    assert not torch.equal(transform(x, IDS, 2, 6), whole), "another seed"
    assert not torch.equal(transform(x, IDS + 1, 2, 5), whole), "other ids"


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_gradients_reach_the_images(transform):
    x = pictures(torch.float64, 2)[:, :2, :4, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: transform(v, IDS[:2], 1, 0), (x,))


def test_global_generators_are_not_used():
    before = torch.get_rng_state()
    for transform in ALL:
        transform(pictures(), IDS, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_flip_mirrors_the_chosen_share():
    x = pictures(n=1).expand(2000, -1, -1, -1)
    out = Flip(p=0.3)(x, torch.arange(2000), 0, 0)
    mirrored = (out == x.flip(-1)).flatten(1).all(dim=1)
    assert ((out == x).flatten(1).all(dim=1) | mirrored).all()
    assert abs(mirrored.float().mean() - 0.3) < 0.04
    assert torch.equal(Flip(p=0.0)(x, torch.arange(2000), 0, 0), x)


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_crop_shifts_as_padding_and_cutting_does(fill):
    x = pictures()
    out = Crop(padding=2, fill=fill)(x, IDS, 1, 9)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect" if fill == "reflect" else "constant")
    corner = (uniform(IDS, (2,), (9, 1, "crop")) * 5).long().tolist()
    for i, (top, left) in enumerate(corner):
        assert torch.equal(out[i], padded[i, :, top : top + 8, left : left + 10])
    assert {t for t, _ in corner} == {v for _, v in corner} == set(range(5)), "every shift occurs"
    assert torch.equal(Crop(padding=0)(x, IDS, 1, 9), x)


def test_cutout_blanks_one_rectangle_and_nothing_else():
    x = pictures() + 100
    out = Cutout(ratio=0.5)(x, IDS, 0, 0)
    blank = out == 0
    assert torch.equal(out[~blank], x[~blank])
    for one in blank:
        assert (one == one[0]).all(), "the same in all channels"
        rows, columns = one[0].any(dim=1).nonzero().flatten(), one[0].any(dim=0).nonzero().flatten()
        assert 1 <= len(rows) <= 4 and 1 <= len(columns) <= 5
        assert one[0].sum() == len(rows) * len(columns), "a rectangle"
    assert torch.equal(Cutout(p=0.0)(x, IDS, 0, 0), x)


def test_noise_has_the_stated_deviation():
    noise = Noise(std=0.5)(pictures(), IDS, 0, 0) - pictures()
    assert abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.02


def test_brightness_and_contrast_keep_to_their_ranges():
    x = pictures()
    out = BrightnessContrast(brightness=0.3, contrast=0.5)(x, IDS, 0, 0)
    shift = (out.mean(dim=(1, 2, 3)) - x.mean(dim=(1, 2, 3))).abs()
    factor = out.std(dim=(1, 2, 3)) / x.std(dim=(1, 2, 3))
    assert shift.max() <= 0.3 + 1e-5 and shift.max() > 0.2
    assert factor.min() >= 0.5 - 1e-5 and factor.max() <= 1.5 + 1e-5 and factor.max() - factor.min() > 0.6


def test_two_alike_in_a_chain_draw_apart():
    x = pictures()
    once = Flip()(x, IDS, 0, 0)
    assert not torch.equal(Chain([Flip(), Flip()])(x, IDS, 0, 0), x), "the second would undo the first"
    assert not torch.equal(Chain([Flip(), Flip()])(x, IDS, 0, 0), once)


def test_every_transform_can_be_built_by_name():
    for name in names("transform"):
        transform = build("transform", Block(name))
        assert transform(pictures(), IDS, 0, 0).shape == (40, 3, 8, 10)
        assert repr(transform).startswith(f"{name}(")


def test_what_a_transform_does_shows_in_its_description():
    assert describe(Flip(p=0.5)) == "flip(p=0.5)" != describe(Flip(p=0.4))

    def own(images, ids, view, seed):
        return images

    class Own:
        def __init__(self, by):
            self.by = by

        def __call__(self, images, ids, view, seed):
            return images * self.by

    assert "return images" in describe(own)
    assert describe(Own(1)) == describe(Own(1)) != describe(Own(2))
    assert describe(None) == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flip(p=1.5),
        lambda: Crop(padding=-1),
        lambda: Crop(fill="wrap"),
        lambda: Cutout(ratio=0.0),
        lambda: Noise(std=-1.0),
        lambda: BrightnessContrast(contrast=1.0),
        lambda: Crop(padding=8, fill="reflect")(pictures(), IDS, 0, 0),
        lambda: Flip()(torch.zeros(3, 64), IDS[:3], 0, 0),
        lambda: Flip()(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), IDS[:3], 0, 0),
    ],
)
def test_settings_and_inputs_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
