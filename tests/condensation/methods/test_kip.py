"""KIP: its step in float64, its label solve, and labels that stay."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.kernels import mlp_kernel, ridge
from limbeck.condensation.methods.kip import KIP
from limbeck.condensation.synthetic import SyntheticImages, first_targets
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError

LABELS = torch.arange(3).repeat_interleave(2)


def ready(data: Data, *, tiles: int = 1, **args) -> KIP:
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    targets = first_targets(LABELS, 3, centred=True) + 0.1
    student = SyntheticImages(first, LABELS, targets=targets, regression=True, tiles=tiles)
    method = KIP(**{"batch_real": 6, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
def test_loss_and_gradients_are_the_definition_in_float64(data, kernel):
    method = ready(data, kernel=kernel, depth=1, bias=0.2, strength=1e-3)
    (term,) = method.terms(Clock(4, 10, seed=3)).values()
    term.sum.backward()
    real, labels = method.real.draw(6, ((3, 4), "real"))
    images = method.student.images.detach().double().requires_grad_()
    targets = method.student.targets.detach().double().requires_grad_()

    def k(a, b):
        return mlp_kernel(a, b, depth=1, bias=0.2, kind=kernel)

    k_ss = k(images, images)
    bent = k_ss + 1e-3 * k_ss.detach().trace() * torch.eye(6)
    wanted = torch.nn.functional.one_hot(labels, 3) - 1 / 3
    loss = 0.5 * (k(real.double(), images) @ torch.linalg.inv(bent) @ targets - wanted).square().sum(1).mean()
    loss.backward()
    assert term.sum.item() == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), images.grad, rtol=1e-2, atol=1e-4)
    assert torch.allclose(method.student.targets.grad.double(), targets.grad, rtol=1e-3, atol=1e-4)


def test_labels_may_stay(data):
    method = ready(data, learn_labels=False)
    method.terms(Clock(0, 1))["kernel"].sum.backward()
    assert method.student.targets.grad is None
    assert method.student.images.grad is not None


def error(method: KIP) -> float:
    images, targets = method.student()
    said = ridge(method.between(images, images), method.between(method.real.images, images), targets)
    wanted = first_targets(method.real.labels, 3, centred=True)
    return float((said - wanted).square().sum().detach())


def test_the_last_step_solves_for_the_best_labels(data):
    method = ready(data, solve=True)
    before, kept = error(method), method.student.targets.detach().clone()
    method.after_step(Clock(0, 2))
    assert torch.equal(method.student.targets, kept)
    method.after_step(Clock(1, 2))
    best = error(method)
    assert best < 0.7 * before
    with torch.no_grad():
        method.student.targets.add_(0.05)
    assert error(method) > best


def test_labels_that_are_classes_are_refused(data):
    student = SyntheticImages(torch.zeros(6, 1, 8, 8), LABELS)
    with pytest.raises(UserError, match="kip predicts numbers"):
        KIP().setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    with pytest.raises(UserError, match="depth"):
        KIP(depth=-1)
