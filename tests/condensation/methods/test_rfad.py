"""RFAD: random features side by side, and Platt scaling, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.kernels import ridge
from limbeck.condensation.methods.rfad import RFAD
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import SyntheticImages, first_targets
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

LABELS = torch.arange(3).repeat_interleave(2)
NET = Block("convnet", {"width": 4, "depth": 1, "norm": "none"})


def ready(data: Data, **args) -> RFAD:
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    student = SyntheticImages(first, LABELS, targets=first_targets(LABELS, 3, centred=True), regression=True)
    method = RFAD(**{"net": NET, "batch_real": 6, "networks": 3, "strength": 1e-3, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


@pytest.mark.parametrize("loss", ["platt", "squared"])
def test_loss_and_gradients_are_those_of_features_side_by_side(data, loss):
    method = ready(data, loss=loss, temperature=0.5)
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, Clock(4, 10, seed=3))
    assert update.roles == (("student", "temperature") if loss == "platt" else ("student",))
    (term,) = update.evaluate().values()
    term.sum.backward()
    networks = [copy.deepcopy(fresh_network(NET, data.spec.offers(), (3, 4, number))).double() for number in range(3)]
    real, labels = method.real.draw(6, ((3, 4), "real"))
    images = method.student.images.detach().double().requires_grad_()

    def features(x):
        together = torch.cat([network.features(x) for network in networks], 1)
        return together / together.shape[1] ** 0.5

    own, theirs = features(images), features(real.double())
    said = ridge(own @ own.T, theirs @ own.T, method.student.targets.detach().double(), 1e-3)
    log = torch.tensor(0.5, dtype=torch.float64).log().requires_grad_()
    if loss == "platt":
        wanted = F.cross_entropy(said / log.exp(), labels)
    else:
        wanted = 0.5 * (said - (F.one_hot(labels, 3) - 1 / 3)).square().sum(1).mean()
    wanted.backward()
    assert term.sum.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), images.grad, rtol=1e-2, atol=1e-5)
    if loss == "platt":
        assert method.learners["temperature"].log.grad.item() == pytest.approx(log.grad.item(), rel=1e-3)


def test_the_networks_are_fresh_in_each_step(data):
    method = ready(data)
    assert method.terms(Clock(0, 9))["kernel"].sum.item() != method.terms(Clock(1, 9))["kernel"].sum.item()
    assert method.terms(Clock(0, 9))["kernel"].sum.item() == method.terms(Clock(0, 9))["kernel"].sum.item()


@pytest.mark.parametrize("wrong", [{"networks": 0}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="rfad: networks"):
        RFAD(**wrong)
