"""The set of learnable images, and the real images it starts from."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.synthetic import RealImages, SyntheticImages, tiled, untiled, valid_range
from limbeck.data.base import Data, DataSpec
from limbeck.errors import UserError
from limbeck.registry import Block, build, find


def make(data: Data, **args) -> SyntheticImages:
    torch.manual_seed(args.pop("run_seed", 0))
    return build("model", Block("synthetic_images", args), offers={**data.spec.offers(), "data": data})


@pytest.mark.parametrize("init", ["real", "mean", "noise"])
def test_student_is_images_and_labels_sorted_by_class(data, init):
    student = make(data, per_class=2, init=init)
    images, labels = student()
    assert images.shape == (6, 1, 8, 8)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (student.per_class, student.classes) == (2, 3)
    assert [n for n, _ in student.named_parameters()] == ["images"]
    assert sorted(student.state_dict()) == ["images", "labels"]


def test_real_images_are_different_ones_of_the_right_class(data):
    images, labels = make(data, per_class=4)()
    for image, label in zip(images, labels, strict=True):
        own = data.train.images[data.train.labels == label]
        assert (own == image).flatten(1).all(1).sum() == 1
    assert len({tuple(i.flatten().tolist()) for i in images}) == 12


def test_means_are_of_shares_of_the_class(data):
    own = data.train.images[data.train.labels == 1]
    assert torch.allclose(make(data, per_class=1, init="mean").images[1], own.mean(0), atol=1e-6)
    shares = make(data, per_class=5, init="mean").images[5:10]
    assert torch.allclose(shares.mean(0), own.mean(0), atol=1e-6)  # 15 images in 5 shares of 3
    assert shares.unique(dim=0).shape[0] == 5


def test_first_images_follow_the_runs_seed_or_their_own(data):
    assert torch.equal(make(data, run_seed=1).images, make(data, run_seed=1).images)
    assert not torch.equal(make(data, run_seed=1).images, make(data, run_seed=2).images)
    assert torch.equal(make(data, run_seed=1, seed=5).images, make(data, run_seed=2, seed=5).images)


def test_learning_does_not_change_the_real_images(data):
    before = data.train.images.clone()
    student = make(data)
    with torch.no_grad():
        student.images.add_(1)
    assert torch.equal(data.train.images, before)


def test_clamping_brings_pixels_back_to_the_normalised_range(data):
    student = make(data)
    with torch.no_grad():
        student.images.copy_(torch.linspace(-9, 9, student.images.numel()).view_as(student.images))
    student.clamp_()
    assert student.images.min() == -2  # (0 - 0.5) / 0.25
    assert student.images.max() == 2
    assert student.images.requires_grad


def test_valid_range_is_per_channel():
    low, high = valid_range(DataSpec(shape=(3, 4, 4), mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1)))
    assert torch.allclose(low.flatten(), torch.tensor([-1.0, -2.0, -2.0]))
    assert torch.allclose(high.flatten(), torch.tensor([1.0, 3.0, 8.0]))
    assert low.shape == (3, 1, 1)
    assert [float(v) for v in valid_range(DataSpec(shape=(1, 4, 4)))] == [0, 1]


def test_a_stored_set_is_built_again_without_data(data):
    student = make(data, per_class=2)
    empty = build("model", Block("synthetic_images", {"per_class": 2, "classes": 3, "shape": [1, 8, 8]}))
    empty.load_state_dict(student.state_dict())
    assert torch.equal(empty()[0], student()[0])
    empty.clamp_()
    assert torch.equal(empty()[0], student()[0])


def test_tiles_are_enlarged_pieces_and_shrinking_puts_them_back(data):
    student = make(data, per_class=2, tiles=2)
    images, labels = student()
    assert images.shape == (24, 1, 8, 8)
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert (student.per_class, student.expansion) == (2, 4)
    pieces = [student.images[3, :, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
    wanted = torch.nn.functional.interpolate(torch.stack(pieces), size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(images[12:16], wanted)
    constant = torch.arange(8.0).view(8, 1, 1, 1).expand(-1, 1, 8, 8)
    assert torch.equal(untiled(tiled(constant, 2), 2), constant)
    real = RealImages.of(data.train).of_class(0)
    small = torch.nn.functional.interpolate(real, size=(4, 4), mode="area")
    assert all(
        (small == student.images[0, :, r : r + 4, c : c + 4]).flatten(1).all(1).any() for r in (0, 4) for c in (0, 4)
    )


def test_mirrored_images_stand_beside_each_other_and_cost_nothing(data):
    plain, student = make(data, per_class=2), make(data, per_class=2, mirror=True)
    images, labels = student()
    assert torch.equal(images[::2], plain.images)
    assert torch.equal(images[1::2], plain.images.flip(3))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert student.storage() == plain.storage()
    images[1].sum().backward()
    assert torch.equal(student.images.grad[0], torch.ones(1, 8, 8))


@pytest.mark.parametrize(("labels", "first"), [("soft", [1, 0, 0]), ("regression", [2 / 3, -1 / 3, -1 / 3])])
def test_targets_learn_in_place_of_the_labels(data, labels, first):
    student = make(data, per_class=2, labels=labels, rate=0.02)
    targets = student()[1]
    assert torch.allclose(targets[0], torch.tensor(first, dtype=torch.float32))
    assert targets.requires_grad
    assert float(student.rate) == pytest.approx(0.02)
    assert sorted(student.state_dict()) == ["images", "labels", "rate", "targets"]
    assert student.storage() == {"images": 6 * 64 * 4, "labels": 6 * 8 + 18 * 4, "adapters": 4}


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="cannot be cut into 3 x 3"):
        make(data, tiles=3)
    with pytest.raises(UserError, match="rate must be above 0"):
        make(data, rate=0.0)
    with pytest.raises(UserError, match="16 images of each class are needed, but class 0 has 15"):
        make(data, per_class=16)
    with pytest.raises(UserError, match="at least 1"):
        make(data, per_class=0)
    with pytest.raises(UserError, match="use 'noise'"):
        make(Data(data.spec))
    assert make(Data(data.spec), init="noise").images.shape == (3, 1, 8, 8)


def test_facts_are_known_without_importing():
    facts = find("model", "synthetic_images").facts
    assert facts["gives"] == {"images"}
    assert facts["data_is_student"]


# -- real images


def test_drawn_batches_hold_each_class_once_over_and_follow_the_key(data):
    real = RealImages.of(data.train)
    images, labels = real.draw(6, "key")
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert images.unique(dim=0).shape[0] == 18
    assert torch.equal(images, real.draw(6, "key")[0])
    assert not torch.equal(images, real.draw(6, "other")[0])
    for image, label in zip(images, labels, strict=True):
        assert (data.train.images[data.train.labels == label] == image).flatten(1).all(1).any()


def test_every_image_is_drawn_as_often(data):
    real = RealImages.of(data.train)
    times = torch.bincount(torch.cat([real.rows(5, i) for i in range(600)]), minlength=45)
    assert times.min() > 150  # 200 expected, standard deviation 11.5
    assert times.max() < 250


def test_small_classes_are_taken_whole():
    real = RealImages(torch.arange(6.0).view(6, 1), torch.tensor([1, 0, 1, 1, 1, 0]), 2)
    _, labels = real.draw(3, "key")
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert sorted(real.draw(9, "key")[0].flatten().tolist()) == [0, 1, 2, 3, 4, 5]


def test_unlabelled_rows_are_left_out():
    real = RealImages(torch.arange(4.0).view(4, 1), torch.tensor([1, -100, 0, -100]), 2)
    assert real.images.flatten().tolist() == [2, 0]
    assert real.of_class(1).flatten().tolist() == [0]


def test_the_stream_is_found_or_asked_for(data):
    assert len(RealImages.of_streams({"data": data.train}).labels) == 45
    both = {"unlabelled": data.test, "labelled": data.train}
    assert len(RealImages.of_streams(both).labels) == 45
    with pytest.raises(UserError, match="labelled"):
        RealImages.of_streams({"a": data.train, "b": data.test})
    with pytest.raises(UserError, match="labelled"):
        RealImages.of_streams({})
    data.train.labels = None
    with pytest.raises(UserError, match="needs a label"):
        RealImages.of_streams({"data": data.train})
