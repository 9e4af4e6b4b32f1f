"""DeepInversion as a method: its loss by hand, that it is descended, and what the student then learns from."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Method
from limbeck.errors import UserError
from toolkit import image_method, value

CLOCK = Clock(0, 10)


def ready(**arguments: object) -> Method:
    return image_method("deepinversion", **{"iterations": 3, "synthesis_batch": 5, "every": 4, **arguments})


def of(method: Method, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with Statistics(method.teacher.module) as statistics:
        return method.inversion_loss(images, labels, statistics)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    weights = {"bn_weight": 2.0, "first_layer": 3.0, "tv_weight": 0.5, "l2_weight": 0.7, "compete_weight": 0.9}
    method = ready(**weights, compete_temperature=2.0)
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 3, 1, 2, 0])
    teacher, student = method.teacher.module, method.student.eval()
    logits = teacher(images)
    wanted = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    first = teacher.stages[0][0](images)
    second = teacher.stages[1][0](teacher.stages[0](images))
    for x, norm, factor in ((first, teacher.stages[0][1], 3.0), (second, teacher.stages[1][1], 1.0)):
        rows = x.transpose(0, 1).flatten(1)
        far = (rows.mean(1) - norm.running_mean).norm() + (rows.var(1, unbiased=False) - norm.running_var).norm()
        wanted = wanted + 2.0 * factor * far
    for x in images[:, 0]:
        lengths = [(x[1:] - x[:-1]).norm(), (x[:, 1:] - x[:, :-1]).norm()]
        lengths += [(x[1:, 1:] - x[:-1, :-1]).norm(), (x[1:, :-1] - x[:-1, 1:]).norm()]
        wanted = wanted + (0.5 * sum(lengths) + 0.7 * x.norm()) / 5
    p, q = (logits / 2).softmax(1), (student(images) / 2).softmax(1)
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    wanted = wanted + 0.9 * (1 - js).mean()
    torch.testing.assert_close(of(method, images, labels), wanted)


def test_a_round_lowers_the_loss_of_its_classes() -> None:
    method = ready(iterations=60, lr=0.1, jitter=1, compete_weight=0.0)
    ids = torch.arange(5)
    labels = method.draw_labels(ids, CLOCK, "labels 0")
    before = of(method, CLOCK.normal(ids, (1, 8, 8), "pixels 0"), labels)
    method.round(CLOCK, torch.device("cpu"), 0)
    after = of(method, method.bank.rows["images"], labels)
    assert after < 0.75 * before
    assert labels.tolist() == method.draw_labels(ids, CLOCK, "labels 0").tolist() and labels.max() < 4


def test_the_student_learns_from_the_bank() -> None:
    method = ready(padding=0, flip=False, temperature=2.0)
    batch = {"id": torch.arange(6), "view": 0}
    (update,) = method.updates(batch, CLOCK)
    images = method.bank.at(method.bank.draw(CLOCK.uniform(batch["id"], (1,), "bank")[:, 0]), "images")["images"]
    p, q = ((net(images) / 2).softmax(1) for net in (method.teacher.module, method.student))
    torch.testing.assert_close(value(update.evaluate()["kd"]), 4 * (p * (p / q).log()).sum(1).mean())


def test_shifts_lie_within_the_jitter_and_flips_can_be_left_out() -> None:
    method, x = ready(jitter=1, flip=False), torch.randn(1, 1, 8, 8)
    found = {tuple(method.moved(x, CLOCK, str(i)).flatten().tolist()) for i in range(200)}
    wanted = {tuple(x.roll((a, b), (-2, -1)).flatten().tolist()) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert found == wanted
    flipped = ready(jitter=0)
    assert len({tuple(flipped.moved(x, CLOCK, str(i)).flatten().tolist()) for i in range(50)}) == 2
    with pytest.raises(UserError, match="jitter"):
        ready(jitter=-1)


def test_the_state_holds_the_bank() -> None:
    method, other = ready(), ready()
    batch = {"id": torch.arange(6), "view": 0}
    list(method.updates(batch, CLOCK))
    other.load_state_dict(method.state_dict())
    one, two = (next(iter(m.updates(batch, Clock(1, 10)))).evaluate()["kd"].sum for m in (method, other))
    torch.testing.assert_close(one, two)
