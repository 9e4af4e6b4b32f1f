"""Recovering images from batch norms: the step against a float64 loop, slots that do not know each other, labels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.condensation.recover import DecoupledMethod, Voter, slotted
from limbeck.condensation.synthetic import relabel_by
from limbeck.engine.method import Clock
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from toolkit.decoupled import batch_norm_teacher, descend, image_set, layer_inputs, loss_of, set_up

PLAIN = {"crop": 1.0, "flip": False, "jitter": 0}


def by_hand(module, x, labels, first_layer):
    """Cross-entropy and statistics of one batch, channel by channel."""
    ce = -torch.log_softmax(module(x), 1)[range(len(x)), labels].mean()
    total = torch.zeros((), dtype=x.dtype)
    norms = [stage[1] for stage in module.stages]
    for number, (value, norm) in enumerate(zip(layer_inputs(module, x), norms, strict=True)):
        columns = [value[:, c].flatten() for c in range(value.shape[1])]
        mean = torch.stack([c.sum() / len(c) for c in columns])
        variance = torch.stack([((c - m) ** 2).sum() / len(c) for c, m in zip(columns, mean, strict=True)])
        gap = (mean - norm.running_mean).square().sum().sqrt() + (variance - norm.running_var).square().sum().sqrt()
        total = total + (first_layer if number == 0 else 1) * gap
    return ce, total


@pytest.mark.parametrize("batch_classes", [100, 2, 1])
def test_the_loss_and_its_gradient_are_the_formulas_in_float64(data, batch_classes):
    method = set_up(DecoupledMethod(**PLAIN, first_layer=7.0, bn_weight=0.3, batch_classes=batch_classes), data)
    found = loss_of(method, Clock(0, 5))
    (found["class"] + 0.3 * found["bn"]).backward()
    module = copy.deepcopy(method.teacher.module).double()
    images = method.student.images.detach().double().requires_grad_()
    ce = bn = torch.zeros((), dtype=torch.float64)
    for slot in range(2):
        rows, labels = images[slot::2], torch.arange(3)
        for part in torch.arange(3).split(batch_classes):
            one, two = by_hand(module, rows[part], labels[part], 7.0)
            ce, bn = ce + one, bn + two
    assert found["class"].item() == pytest.approx(ce.item(), rel=1e-4)
    assert found["bn"].item() == pytest.approx(bn.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(ce + 0.3 * bn, images)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in method.teacher.module.parameters())


def test_images_with_the_statistics_that_are_remembered_are_at_no_distance(data):
    teacher, student = batch_norm_teacher(data), image_set(data, per_class=1)
    for layer, stage in enumerate(teacher.module.stages):
        value = layer_inputs(teacher.module, student.images.detach())[layer]
        stage[1].running_mean.copy_(value.mean((0, 2, 3)))
        stage[1].running_var.copy_(value.var((0, 2, 3), unbiased=False))
    method = set_up(DecoupledMethod(**PLAIN), data, student, teacher=teacher)
    assert loss_of(method, Clock(0, 1))["bn"].item() == pytest.approx(0, abs=1e-4)


def test_a_slot_moves_as_if_it_were_alone(data):
    both, alone = image_set(data), image_set(data, per_class=1)
    with torch.no_grad():
        alone.images.copy_(both.images[::2])
    for student in (both, alone):
        descend(set_up(DecoupledMethod(crop=0.4, jitter=2), data, student), 6)
    assert torch.allclose(both.images[::2], alone.images, atol=1e-5)
    assert not torch.allclose(both.images[1::2], alone.images, atol=0.1)


def test_images_of_a_slot_are_seen_alike_and_slots_are_not(data):
    method = set_up(DecoupledMethod(crop=0.3, flip=True, jitter=3), data)
    same = torch.randn(1, 1, 1, 8, 8).expand(4, 3, -1, -1, -1)
    seen = method.seen(same, Clock(2, 9, seed=1))
    assert all(torch.equal(slot[0], image) for slot in seen for image in slot)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen, method.seen(same, Clock(2, 9, seed=1)))
    assert not torch.equal(seen, method.seen(same, Clock(3, 9, seed=1)))


def test_a_roll_stays_within_the_jitter(data):
    method = set_up(DecoupledMethod(crop=1.0, flip=False, jitter=2), data)
    point = torch.zeros(200, 1, 1, 8, 8)
    point[..., 4, 4] = 1
    places = method.seen(point, Clock(0, 1)).flatten(1).argmax(1)
    down, right = places // 8 - 4, places % 8 - 4
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    assert len({*zip(down.tolist(), right.tolist(), strict=True)}) == 25


def test_votes_are_weighted(data):
    first, second = batch_norm_teacher(data, 0), batch_norm_teacher(data, 1)
    method = set_up(DecoupledMethod(**PLAIN), data, a=first, b=second)
    alone = [loss_of(set_up(DecoupledMethod(**PLAIN), data, a=t), Clock(0, 1)) for t in (first, second)]
    for name, value in loss_of(method, Clock(0, 1)).items():
        assert value.item() == pytest.approx(sum(float(a[name].detach()) for a in alone) / 2, rel=1e-4)
    method.votes = lambda slots, clock: [Voter(first, [1.0, 0.0]), Voter(second, [0.0, 2.0])]
    images, labels = method.slots()
    wanted = method.look(first, images[:1], labels)[0] + 2 * method.look(second, images[1:], labels)[0]
    assert torch.allclose(torch.stack([*loss_of(method, Clock(0, 1)).values()]), wanted, rtol=1e-4)


def test_slots_are_the_kth_of_every_class():
    assert slotted(torch.arange(6), 3).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_labels_are_stored_once_at_the_end_and_a_resumed_run_ends_alike(data, monkeypatch):
    told = []

    def noted(student, teachers, **kwargs):
        told.append(student.images.detach().clone())
        relabel_by(student, teachers, **kwargs)

    monkeypatch.setattr("limbeck.condensation.recover.relabel_by", noted)
    form = {"name": "relabelled_images", "epochs": 2, "batch_size": 4}
    whole = set_up(DecoupledMethod(crop=0.5), data, image_set(data, **form))
    descend(whole, 6)
    assert len(told) == 1 and torch.equal(told[0], whole.student.images)
    teacher = whole.teacher.module
    lessons = whole.student.lessons()
    sight = next(lessons.views.epoch(lessons.images, 1))
    assert torch.allclose(lessons.target(1, sight), teacher(sight.images), atol=1e-2)

    cut = set_up(DecoupledMethod(crop=0.5), data, image_set(data, **form))
    optimizer = torch.optim.Adam(cut.student.parameters(), lr=0.1, betas=(0.5, 0.9))
    method_step = cut.after_step
    cut.after_step = lambda clock: method_step(Clock(clock.step, 6))
    for first, last in ((0, 3), (3, 6)):
        if first:
            again = set_up(DecoupledMethod(crop=0.5), data, image_set(data, **form))
            again.student.load_state_dict(cut.student.state_dict())
            kept = optimizer.state_dict()
            optimizer = torch.optim.Adam(again.student.parameters(), lr=0.1, betas=(0.5, 0.9))
            optimizer.load_state_dict(kept)
            cut = again
        descend(cut, last, first=first, optimizer=optimizer)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, cut.student.state_dict()[name]), name


def test_recovered_images_are_known_to_the_teacher_and_within_range(data):
    teacher = batch_norm_teacher(data, steps=60)
    method = set_up(DecoupledMethod(crop=1.0, jitter=1, flip=False), data, teacher=teacher)
    before = loss_of(method, Clock(0, 1))
    descend(method, 60)
    images, labels = method.student()
    assert (teacher.module(images).argmax(1) == labels).all()
    assert loss_of(method, Clock(0, 1))["bn"] < 0.7 * before["bn"]
    assert images.max() <= 2 and images.min() >= -2


def test_mistakes_are_told(data):
    plain = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {"logits"}, "teacher")
    with pytest.raises(UserError, match="the teacher has none"):
        set_up(DecoupledMethod(), data, teacher=plain)
    with pytest.raises(UserError, match="labels must be hard"):
        set_up(DecoupledMethod(), data, image_set(data, labels="soft"))
    for wrong in ({"crop": 0.0}, {"jitter": -1}, {"batch_classes": 0}):
        with pytest.raises(UserError, match="share of the area"):
            DecoupledMethod(**wrong)
