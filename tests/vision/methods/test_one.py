"""The native ensemble against the paper's formula; and the branches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.method import Clock, Method, Parts
from limbeck.errors import UserError
from limbeck.models.vision import MLP
from limbeck.registry import Block, build
from limbeck.vision.branches import Branches, end_of
from toolkit import IMAGES, image_batch, image_net, image_source, value


def method_of(student: nn.Module | None = None, **arguments: object) -> Method:
    method = build("method", Block("one", arguments))
    student = student or image_net()
    method.setup(Parts(student, {}, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return method


def ce(z: Tensor, labels: Tensor) -> Tensor:
    known = labels >= 0
    return -z.log_softmax(1)[known].gather(1, labels[known, None]).mean()


def kl(target: Tensor, z: Tensor, temperature: float) -> Tensor:
    p = (target / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (z / temperature).log_softmax(1))).sum(1).mean()


def test_the_terms_are_the_papers() -> None:
    batch, method = image_batch(), method_of(temperature=2.0, kd_weight=0.5, rampup=10.0)
    assert list(method.learners) == ["student", "branches"]
    terms = method.terms(batch, Clock(0, 100, epoch=3))
    trunk = method.student.stages[0](batch["input"])
    branches = method.learners["branches"]
    logits = [method.student(batch["input"])]
    logits += [branches.heads[i](branches.stages[i](trunk).mean((2, 3))) for i in range(2)]
    scores = branches.gate(trunk.mean((2, 3)))
    normed = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + 1e-5).sqrt()
    g = normed.relu().exp() / normed.relu().exp().sum(1, keepdim=True)
    ensemble = sum(g[:, i : i + 1] * z for i, z in enumerate(logits))
    wanted = {
        "ce": ce(logits[0], batch["label"]),
        "branches": ce(logits[1], batch["label"]) + ce(logits[2], batch["label"]),
        "ensemble": ce(ensemble, batch["label"]),
        "kd": sum(kl(ensemble, z, 2.0) for z in logits),
    }
    for name, number in wanted.items():
        torch.testing.assert_close(value(terms[name]), number, rtol=1e-5, atol=1e-6)
    assert terms["kd"].weight == pytest.approx(0.5 * math.exp(-5 * 0.6**2)) and terms["branches"].weight == 1.0


def test_the_weight_rises_to_one() -> None:
    method = method_of(rampup=4.0)
    found = [method.ramp(Clock(0, 1, epoch=e)) for e in (0, 1, 3, 9)]
    assert found == pytest.approx([math.exp(-5 * 0.75**2), math.exp(-1.25), 1.0, 1.0])


def test_the_ensemble_takes_no_gradient_as_a_teacher() -> None:
    method = method_of()
    method.terms(image_batch(), Clock(0, 10))["kd"].sum.backward()
    gate = method.learners["branches"].gate
    assert gate.weight.grad is None
    assert all(p.grad is not None for p in method.student.parameters())


def test_branches_are_classifiers_of_their_own_that_start_apart() -> None:
    student, batch = image_net(), image_batch()
    end = end_of(student, batch)
    assert (end.stage, end.head, end.readout) == ("stages.1", "head", "mean")
    branches = Branches(student, end, 2, gated=False)
    starts = [p[0].weight for p in (student.stages[1], *branches.stages)]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    branches.stages[0].load_state_dict(student.stages[1].state_dict())
    branches.heads[0].load_state_dict(student.head.state_dict())
    student.eval(), branches.eval()
    logits, weights = branches(student.stages[0](batch["input"]))
    torch.testing.assert_close(logits[0], student(batch["input"]))
    torch.testing.assert_close(weights, torch.full((6, 3), 1 / 3))


def test_vectors_have_ends_too_and_what_lies_between_is_not_left_out() -> None:
    method = method_of(MLP(in_features=64, classes=4, hidden=8, layers=2), branches=2)
    assert method.terms(image_batch(), Clock(0, 10))["kd"].sum > 0
    between = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 8), nn.ReLU()), nn.Softplus(), nn.Linear(8, 4))
    with pytest.raises(UserError, match="leave out what lies between"):
        method_of(between, stage="1")
    with pytest.raises(ValueError, match="at least 2 branches"):
        method_of(branches=1)
