"""FRePo: its step in float64, and its pool."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.condensation.methods.frepo import FRePo
from limbeck.condensation.synthetic import SyntheticImages, first_targets
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

LABELS = torch.arange(3).repeat_interleave(2)
NET = Block("convnet", {"width": 2, "depth": 2, "norm": "batch", "double": True})


def ready(data: Data, **args) -> FRePo:
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    student = SyntheticImages(first, LABELS, targets=first_targets(LABELS, 3, centred=True), regression=True)
    method = FRePo(**{"net": NET, "batch_real": 6, "pool": 2, "life": 5, "net_lr": 0.01, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def go(method: FRePo, steps: range) -> list[float]:
    found = []
    for step in steps:
        clock = Clock(step, 100, seed=3)
        found.append(method.terms(clock)["features"].sum.item())
        method.after_step(clock)
    return found


def test_loss_and_gradients_are_the_definition_in_float64(data):
    method = ready(data, strength=1e-3)
    go(method, range(3))
    clock = Clock(3, 100, seed=3)
    (term,) = method.terms(clock).values()
    term.sum.backward()
    network = copy.deepcopy(method._pool.network(3, torch.device("cpu"))).double().eval()
    real, labels = method.real.draw(6, ((3, 3), "real"))
    images = method.student.images.detach().double().requires_grad_()
    targets = method.student.targets.detach().double().requires_grad_()
    own, theirs = network.features(images), network.features(real.double())
    assert own.shape == (6, 16)
    k_ss, k_ts = own @ own.T + 1, theirs @ own.T + 1
    bent = k_ss + 1e-3 * k_ss.detach().trace() * torch.eye(6)
    wanted = torch.nn.functional.one_hot(labels, 3) - 1 / 3
    loss = 0.5 * (k_ts @ torch.linalg.inv(bent) @ targets - wanted).square().sum(1).mean()
    loss.backward()
    assert term.sum.item() == pytest.approx(loss.item(), rel=1e-3)
    assert torch.allclose(method.student.images.grad.double(), images.grad, rtol=1e-2, atol=1e-4)
    assert torch.allclose(method.student.targets.grad.double(), targets.grad, rtol=1e-2, atol=1e-4)


def test_the_networks_learn_the_set_and_leave_it(data):
    method = ready(data, pool=1, life=60, net_lr=0.02)
    images = method.student.images.detach().clone()
    device = torch.device("cpu")

    def error() -> float:
        network = method.networks(Clock(0, 1, seed=3)).network(0, device).eval()
        return float((network(images) - method.student.targets).square().mean().detach())

    before = error()
    go(method, range(50))
    assert error() < 0.3 * before
    assert torch.equal(method.student.images, images)
    assert method.student.images.grad is None


def test_a_resumed_run_goes_on_with_the_pool(data):
    one, other = ready(data), ready(data)
    go(one, range(7))
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert other.state_dict().keys() == one.state_dict().keys()
    assert go(other, range(7, 12)) == go(one, range(7, 12))


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"life": -1}, {"net_batch": 0}])
def test_a_pool_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="frepo: pool"):
        FRePo(**wrong)
