"""Gradient matching: its step against a float64 graph in one piece, its loops, and what it may and may not touch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.methods.dc import DC
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 2})
OPS = ("color", "crop", "scale", "rotate")


def ready(data: Data, per_class: int = 2, images: torch.Tensor | None = None, **args) -> DC:
    first = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(3).repeat_interleave(per_class)
    student = SyntheticImages(first if images is None else images, labels, valid_range(data.spec))
    method = DC(**{"net": NET, "batch_real": 6, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def loss(method: DC, clock: Clock) -> torch.Tensor:
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student",), 1, 1.0)
    return term.sum


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row by row."""
    rows = [(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]
    return sum(1 - x.dot(y) / (x.norm() * y.norm() + 1e-6) for x, y in rows)


@pytest.mark.parametrize(("ops", "paired"), [((), True), (OPS, True), (OPS, False)])
def test_loss_and_gradient_are_the_papers_graph_in_float64(data, ops, paired):
    method, clock = ready(data, augment=ops, paired=paired), Clock(2, 10, seed=3)
    found = loss(method, clock)
    found.backward()
    network = copy.deepcopy(fresh_network(NET, data.spec.offers(), (3, 2, "network"))).double()
    weights = [p for p in network.parameters() if p.dim() > 1]
    real, real_labels = RealImages.of(data.train).draw(6, ((3, 2), "real"))
    images = method.student.images.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        sides = [real[real_labels == c].double(), images[2 * c : 2 * c + 2]]
        for place, name in enumerate(("augment", "augment" if paired else "augment of the images") if ops else ()):
            draws, group = siamese(3, ((3, 2), name), ops), torch.full((len(sides[place]),), c)
            sides[place] = augment(sides[place], draws, group)
        losses = [F.cross_entropy(network(x), torch.full((len(x),), c)) for x in sides]
        a, b = (torch.autograd.grad(each, weights, create_graph=True) for each in losses)
        total = total + sum(distance(x.detach(), y) for x, y in zip(a, b, strict=True))
    (gradient,) = torch.autograd.grad(total, images)
    assert found.item() == pytest.approx(total.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-5)


def test_the_second_order_gradient_is_that_of_finite_differences(data):
    method = ready(data)
    method.real.images = method.real.images.double()
    network = fresh_network(NET, data.spec.offers(), "net").double()

    def total(images):
        return sum(method.classes(network, images, (0, 0)))

    images = method.student.images.detach().double()
    (gradient,) = torch.autograd.grad(total(images.requires_grad_()), images)
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    away = total((images + 1e-5 * way).detach()) - total((images - 1e-5 * way).detach())
    assert float((gradient * way).sum()) == pytest.approx(float(away.detach()) / 2e-5, rel=1e-4)


def test_equal_sets_are_alike_only_under_the_same_augmentation(data):
    real = RealImages.of(data.train)
    same = {"per_class": 15, "images": real.images.clone(), "batch_real": 15}
    assert loss(ready(data, **same), Clock(1, 9)).item() == pytest.approx(0, abs=1e-3)
    assert loss(ready(data, **same, augment=OPS), Clock(1, 9)).item() == pytest.approx(0, abs=1e-3)
    assert loss(ready(data, **same, augment=OPS, paired=False), Clock(1, 9)).item() > 0.1


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_distance_is_a_choice(data, distance):
    assert loss(ready(data, distance=distance), Clock(0, 1)).item() != loss(ready(data), Clock(0, 1)).item()


def weights(method: DC) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in method.network.parameters()])


def test_a_network_lasts_for_the_outer_steps_and_learns_between(data):
    method = ready(data, outer=3, inner=2, net_lr=0.1)
    seen = []
    for step in range(7):
        clock = Clock(step, 7)
        loss(method, clock)
        before = weights(method)
        method.after_step(clock)
        seen.append((before, weights(method)))
    learnt = [not torch.equal(before, after) for before, after in seen]
    assert learnt == [True, True, False, True, True, False, True]
    assert torch.equal(seen[0][1], seen[1][0])
    assert not torch.equal(seen[3][0], seen[2][1])
    assert not torch.equal(seen[3][0], seen[0][0])


def test_learning_between_lowers_the_loss_of_the_images_and_leaves_them(data):
    method = ready(data, outer=2, inner=40, net_lr=0.1)
    loss(method, Clock(0, 2))
    images, labels = (t.detach().clone() for t in method.student())
    before = F.cross_entropy(method.network(images), labels).item()
    method.after_step(Clock(0, 2))
    assert F.cross_entropy(method.network(images), labels).item() < 0.5 * before
    assert torch.equal(method.student.images, images)
    assert method.student.images.grad is None


def test_a_resumed_run_goes_on_with_the_network_that_it_had(data):
    one, other = (ready(data, outer=4, inner=2, net_lr=0.1) for _ in range(2))
    for step in range(2):
        loss(one, Clock(step, 4))
        one.after_step(Clock(step, 4))
    other.load_state_dict(one.state_dict())
    assert other.state_dict().keys() == one.state_dict().keys()
    assert loss(other, Clock(2, 4)).item() == loss(one, Clock(2, 4)).item()
    assert loss(ready(data, outer=4, inner=2, net_lr=0.1), Clock(2, 4)).item() != loss(one, Clock(2, 4)).item()


def test_the_loops_follow_from_the_images_per_class(data):
    assert ready(data, per_class=1).loops == (1, 1)
    assert ready(data, per_class=9).loops == (10, 50)
    assert ready(data, per_class=9, inner=3).loops == (10, 3)
    assert ready(data, per_class=1, outer=2).says() == [
        "a fresh network every 2 steps, which learns the images for 1 epochs between"
    ]


def test_batch_norm_takes_its_statistics_from_real_images_and_keeps_them(data):
    method = ready(data, net=Block("convnet", {"width": 4, "depth": 2, "norm": "batch"}))
    method.terms(Clock(0, 1))
    norms = [m for m in method.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(not m.training and m.num_batches_tracked == 1 for m in norms)


@pytest.mark.parametrize("wrong", [{"outer": 0}, {"inner": -1}, {"net_batch": 0}])
def test_loops_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="dc: outer"):
        DC(**wrong)
