"""A network that is its own teacher, against the paper's formula; and the exits."""

from __future__ import annotations

import pytest
import torch

from limbeck.data.base import DataSpec
from limbeck.engine.method import Method, Parts
from limbeck.errors import UserError
from limbeck.models.vision import CNN
from limbeck.registry import Block, build
from limbeck.vision.exits import Exits
from toolkit import IMAGES, image_batch, image_source, value


def method_of(depth: int = 3, spec: DataSpec = IMAGES, **arguments: object) -> Method:
    torch.manual_seed(0)
    student = CNN(in_channels=1, image_size=8, classes=4, width=4, depth=depth)
    method = build("method", Block("byot", arguments))
    method.setup(Parts(student, {}, spec, spec.offers(), {"data": image_source()}))
    return method


def test_the_terms_are_the_papers_sums_over_exits() -> None:
    batch, method = image_batch(), method_of(alpha=0.4, hint_weight=0.2, temperature=2.0)
    assert list(method.learners) == ["student", "exits"]
    terms = method.terms(batch)
    maps = [method.student.stages[: i + 1](batch["input"]) for i in range(3)]
    logits = method.student(batch["input"])
    features, found = method.learners["exits"](maps[:2])
    assert [f.shape for f in features] == [(6, 16)] * 2 and [z.shape for z in found] == [(6, 4)] * 2
    known = batch["label"] >= 0
    ce, kd, hint = 0.0, 0.0, 0.0
    for feature, z in zip(features, found, strict=True):
        ce += -z.log_softmax(1)[known].gather(1, batch["label"][known, None]).mean()
        p = (logits / 2).softmax(1)
        kd += 4 * (p * (p.log() - (z / 2).log_softmax(1))).sum(1).mean()
        hint += ((feature - maps[2].mean((2, 3))) ** 2).sum(1).mean()
    for name, wanted, weight in (("exits", ce, 0.6), ("kd", kd, 0.4), ("hint", hint, 0.2)):
        torch.testing.assert_close(value(terms[name]), wanted, rtol=1e-5, atol=1e-6)
        assert terms[name].weight == pytest.approx(weight)
    assert terms["exits"].unit == "labelled" and int(terms["exits"].count) == 5 and terms["ce"].weight == 1.0


def test_what_teaches_takes_no_gradient_and_shared_layers_do() -> None:
    method = method_of()
    terms = method.terms(image_batch())
    (terms["kd"].sum + terms["hint"].sum).backward()
    assert all(p.grad is None for p in [*method.student.stages[2].parameters(), *method.student.head.parameters()])
    assert all(p.grad is not None for p in method.student.stages[:2].parameters())


def test_exits_come_down_to_the_last_grid() -> None:
    shallow, last = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4), torch.randn(2, 16, 7)], torch.randn(2, 12, 2, 2)
    exits = Exits(shallow, last, 6)
    assert [tuple(b(m).shape) for b, m in zip(exits.bottlenecks[:2], shallow[:2], strict=True)] == [(2, 12, 2, 2)] * 2
    features, logits = exits(shallow)
    assert [f.shape for f in features] == [(2, 12)] * 3 and [z.shape for z in logits] == [(2, 6)] * 3


def test_a_single_stage_has_no_earlier_exit() -> None:
    with pytest.raises(UserError, match="before the last"):
        method_of(depth=1)
