"""INFER: patterns that all classes share, their room, and mixed hard labels."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.methods.infer import INFER
from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.decoupled import batch_norm_teacher, descend, image_set, loss_of, set_up

FORM = {"name": "compensated_images", "per_class": 4, "networks": 2, "epochs": 3, "batch_size": 5}


def made(data, **args):
    given = {"seed": 5, **FORM, **args}
    return build("model", Block(given.pop("name"), given), offers={**data.spec.offers(), "data": data})


def team(data):
    return {"a": batch_norm_teacher(data, 0), "b": batch_norm_teacher(data, 1)}


def test_the_set_is_each_base_alone_and_with_each_pattern(data):
    student = made(data)
    # floor(4 / (2 / 3 + 1)) = 2 bases.
    assert (student.per_class, student.patterns.shape) == (2, (2, 2, 1, 8, 8))
    with torch.no_grad():
        student.patterns.normal_()
    images, labels = student()
    assert len(images) == len(labels) == 3 * 2 * 3
    for c in range(3):
        own = images[labels == c]
        for k in range(2):
            base = student.images[2 * c + k]
            wanted = [base, *((base + student.patterns[m, k]).clamp(-2, 2) for m in range(2))]
            for image in wanted:
                assert torch.isclose(own, image, atol=1e-6).flatten(1).all(1).any()
    assert student.storage()["images"] + student.storage()["adapters"] <= 4 * 3 * 64 * 4 + 8
    for slot, image in enumerate(student.compensated()):
        m, k = slot // 2, slot % 2
        assert torch.allclose(image, (student.images[k::2] + student.patterns[m, k]).clamp(-2, 2), atol=1e-6)


def test_the_room_is_the_papers_floor(data):
    for per_class in range(2, 9):
        assert made(data, per_class=per_class).per_class == int(per_class / (2 / 3 + 1) + 1e-9)


def test_a_pattern_moves_by_its_own_teacher_over_all_classes(data):
    data.train.images.clamp_(-2, 2)
    both = team(data)
    student = made(data)
    method = set_up(INFER(jitter=0, flip=False), data, student, **both)
    found = loss_of(method, Clock(0, 5))
    found["class"].backward(retain_graph=True)
    gradient = student.patterns.grad.clone()
    for number, teacher in enumerate(both.values()):
        plain = image_set(data)
        with torch.no_grad():
            plain.images.copy_(student.images)
        loss_of(set_up(SRe2L(jitter=0, flip=False, crop=1.0), data, plain, teacher=teacher), Clock(0, 5))[
            "class"
        ].backward()
        over_classes = plain.images.grad.view(3, 2, 1, 8, 8).sum(0)
        assert torch.allclose(gradient[number], over_classes, atol=1e-5)


def test_bases_stay_and_patterns_learn(data):
    data.train.images.clamp_(-2, 2)
    student = made(data)
    before = student.images.detach().clone()
    method = set_up(INFER(jitter=1, flip=False), data, student, **team(data))
    first = float(sum(loss_of(method, Clock(0, 9)).values()).detach())
    descend(method, 20)
    assert torch.equal(student.images, before)
    assert all(p.abs().sum() > 0 for p in student.patterns.flatten(0, 1))
    assert float(sum(loss_of(method, Clock(0, 9)).values()).detach()) < first
    assert student()[0].max() <= 2


def test_hard_labels_are_mixed_as_the_images_are(data):
    lessons = made(data, mix="mixup", crop=1.0, flip=False).lessons()
    labels = made(data)()[1]
    for sight in lessons.views.epoch(lessons.images, 0):
        told = lessons.target(0, sight)
        for row, probabilities in enumerate(told):
            wanted = torch.zeros(3)
            wanted[labels[sight.rows[row]]] += sight.share
            wanted[labels[sight.partners[row]]] += 1 - sight.share
            assert torch.allclose(probabilities, wanted)
    logits = torch.randn(4, 3)
    target = torch.softmax(torch.randn(4, 3), 1)
    assert lessons.loss(logits, target).item() == pytest.approx(
        -(target * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5
    )
    assert made(data).storage()["labels"] == 6 * 8 + 8


def test_stored_labels_are_the_mean_of_all_teachers(data):
    student, both = made(data, labels="stored"), team(data)
    descend(set_up(INFER(flip=False), data, student, **both), 2)
    lessons = student.lessons()
    sight = next(lessons.views.epoch(lessons.images, 2))
    wanted = (both["a"].module(sight.images) + both["b"].module(sight.images)) / 2
    assert torch.allclose(lessons.target(2, sight), wanted, atol=1e-2)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="must be compensated_images"):
        set_up(INFER(), data, **team(data))
    with pytest.raises(UserError, match="there are 1 teachers"):
        set_up(INFER(), data, made(data), a=batch_norm_teacher(data))
    with pytest.raises(UserError, match="no room"):
        made(data, per_class=1)
    with pytest.raises(UserError, match="at least 1"):
        made(data, networks=0)
