"""CAFE: its three terms in float64, and its loops that watch accuracies."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.cafe import CAFE
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages, SyntheticImages
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 2})


def ready(data: Data, **args) -> CAFE:
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    method = CAFE(**{"net": NET, "batch_real": 6, "query": 6, **args})
    student = SyntheticImages(first, torch.arange(3).repeat_interleave(2))
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def test_terms_and_gradient_are_the_definition_in_float64(data):
    method = ready(data, early_weight=0.3)
    terms = method.terms(Clock(2, 10, seed=3))
    sum(t.weight * t.sum / t.count for t in terms.values()).backward()
    network = copy.deepcopy(fresh_network(NET, data.spec.offers(), (3, 2, "network"))).double()
    real, real_labels = RealImages.of(data.train).draw(6, ((3, 2), "real"))
    images = method.student.images.detach().double().requires_grad_()

    def seen(x):
        first = network.stages[0][:3](x)
        last = network.stages[1][:3](network.stages[0](x))
        return first.flatten(1), last.flatten(1), network.features(x)

    layers = features = 0
    a, b = seen(real.double()), seen(images)
    for c in range(3):
        pairs = [(x[real_labels == c].mean(0), y[2 * c : 2 * c + 2].mean(0)) for x, y in zip(a, b, strict=True)]
        gaps = [(x - y).square().sum() for x, y in pairs]
        layers, features = layers + 0.3 * gaps[0] + gaps[1], features + gaps[2]
    centres = torch.stack([b[2][2 * c : 2 * c + 2].mean(0) for c in range(3)])
    told = sum(F.cross_entropy((centres @ f)[None], y[None]) for f, y in zip(a[2], real_labels, strict=True))
    (gradient,) = torch.autograd.grad(layers + 2 * features + 0.01 * told, images)
    for name, wanted in (("layers", layers), ("features", features), ("centres", told)):
        assert terms[name].sum.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-5)


def lives(method: CAFE, steps: int) -> list[int]:
    """The step at which each step's network was born."""
    born = []
    for step in range(steps):
        method.terms(Clock(step, steps))
        born.append(method._born)
        method.after_step(Clock(step, steps))
    return born


def test_a_network_makes_way_when_its_accuracies_have_settled(data):
    assert lives(ready(data, outer_range=2.0, inner=0), 25) == [0] * 10 + [10] * 10 + [20] * 5
    assert lives(ready(data, outer_range=2.0, inner=0, watched=2), 5) == [0, 0, 2, 2, 4]
    assert lives(ready(data, outer_range=0.0, inner=0), 25) == [0] * 25
    assert lives(ready(data, outer_range=0.0, inner=0, outer=4), 9) == [0] * 4 + [4] * 4 + [8]


def test_the_network_learns_until_its_accuracy_has_moved(data, monkeypatch):
    from limbeck.condensation.methods import cafe

    passes = []
    original = cafe.descend
    monkeypatch.setattr(cafe, "descend", lambda *a, **k: (passes.append(1), original(*a, **k)))
    for bound, wanted in ((-1.0, 10), (2.0, 17)):
        passes.clear()
        method = ready(data, inner_range=bound, inner=17)
        method.terms(Clock(0, 9))
        method.after_step(Clock(0, 9))
        assert len(passes) == wanted
        assert method.student.images.grad is None


def test_a_resumed_run_goes_on_with_network_and_accuracies(data):
    one, other = ready(data, inner=3), ready(data, inner=3)
    for step in range(3):
        one.terms(Clock(step, 9))
        one.after_step(Clock(step, 9))
    other.load_state_dict(one.state_dict())
    a, b = (m.terms(Clock(3, 9)) for m in (one, other))
    assert [t.sum.item() for t in a.values()] == [t.sum.item() for t in b.values()]
    assert (one._born, one._seen) == (other._born, other._seen)
    assert len(one._seen) == 3
    fresh = ready(data, inner=3).terms(Clock(3, 9))
    assert fresh["layers"].sum.item() != a["layers"].sum.item()


@pytest.mark.parametrize("wrong", [{"outer": 0}, {"inner": -1}, {"query": 0}, {"net_batch": 0}])
def test_loops_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="cafe: outer"):
        CAFE(**wrong)
