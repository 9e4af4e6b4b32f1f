"""Matching trajectories: its step against a float64 graph, its options, and what may move."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.condensation.augment import augment, unpaired
from limbeck.condensation.synthetic import SyntheticImages
from limbeck.engine.method import Clock
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from toolkit.following import OPS, loss, ready

CASES = [{}, {"soft": True}, {"batch": 4}, {"momentum": 0.8}, {"checkpoint": True}, {"mirror": True}]


@pytest.mark.parametrize("args", CASES)
def test_loss_and_gradients_are_the_papers_graph_in_float64(data, args):
    method, clock = ready(data, **args), Clock(2, 10, seed=3)
    found = loss(method, clock)
    found.backward()
    student, momentum = method.student, args.get("momentum", 0.0)
    images = student.images.detach().double().requires_grad_()
    labels = student.targets.detach().double().requires_grad_() if student.targets is not None else student.labels
    rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    expert, epoch = method.segment(clock)
    begin, target = method.expert_weights(clock, expert, [epoch, epoch + 2], torch.device("cpu"))
    network = copy.deepcopy(method.flat.network).double()
    shapes = {n: p.shape for n, p in network.named_parameters()}
    pieces = begin.double().split([s.numel() for s in shapes.values()])
    weights = {n: w.view(s).requires_grad_() for (n, s), w in zip(shapes.items(), pieces, strict=True)}
    velocity = dict.fromkeys(weights, 0.0)
    x = torch.stack([images, images.flip(-1)], 1).flatten(0, 1) if args.get("mirror") else images
    y = labels.repeat_interleave(2, 0) if args.get("mirror") else labels
    for k in range(3):
        rows = torch.arange(len(x))
        if "batch" in args:
            rows = _rows(k)
        seen = augment(x[rows], unpaired(len(rows), ((3, 2, "inner"), k), OPS))
        inner = F.cross_entropy(torch.func.functional_call(network, weights, (seen,)), y[rows])
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        velocity = {n: momentum * velocity[n] + g for n, g in zip(weights, slopes, strict=True)}
        weights = {n: w - rate * velocity[n] for n, w in weights.items()}
    end = torch.cat([w.flatten() for w in weights.values()])
    expected = (end - target.double()).square().sum() / (begin - target).double().square().sum()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(student.images.grad.double(), images.grad, rtol=1e-2, atol=1e-5)
    assert method.learners["rate"].raw.grad.item() == pytest.approx(rate.grad.item(), rel=1e-3)
    if student.targets is not None:
        assert torch.allclose(student.targets.grad.double(), labels.grad, rtol=1e-2, atol=1e-5)


def _rows(k: int) -> torch.Tensor:
    """Batches of four of six: four, two, and four of the next shuffle."""
    from limbeck.engine.noise import uniform

    epoch, place = divmod(k, 2)
    order = uniform(torch.arange(6), (1,), (3, 2, "inner", epoch, "order"))[:, 0].argsort()
    return order[:4] if place == 0 else order[4:]


def test_an_expert_that_learnt_the_students_images_leaves_nothing(data):
    """With one step an epoch on all images, unaugmented, the student's way is the expert's."""
    method = ready(data, expert_batch=64, augment=(), steps=2, rate=0.1)
    whole = SyntheticImages(method.real.images, method.real.labels, rate=0.1)
    method.learners["student"] = whole
    assert loss(method, Clock(0, 1)).item() < 1e-5


def test_stretches_are_drawn_from_all_experts_and_early_epochs(data):
    method = ready(data)
    seen = {method.segment(Clock(step, 100, seed=1)) for step in range(100)}
    assert seen == {(expert, epoch) for expert in range(3) for epoch in range(3)}


def test_descent_lessens_what_is_left_and_the_rate_is_stored(data):
    method = ready(data, rate=0.02)
    rate = method.learners["rate"]
    optimizer = torch.optim.SGD(
        [{"params": method.student.parameters(), "lr": 5.0}, {"params": rate.parameters(), "lr": 1e-2}]
    )
    values = []
    for step in range(40):
        optimizer.zero_grad()
        value = loss(method, Clock(step, 40))
        value.backward()
        optimizer.step()
        method.after_step(Clock(step, 40))
        values.append(value.item())
    assert sum(values[-8:]) < 0.9 * sum(values[:8])
    assert method.student.rate.item() == rate().item() != pytest.approx(0.02)


def test_a_step_depends_on_seed_and_step_alone(data):
    first = loss(ready(data), Clock(4, 10, seed=1)).item()
    method = ready(data)
    loss(method, Clock(0, 10, seed=1))
    assert loss(method, Clock(4, 10, seed=1)).item() == first
    assert loss(method, Clock(5, 10, seed=1)).item() != first
    assert loss(ready(data), Clock(4, 10, seed=2)).item() != first


def test_labels_start_as_the_teachers_and_move_as_fast_as_asked(data):
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3]

    teacher = Teacher(Sure(), {"logits"}, "teacher")
    method = ready(data, soft=True, teachers={"teacher": teacher})
    images = method.student.images.detach()
    assert torch.allclose(method.student.targets, images.flatten(1)[:, :3].softmax(1))
    slopes = []
    for share in (0.0, 1.0, 3.0):
        method = ready(data, soft=True, targets_lr=share)
        loss(method, Clock(0, 1)).backward()
        slopes.append(method.student.targets.grad)
    assert slopes[0].abs().sum() == 0
    assert torch.allclose(slopes[2], 3 * slopes[1])


def test_the_health_is_the_error_of_a_training_from_the_experts_start(data):
    method = ready(data)
    term = method.health({"id": torch.arange(1)}, Clock(0, 1))["accumulated"]
    assert 0 < term.sum.item() < 10
    still = ready(data, rate=1e-9)
    assert still.health({"id": torch.arange(1)}, Clock(0, 1))["accumulated"].sum.item() == pytest.approx(1, abs=1e-4)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="mtt learns the rate"):
        ready(data, rate=None)
    with pytest.raises(UserError, match="starts - 1 \\+ ahead = 5"):
        ready(data, starts=4)
    with pytest.raises(UserError, match="1 or more"):
        ready(data, batch=0)
    with pytest.raises(UserError, match="keep: 'much'"):
        ready(data, keep="much")
