"""DataDAM: its step against a float64 loop, and what it may and may not touch."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.methods.datadam import DataDAM
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 8, "depth": 2})
OPS = ("color", "crop", "cutout", "scale", "rotate")


def ready(data: Data, per_class: int = 2, images: torch.Tensor | None = None, **args) -> DataDAM:
    first = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(3).repeat_interleave(per_class)
    student = SyntheticImages(first if images is None else images, labels, valid_range(data.spec))
    method = DataDAM(**{"net": NET, "batch_real": 6, "augment": OPS, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def looked(network, x, power):
    """Attention after the first ReLU of two, and the last features, by the layers one by one."""
    conv, norm, relu, pool = network.stages[0]
    maps = relu(norm(conv(x)))
    plain = (maps.abs() ** power).sum(1).flatten(1)
    return plain / plain.norm(dim=1, keepdim=True), network.stages[1](pool(maps)).flatten(1)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_terms_and_gradient_are_the_papers_loop_in_float64(data, power):
    method, clock = ready(data, power=power, balance=0.3), Clock(2, 10, seed=3)
    terms = method.terms(clock)
    sum(t.weight * t.sum for t in terms.values()).backward()
    network = copy.deepcopy(fresh_network(NET, data.spec.offers(), ((3, 2), "network"))).double()
    real, real_labels = RealImages.of(data.train).draw(6, ((3, 2), "real"))
    draws = siamese(3, ((3, 2), "augment"), OPS)
    images = method.student.images.detach().double().requires_grad_()
    found = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
    for c in range(3):
        x, s = real[real_labels == c].double(), images[2 * c : 2 * c + 2]
        with torch.no_grad():
            wanted = looked(network, augment(x, draws, torch.full((len(x),), c)), power)
        given = looked(network, augment(s, draws, torch.full((2,), c)), power)
        for place in range(2):
            found[place] = found[place] + 100 * ((wanted[place].mean(0) - given[place].mean(0)) ** 2).sum()
    (gradient,) = torch.autograd.grad(found[0] + 0.3 * found[1], images)
    assert [t.sum.item() for t in terms.values()] == pytest.approx([f.item() for f in found], rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-4)
    assert [(n, t.count, t.weight) for n, t in terms.items()] == [("attention", 1, 1.0), ("features", 1, 0.3)]


def test_equal_sets_have_no_loss(data):
    real = RealImages.of(data.train)
    terms = ready(data, per_class=15, images=real.images.clone(), batch_real=15).terms(Clock(1, 2))
    assert all(t.sum.item() == pytest.approx(0, abs=1e-6) for t in terms.values())


def test_only_the_images_take_gradients(data):
    method = ready(data)
    nets, fresh = [], method.fresh
    method.fresh = lambda *args: nets.append(fresh(*args)) or nets[-1]
    sum(t.sum for t in method.terms(Clock(0, 1)).values()).backward()
    assert method.student.images.grad.abs().sum() > 0
    assert all(p.grad is None for p in nets[0].parameters())


def test_what_cannot_be_compared_is_refused(data):
    with pytest.raises(UserError, match="two ReLUs"):
        ready(data, net=Block("convnet", {"width": 8, "depth": 1})).terms(Clock(0, 1))
    with pytest.raises(UserError, match="power"):
        DataDAM(power=0.0)
