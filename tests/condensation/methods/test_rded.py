"""RDED: mosaics of the most realistic crops, without training."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.methods.rded import RDED
from limbeck.condensation.realism import realistic_crops
from limbeck.condensation.relabel import random_crop
from limbeck.condensation.synthetic import RealImages, tiled
from limbeck.engine.method import Clock
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from toolkit.decoupled import BATCH, batch_norm_teacher, image_set, set_up


def test_the_best_crop_of_each_image_and_the_best_of_these(data):
    """Image by image and crop by crop."""
    real, teacher = RealImages.of(data.train), batch_norm_teacher(data).module
    found = realistic_crops(real, 4, teacher, "key", pool=300, crops=3, least=0.3)
    for label in range(3):
        images = real.of_class(label)
        kept = []
        # The draws of a pool that holds all are an order of all.
        order = realistic_order(images, ("key", label, "pool"))
        tried = [random_crop(images[order], 0.3, ("key", label, n), flip=False) for n in range(3)]
        for row in range(len(images)):
            scored = [
                (float(torch.log_softmax(teacher(crop[None]).double(), 1)[0, label]), crop)
                for crop in (t[row] for t in tried)
            ]
            kept.append(max(scored, key=lambda pair: pair[0]))
        kept.sort(key=lambda pair: -pair[0])
        assert torch.equal(found[4 * label : 4 * label + 4], torch.stack([crop for _, crop in kept[:4]]))


def realistic_order(images, key):
    return uniform(torch.arange(len(images)), (1,), key)[:, 0].argsort()


def test_whole_images_of_a_pool_are_real_ones_of_their_class(data):
    real, teacher = RealImages.of(data.train), batch_norm_teacher(data).module
    found = realistic_crops(real, 2, teacher, "key", pool=5, crops=1, least=1.0)
    for image, label in zip(found, torch.arange(3).repeat_interleave(2), strict=True):
        assert (real.of_class(int(label)) == image).flatten(1).all(1).any()
    assert not torch.equal(found, realistic_crops(real, 2, teacher, "key", pool=15, crops=1, least=1.0))


@pytest.mark.parametrize("factor", [1, 2])
def test_an_image_is_a_mosaic_of_crops_and_is_not_trained(data, factor):
    student = image_set(data)
    method = set_up(RDED(factor=factor, crops=2, crop=0.5), data, student)
    crops = realistic_crops(
        RealImages.of(data.train),
        2 * factor**2,
        method.teacher.module,
        (student.seed, "realism"),
        crops=2,
        least=0.5,
    )
    assert torch.equal(student.images, tiled(crops, factor))
    assert list(method.updates(BATCH, Clock(0, 1))) == []


def test_a_set_with_soft_labels_gets_the_teachers(data):
    student = image_set(data, "relabelled_images", epochs=2, batch_size=4)
    method = set_up(RDED(), data, student)
    sight = next(student.lessons().views.epoch(student.images.detach(), 1))
    assert torch.allclose(student.lessons().target(1, sight), method.teacher.module(sight.images), atol=1e-2)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="no 3 crops wide"):
        set_up(RDED(factor=3), data)
    with pytest.raises(UserError, match="pool is of 3"):
        set_up(RDED(pool=3), data)
    with pytest.raises(UserError, match="class 0 has 15"):
        set_up(RDED(), data, image_set(data, per_class=4))
    with pytest.raises(UserError, match="at least 1"):
        RDED(crops=0)
