"""Distribution matching: its step against a float64 loop, and what it may and may not touch."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.methods.dm import DM
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block, find

NET = Block("convnet", {"width": 8, "depth": 2})
OPS = ("color", "crop", "cutout", "scale", "rotate")
BATCH = {"id": torch.arange(1), "view": 0}


def ready(data: Data, per_class: int = 2, images: torch.Tensor | None = None, **args) -> DM:
    first = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(3).repeat_interleave(per_class)
    student = SyntheticImages(first if images is None else images, labels, valid_range(data.spec))
    method = DM(**{"net": NET, "batch_real": 6, "augment": OPS, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def loss(method: DM, clock: Clock) -> torch.Tensor:
    (update,) = method.updates(BATCH, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student",), 1, 1.0)
    return term.sum


@pytest.mark.parametrize("step", range(4))
def test_loss_and_gradient_are_the_papers_loop_in_float64(data, step):
    """One network, one draw per class, classes one by one, everything in double precision."""
    method, clock = ready(data), Clock(step, 10, seed=3)
    found = loss(method, clock)
    found.backward()

    key = (3, step)
    network = copy.deepcopy(fresh_network(NET, data.spec.offers(), (key, "network"))).double()
    real, real_labels = RealImages.of(data.train).draw(6, (key, "real"))
    draws = siamese(3, (key, "augment"), OPS)
    images = method.student.images.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        x, s = real[real_labels == c].double(), images[2 * c : 2 * c + 2]
        with torch.no_grad():
            target = network.features(augment(x, draws, torch.full((len(x),), c))).mean(0)
        mean = network.features(augment(s, draws, torch.full((2,), c))).mean(0)
        total = total + ((target - mean) ** 2).sum()
    (gradient,) = torch.autograd.grad(total, images)
    assert found.item() == pytest.approx(total.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-6)


def test_equal_sets_have_no_loss(data):
    real = RealImages.of(data.train)
    method = ready(data, per_class=15, images=real.images.clone(), batch_real=15, augment=())
    value = loss(method, Clock(0, 1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert method.student.images.grad.abs().max() < 1e-6


def test_equal_sets_have_no_loss_under_paired_augmentation(data):
    real = RealImages.of(data.train)
    method = ready(data, per_class=15, images=real.images.clone(), batch_real=15)
    assert loss(method, Clock(5, 9)).item() == pytest.approx(0, abs=1e-8)


def test_only_the_images_take_gradients(data, monkeypatch):
    nets = []
    method = ready(data)
    fresh = method.fresh
    method.fresh = lambda *args: nets.append(fresh(*args)) or nets[-1]
    loss(method, Clock(0, 1)).backward()
    assert method.student.images.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in nets[0].parameters())
    assert not method.real.images.requires_grad
    assert set(method.learners) == {"student"}


def test_a_step_depends_on_seed_and_step_alone(data):
    torch.manual_seed(0)
    first = loss(ready(data), Clock(4, 10, seed=1)).item()
    state = torch.get_rng_state()
    method = ready(data)
    loss(method, Clock(0, 10, seed=1))
    assert loss(method, Clock(4, 10, seed=1)).item() == first
    assert torch.equal(torch.get_rng_state(), state)
    assert loss(method, Clock(5, 10, seed=1)).item() != first
    assert loss(method, Clock(4, 10, seed=2)).item() != first


def test_descent_brings_class_means_together(data):
    method = ready(data, per_class=1)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=1.0, momentum=0.5)
    values = []
    for step in range(30):
        optimizer.zero_grad()
        value = loss(method, Clock(step, 30))
        value.backward()
        optimizer.step()
        method.after_step(Clock(step, 30))
        values.append(value.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


@pytest.mark.parametrize("clamp", [False, True])
def test_clamping_is_a_choice(data, clamp):
    method = ready(data, clamp=clamp)
    with torch.no_grad():
        method.student.images.mul_(100)
    method.after_step(Clock(0, 1))
    assert (float(method.student.images.detach().max()) == 2) == clamp


def test_batch_norm_networks_see_all_classes_at_once(data):
    method = ready(data, net=Block("convnet", {"width": 8, "depth": 2, "norm": "batch"}))
    loss(method, Clock(0, 1)).backward()
    assert method.student.images.grad.isfinite().all()


def test_the_loop_is_told_what_it_must_know():
    facts = find("method", "dm").facts
    assert facts["couples_samples"]
    assert facts["data_free"]
    assert facts["controls"]["random"]["method"]["name"] == "real_subset"
    assert DM().count(BATCH)["sets"] == 1


def test_the_papers_network_is_the_default(data):
    method = ready(data, net=None)
    network = method.fresh("key")
    assert (len(network.stages), network.head.in_features) == (1, 128 * 16)


def test_mistakes_are_told(data):
    offers, streams = data.spec.offers(), {"data": data.train}
    with pytest.raises(UserError, match="not Linear"):
        DM().setup(Parts(torch.nn.Linear(2, 2), data=data.spec, offers=offers, streams=streams))
    data.train.labels = data.train.labels % 2
    with pytest.raises(UserError, match="class 2 has 0"):
        ready(data)
