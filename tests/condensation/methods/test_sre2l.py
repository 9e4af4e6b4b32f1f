"""SRe2L: from noise to images that a teacher knows, with its labels."""

from __future__ import annotations

import torch

from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.condensation.networks import accuracy, fresh_network
from limbeck.condensation.relabel import learn
from limbeck.registry import Block, find
from toolkit.decoupled import batch_norm_teacher, descend, image_set, set_up

FORM = {"name": "relabelled_images", "per_class": 5, "epochs": 25, "batch_size": 5, "crop": 0.6, "flip": False}


def test_what_is_recovered_from_noise_teaches(data):
    student = image_set(data, **FORM, lr=0.02)
    noise = student.images.detach().clone()
    method = SRe2L(crop=1.0, flip=False, jitter=1)
    descend(set_up(method, data, student, teacher=batch_norm_teacher(data, steps=60, width=8)), 60)
    assert (student.images.detach() - noise).abs().mean() > 0.3
    network = fresh_network(Block("convnet", {"width": 8, "depth": 2}), data.spec.offers(), "n")
    learn(network, student.lessons())
    assert accuracy(network, data.test.images, data.test.labels, 64) > 0.8


def test_hard_labels_stay_what_they_are(data):
    student = image_set(data)
    before = student.labels.clone()
    descend(set_up(SRe2L(), data, student), 3)
    assert torch.equal(student()[1], before)
    assert set(student.state_dict()) == {"images", "labels"}


def test_the_defaults_are_the_papers():
    given = {p.name: p.default for p in find("method", "sre2l").params}
    assert given["bn_weight"] == 0.01
    assert (given["first_layer"], given["crop"], given["batch_classes"]) == (10.0, 0.08, 100)
