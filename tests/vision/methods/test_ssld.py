"""Label-free distillation over several streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from limbeck.vision.pool import top_per_class
from toolkit import IMAGES, image_batch, image_method, image_net, image_source, value


def pooled(**arguments: Any) -> tuple[Any, Any]:
    """The method with a pool, and the pool."""
    method, pool = build("method", Block("ssld", arguments)), image_source(24, seed=7)
    teacher = Teacher(image_net(6, seed=5), {"logits"}, "teacher")
    streams = {"labelled": image_source(), "pool": pool}
    method.setup(Parts(image_net(4), {"teacher": teacher}, IMAGES, IMAGES.offers(), streams))
    return method, pool


def test_the_loss_is_the_symmetric_divergence_without_labels() -> None:
    method, batch = image_method("ssld"), image_batch()
    terms = method.terms(batch)
    student, teacher = method.student(batch["input"]), method.teacher(batch).logits
    wanted = (soft_kl(student, teacher, temperature=1.0) + soft_kl(teacher, student, temperature=1.0)) / 2
    torch.testing.assert_close(value(terms["kd"]), wanted.mean())
    assert set(terms) == {"kd"} and int(terms["kd"].count) == 6


def test_streams_are_one_batch() -> None:
    method, pool = pooled()
    batch = {"labelled": image_batch(4), "pool": pool.batch(torch.arange(8))}
    term = method.terms(batch)["kd"]
    method.student.train()
    inputs = torch.cat([batch["labelled"]["input"], batch["pool"]["input"]])
    teacher = method.teacher.module(inputs)
    torch.testing.assert_close(
        value(term), soft_kl(method.student(inputs), teacher, temperature=1.0, direction="jeffreys").mean()
    )
    assert int(method.count(batch)["kept"]) == 12


def test_what_the_teacher_is_unsure_of_counts_nothing() -> None:
    method, pool = pooled(per_class=2)
    probabilities = method.teacher.module(pool.tensors["input"]).softmax(-1)
    wanted = set()
    for k in range(4):
        rows = [i for i in range(24) if int(probabilities[i].argmax()) == k]
        wanted |= set(sorted(rows, key=lambda i: -float(probabilities[i].max()))[:2])
    assert set(method.kept["pool"].tolist()) == wanted
    batch = {"labelled": image_batch(4), "pool": pool.batch(torch.arange(24))}
    term = method.terms(batch)["kd"]
    assert int(term.count) == int(method.count(batch)["kept"]) == 4 + len(wanted)
    term.sum.backward()
    again, _ = pooled()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.kept["pool"], method.kept["pool"])


def test_a_class_gives_what_it_has() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert top_per_class(p, 2).tolist() == [0, 2, 3]
    assert top_per_class(p, 9).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least 1"):
        top_per_class(p, 0)
