"""Dataset distillation: its loss and gradients against a float64 loop, its options, and what may move."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.few_steps import known_network, share
from limbeck.condensation.methods.dd import DD
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages, first_targets, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 1})


def ready(data: Data, per_class: int = 2, soft: bool = False, rate: float | None = 0.2, **args) -> DD:
    first = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(3).repeat_interleave(per_class)
    targets = first_targets(labels, 3, centred=False) + 0.1 if soft else None
    student = SyntheticImages(first, labels, valid_range(data.spec), targets=targets, rate=rate)
    method = DD(**{"net": NET, "batch_real": 6, "steps": 2, "epochs": 2, **args})
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def loss(method: DD, clock: Clock) -> torch.Tensor:
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student", "rate"), 1, 1.0)
    return term.sum


@pytest.mark.parametrize("inits", ["fixed", "random"])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradients_are_the_papers_loop_in_float64(data, inits, soft):
    method, clock = ready(data, soft=soft, inits=inits, networks=2), Clock(3, 10, seed=5)
    found = loss(method, clock)
    found.backward()
    images = method.student.images.detach().double().requires_grad_()
    labels = method.student.targets.detach().double().requires_grad_() if soft else method.student.labels
    raw = method.learners["rate"].raw.detach().double().requires_grad_()
    x, y = RealImages.of(data.train).draw(6, ((5, 3), "real"))
    total = []
    for number in range(1 if inits == "fixed" else 2):
        offers = data.spec.offers()
        network = fresh_network(NET, offers, ((5, 3), "network", number))
        network = copy.deepcopy(known_network(NET, offers, 5) if inits == "fixed" else network).double()
        weights = {n: p.detach().requires_grad_() for n, p in network.named_parameters()}
        for step in (0, 1, 0, 1):
            rows = torch.tensor([step, 2 + step, 4 + step])
            z = torch.func.functional_call(network, weights, (images[rows],))
            inner = F.cross_entropy(z, labels[rows])
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            rate = torch.log1p(raw.exp())
            weights = {n: w - rate * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
        total.append(F.cross_entropy(torch.func.functional_call(network, weights, (x.double(),)), y))
    expected = torch.stack(total).mean()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), images.grad, rtol=1e-3, atol=1e-6)
    assert method.learners["rate"].raw.grad.item() == pytest.approx(raw.grad.item(), rel=1e-3)
    if soft:
        assert torch.allclose(method.student.targets.grad.double(), labels.grad, rtol=1e-3, atol=1e-6)


def test_one_step_at_a_time_gives_the_same_gradient(data):
    grads = []
    for checkpoint in (False, True):
        method = ready(data, checkpoint=checkpoint)
        loss(method, Clock(1, 5)).backward()
        grads.append(method.student.images.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-8)


def test_fixed_weights_are_the_same_at_every_step_and_random_ones_are_not(data):
    for inits in ("fixed", "random"):
        method = ready(data, inits=inits, batch_real=15)
        assert (loss(method, Clock(0, 2)).item() == loss(method, Clock(1, 2)).item()) == (inits == "fixed")


def test_the_rate_learns_and_is_stored_with_the_images(data):
    method = ready(data)
    rate = method.learners["rate"]
    assert method.rate().item() == pytest.approx(0.2, rel=1e-5)
    optimizer = torch.optim.Adam([*method.student.parameters(), *rate.parameters()], lr=0.05)
    values = []
    for step in range(25):
        optimizer.zero_grad()
        value = loss(method, Clock(step, 25))
        value.backward()
        optimizer.step()
        method.after_step(Clock(step, 25))
        values.append(value.item())
    assert sum(values[-5:]) < 0.7 * sum(values[:5])
    assert method.student.rate.item() == pytest.approx(method.rate().item())
    assert method.student.rate.item() != pytest.approx(0.2, rel=1e-3)
    assert "rate" in method.student.state_dict()


def test_the_shares_of_the_steps_hold_every_class_alike():
    labels = torch.arange(3).repeat_interleave(4)
    parts = [share(12, 2, n) for n in range(4)]
    assert torch.equal(torch.cat(parts[:2]).sort().values, torch.arange(12))
    assert all(torch.bincount(labels[p]).tolist() == [2, 2, 2] for p in parts)
    assert torch.equal(parts[0], parts[2])
    assert not any(torch.equal(a, b) for a, b in pairwise(parts))


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="dd learns the rate"):
        ready(data, rate=None)
    with pytest.raises(UserError, match="dealt evenly into 4 steps"):
        ready(data, steps=4)
    with pytest.raises(UserError, match="1 or more"):
        ready(data, epochs=0)
