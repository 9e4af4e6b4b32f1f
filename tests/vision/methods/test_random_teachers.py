"""Imitating a random network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.method import Parts
from limbeck.registry import Block, build
from limbeck.vision.methods.random_teachers import Head, approach
from toolkit import IMAGES, features_of, image_batch, image_net, image_source, value, weights

SMALL = {"hidden": 8, "bottleneck": 4, "outputs": 12}


def ready(**arguments: Any) -> Any:
    method = build("method", Block("random_teachers", {**SMALL, **arguments}))
    method.setup(Parts(image_net(4), {}, IMAGES, IMAGES.offers(), {"data": image_source()}))
    for module in method.frozen.values():
        module.eval()
    return method


def test_the_loss_is_the_cross_entropy_of_both_heads() -> None:
    method, batch = ready(temperature=0.5), image_batch()
    term = method.terms(batch)["kd"]
    s = method.learners["head"](features_of(method.student, batch)[2])
    t = method.frozen["head"](features_of(method.frozen["student"], batch)[2])
    wanted = -((t / 0.5).softmax(-1) * (s / 0.5).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(value(term), wanted)
    assert term.count == 6  # without a label too


def test_the_head_gives_cosines() -> None:
    head = Head(6, 8, 4, 12)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.cosine_similarity(head.body(x)[:, None], head.last.weight[None], dim=-1)
    torch.testing.assert_close(head(x), wanted)


def test_only_the_student_and_its_head_learn() -> None:
    method, batch = ready(), image_batch()
    value(method.terms(batch)["kd"]).backward()
    assert all(p.grad is None for m in method.frozen.values() for p in m.parameters())
    assert all(p.grad is not None for p in method.learners["head"].parameters())
    without = {n for n, p in method.student.named_parameters() if p.grad is None}
    assert without == {"head.weight", "head.bias"} and not method.student.head.weight.requires_grad


def test_the_start_lies_between_student_and_teacher() -> None:
    far, near, at = ready(locality=1.0), ready(locality=0.2), ready(locality=0.0)
    assert torch.equal(weights(at.student), weights(at.frozen["student"]))
    assert torch.equal(weights(at.learners["head"]), weights(at.frozen["head"]))
    assert torch.equal(weights(far.student), weights(image_net(4)))
    own, other = image_net(4).head.weight, near.frozen["student"].head.weight
    wanted = (0.8 * other + 0.2 * own) / (0.8**2 + 0.2**2) ** 0.5
    torch.testing.assert_close(near.student.head.weight, wanted)
    a, b = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)
    before = a.weight.std().item()
    approach(a, b, 0.4)
    assert a.weight.std().item() == pytest.approx(before, rel=0.02)
    assert torch.equal(near.student.stages[0][1].weight, torch.ones(4))  # equal in both: left alone


def test_the_teacher_is_kept_over_an_interruption() -> None:
    one, other = ready(), ready()
    other.load_state_dict(one.state_dict())
    assert torch.equal(weights(one.frozen["student"]), weights(other.frozen["student"]))


def test_a_senseless_place_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ready(locality=1.5)
