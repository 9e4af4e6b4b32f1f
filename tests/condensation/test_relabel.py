"""Soft labels for each sight of an image: that sights repeat, mix as they say, and teach what the teacher knows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.networks import accuracy, fresh_network
from limbeck.condensation.relabel import Lessons, Views, beta, learn, random_crop, rectangle, relabelled
from limbeck.condensation.synthetic import RelabelledImages, relabel_by
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build

IMAGES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_an_epoch_shows_each_image_once_and_is_the_same_again(mix):
    views = Views(3, batch_size=4, mix=mix)
    first, again = (list(views.epoch(IMAGES, 5)) for _ in range(2))
    assert torch.cat([s.rows for s in first]).sort().values.tolist() == list(range(10))
    assert [(s.places.start, s.places.stop) for s in first] == [(0, 4), (4, 8), (8, 10)]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.share, a.partners.tolist()) == (b.share, b.partners.tolist())
    other = next(views.epoch(IMAGES, 6))
    assert not torch.equal(other.images, first[0].images)
    assert not torch.equal(next(Views(4, batch_size=4, mix=mix).epoch(IMAGES, 5)).images, first[0].images)


def test_mixup_adds_and_cutmix_puts_a_share_of_the_pixels():
    for number in range(20):
        (up,) = Views(number, 10, crop=1, flip=False, mix="mixup").epoch(IMAGES, 0)
        wanted = up.share * IMAGES[up.rows] + (1 - up.share) * IMAGES[up.partners]
        assert torch.allclose(up.images, wanted, atol=1e-5)
        (cut,) = Views(number, 10, crop=1, flip=False, mix="cutmix").epoch(IMAGES, 0)
        moved = cut.rows != cut.partners
        theirs = (cut.images[moved] == IMAGES[cut.partners[moved]]).flatten(1).double().mean(1)
        assert torch.allclose(theirs, torch.full_like(theirs, 1 - cut.share))
        own = (cut.images[moved] == IMAGES[cut.rows[moved]]).flatten(1).double().mean(1)
        assert torch.allclose(own, torch.full_like(own, cut.share))


def test_a_whole_crop_is_the_image_and_half_are_mirrored():
    whole = random_crop(IMAGES, 1.0, "key", flip=False)
    assert torch.equal(whole, IMAGES)
    many = IMAGES[:1].expand(400, -1, -1, -1)
    turned = random_crop(many, 1.0, "key")
    same = (turned - many).flatten(1).abs().amax(1) < 1e-4
    mirrored = (turned - many.flip(3)).flatten(1).abs().amax(1) < 1e-4
    assert bool((same ^ mirrored).all())
    assert 160 < int(same.sum()) < 240


def test_crops_lie_inside_and_have_the_area_asked_for():
    """On a ramp the crop's extreme values tell where its edges are."""
    x = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    both = torch.cat([x, x.transpose(2, 3)], 1).expand(300, -1, -1, -1)
    seen = random_crop(both, 0.25, "key", flip=False, most=0.5)
    spans = [seen[:, c].flatten(1).amax(1) - seen[:, c].flatten(1).amin(1) for c in (0, 1)]
    # 64 samples of a crop of width w span w * 63/64 of the image, whose own samples span 63/64.
    area = spans[0] * spans[1]
    assert area.min() > 0.24
    assert area.max() < 0.51
    assert (spans[0] / spans[1]).log().abs().max() < math.log(4 / 3) + 0.02
    assert (spans[0] / spans[1]).log().abs().max() > 0.2


def test_images_that_go_together_are_cropped_alike():
    ids = torch.tensor([0, 1, 0, 1, 2])
    seen = random_crop(IMAGES[:1].expand(5, -1, -1, -1), 0.3, "key", ids=ids)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(random_crop(IMAGES, 0.3, "key", ids=torch.arange(10)), random_crop(IMAGES, 0.3, "key"))


def test_a_crop_passes_gradient_to_the_pixels():
    leaf = IMAGES.clone().requires_grad_()
    random_crop(leaf, 0.3, "key").square().sum().backward()
    assert leaf.grad.abs().flatten(1).sum(1).min() > 0


def test_rectangles_and_beta_numbers_have_the_papers_laws():
    shares = [(b - t) * (r - q) / 64**2 for t, b, q, r in (rectangle((64, 64), n) for n in range(300))]
    assert min(shares) >= 0
    assert 0.2 < sum(shares) / 300 < 0.45  # a uniform area, less what the edge cuts
    draws = torch.tensor([beta(n, 0.8) for n in range(2000)], dtype=torch.float64)
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.06)


def test_the_loss_is_the_divergence_at_a_temperature_without_its_square():
    views, z, t = Views(0), torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p, q = (t / 5).softmax(1), (z / 5).softmax(1)
    lessons = Lessons(IMAGES, views, 1, lambda e, s: t, temperature=5.0)
    assert float(lessons.loss(z, t)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    hard = Lessons(IMAGES, views, 1, lambda e, s: t, temperature=None)
    assert float(hard.loss(z, p)) == pytest.approx(float(-(p * z.log_softmax(1)).sum(1).mean()))


def trained_teacher(data) -> Teacher:
    network = fresh_network(Block("convnet", {"width": 8, "depth": 2}), data.spec.offers(), "teacher")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(data.train.images), data.train.labels).backward()
        optimizer.step()
    return Teacher(network, {"logits"}, "teacher")


def made(data, **args) -> RelabelledImages:
    block = Block(
        "relabelled_images", {"per_class": 3, "init": "real", "epochs": 4, "batch_size": 5, "seed": 11, **args}
    )
    return build("model", block, offers={**data.spec.offers(), "data": data})


def test_stored_labels_are_the_teachers_at_the_same_sights(data):
    teacher, student = trained_teacher(data), made(data)
    relabel_by(student, {"teacher": teacher})
    lessons = student.lessons()
    for epoch in range(4):
        for sight in lessons.views.epoch(lessons.images, epoch):
            told = lessons.target(epoch, sight)
            assert torch.allclose(told, teacher.module(sight.images), atol=2e-2, rtol=2e-3)
    assert relabelled(lessons.images, lessons.views, 4, teacher.module).shape == (4, 9, 3)


def test_a_reloaded_set_shows_the_same_sights(data):
    student = made(data)
    relabel_by(student, {"teacher": trained_teacher(data)})
    args = {"per_class": 3, "epochs": 4, "batch_size": 5, "classes": 3, "shape": [1, 8, 8]}
    again = build("model", Block("relabelled_images", args))
    again.load_state_dict(student.state_dict())
    for a, b in zip(*(s.lessons().views.epoch(s.lessons().images, 1) for s in (student, again)), strict=True):
        assert torch.equal(a.images, b.images)
    assert student.storage() == {"images": 9 * 64 * 4, "labels": 9 * 8 + 8 + 4 * 9 * 3 * 2, "adapters": 0}


def test_images_without_labels_of_their_own_teach_by_the_stored_ones(data):
    """Noise with soft labels of a teacher: the hard labels say nothing here."""
    student = made(
        data, init="noise", per_class=40, epochs=30, batch_size=40, crop=1.0, flip=False, mix="none", lr=0.01
    )
    relabel_by(student, {"teacher": trained_teacher(data)})
    network = learn(
        fresh_network(Block("convnet", {"width": 8, "depth": 2}), data.spec.offers(), "n"), student.lessons()
    )
    assert accuracy(network, data.test.images, data.test.labels, 64) > 0.8


def test_mixed_hard_labels_take_no_space_and_ask_no_teacher(data):
    student = made(data, labels="mixed", mix="cutmix")
    relabel_by(student, {})
    lessons = student.lessons()
    for sight in lessons.views.epoch(lessons.images, 0):
        told = lessons.target(0, sight)
        assert torch.allclose(told.sum(1), torch.ones(len(told)))
        own = told[range(len(told)), student.labels[sight.rows]]
        alone = student.labels[sight.rows] != student.labels[sight.partners]
        assert torch.allclose(own[alone], torch.full_like(own[alone], sight.share))
    assert (lessons.temperature, student.storage()["labels"]) == (None, 9 * 8 + 8)


def test_mistakes_are_told(data):
    student = made(data)
    with pytest.raises(UserError, match="no soft labels yet"):
        student.lessons()
    with pytest.raises(UserError, match="name a teacher"):
        relabel_by(student, {})
    for wrong in ({"crop": 0.0}, {"epochs": 0}, {"lr": 0.0}, {"tiles": 3}):
        with pytest.raises(UserError, match="relabelled_images"):
            made(data, **wrong)
