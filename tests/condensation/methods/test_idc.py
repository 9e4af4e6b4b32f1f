"""IDC: distances of kernels' gradients, networks that learn real images, mosaics that learn."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.idc import IDC
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages, untiled
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 2})


def ready(data: Data, tiles: int = 2, **args) -> IDC:
    first = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    settings = {"net": NET, "batch_real": 6, "augment": (), "net_data": 20, "net_batch": 8, "clamp": False}
    method = IDC(**{**settings, **args})
    student = SyntheticImages(first, torch.arange(3), tiles=tiles)
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_loss_and_gradient_are_the_definition_in_float64(data, distance):
    method = ready(data, distance=distance)
    (term,) = method.terms(Clock(100, 300, seed=3)).values()
    term.sum.backward()
    network = copy.deepcopy(fresh_network(NET, data.spec.offers(), (3, 1, "network"))).double()
    kernels = [network.stages[0][0].weight, network.stages[1][0].weight]
    real, real_labels = RealImages.of(data.train).draw(6, ((3, 100), "real"))
    images = method.student.images.detach().double().requires_grad_()
    formed, total = untiled(images, 2), 0
    for c in range(3):
        grads = [
            torch.autograd.grad(F.cross_entropy(network(x), torch.full((len(x),), c)), kernels, create_graph=True)
            for x in (real[real_labels == c].double(), formed[4 * c : 4 * c + 4])
        ]
        for a, b in zip(*grads, strict=True):
            gap = a.detach() - b
            total = total + (gap.abs() if distance == "l1" else gap.square()).sum()
    (gradient,) = torch.autograd.grad(total, images)
    assert term.sum.item() == pytest.approx(total.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-5)


def accuracy(method: IDC) -> float:
    real = method.real
    return float((method.network(real.images).argmax(1) == real.labels).double().mean())


def test_the_network_learns_real_images_and_not_the_set(data):
    method = ready(data, inner=30, net_lr=0.05, net_cutmix=0.0)
    method.terms(Clock(0, 9))
    before, images = accuracy(method), method.student.images.detach().clone()
    method.after_step(Clock(0, 9))
    assert accuracy(method) > max(before + 0.2, 0.9)
    assert torch.equal(method.student.images, images)


def test_a_fresh_network_may_learn_before_its_first_step(data):
    method = ready(data, early=20, net_lr=0.05, outer=2)
    method.terms(Clock(2, 9))
    assert accuracy(method) > 0.7
    weights = method.network.head.weight.clone()
    method.terms(Clock(3, 9))
    assert torch.equal(method.network.head.weight, weights)


def test_a_resumed_run_goes_on_with_weights_and_momenta(data):
    one, other = ready(data), ready(data)
    for step in range(2):
        one.terms(Clock(step, 9))
        one.after_step(Clock(step, 9))
    other.load_state_dict(one.state_dict())
    assert other.state_dict().keys() == one.state_dict().keys()
    for step in (2, 3):
        a, b = (m.terms(Clock(step, 9))["gradients"].sum.item() for m in (one, other))
        assert a == b
        for method in (one, other):
            method.after_step(Clock(step, 9))
    third = ready(data)
    third.load_state_dict({k: v for k, v in one.state_dict().items() if not k.startswith("momentum.")})
    third.terms(Clock(4, 9))
    third.after_step(Clock(4, 9))
    one.terms(Clock(4, 9))
    one.after_step(Clock(4, 9))
    assert not torch.equal(third.network.head.weight, one.network.head.weight)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="early"):
        IDC(early=-1)
    with pytest.raises(UserError, match="no convolution"):
        ready(data, net=Block("mlp")).terms(Clock(0, 1))
