"""IDM: its two terms in float64, and its queue of networks that learn."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.idm import FIRST, IDM
from limbeck.condensation.synthetic import SyntheticImages, untiled
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 2})


def ready(data: Data, **args) -> IDM:
    first = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    method = IDM(**{"net": NET, "batch_real": 6, "augment": (), "net_batch": 16, "push_every": 4, **args})
    student = SyntheticImages(first, torch.arange(3), tiles=2)
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method


def go(method: IDM, steps: int, start: int = 0) -> None:
    for step in range(start, steps):
        method.terms(Clock(step, 100))
        method.after_step(Clock(step, 100))


def test_terms_and_gradient_are_the_definition_in_float64(data):
    method = ready(data, looking=2, net_lr=0.1)
    go(method, 3)
    clock = Clock(3, 100)
    terms = method.terms(clock)
    sum(t.weight * t.sum / t.count for t in terms.values()).backward()
    images = method.student.images.detach().double().requires_grad_()
    formed, dm, ce = untiled(images, 2), 0, 0
    for number in method.chosen(2, ((0, 3), "looking")):
        network = copy.deepcopy(method._networks[number]).double()
        real, real_labels = method.real.draw(6, (((0, 3), number), "real"))

        def seen(x, network=network):
            return network.stages[1][:3](network.stages[0](x)).flatten(1)

        share = method._accuracies[number].double()
        assert share > 0.2
        for c in range(3):
            own = formed[4 * c : 4 * c + 4]
            gap = seen(real[real_labels == c].double()).mean(0) - seen(own).mean(0)
            dm = dm + gap.square().sum()
            ce = ce + share * F.cross_entropy(network(own), torch.full((4,), c))
    (gradient,) = torch.autograd.grad(dm + 10 * ce, images)
    assert terms["dm"].sum.item() == pytest.approx(dm.item(), rel=1e-4)
    assert terms["ce"].sum.item() == pytest.approx(ce.item(), rel=1e-4)
    assert torch.allclose(method.student.images.grad.double(), gradient, rtol=1e-3, atol=1e-5)


def test_fresh_networks_join_and_the_oldest_leave(data):
    method = ready(data, queue=5)
    seen = []
    for step in range(14):
        method.terms(Clock(step, 100))
        seen.append(sorted(method._networks))
        method.after_step(Clock(step, 100))
    assert seen[0] == [0, 1, 2, FIRST]
    assert seen[4] == [0, 1, 2, 3, 4]
    assert seen[8] == [1, 2, 3, 4, 5]
    assert seen[13] == [2, 3, 4, 5, 6]


def test_networks_learn_real_images_and_know_how_well(data):
    method = ready(data, learning=4, net_steps=40, net_lr=0.1)
    images = method.student.images.detach().clone()
    go(method, 2)
    assert torch.equal(method.student.images, images)
    for number, network in method._networks.items():
        right = (network(method.real.images).argmax(1) == method.real.labels).double().mean()
        assert right > 0.9
        assert method._accuracies[number] > 0.8
    idle = ready(data, learning=0)
    go(idle, 2)
    assert all(float(a) == 0 for a in idle._accuracies.values())
    assert idle.terms(Clock(2, 100))["ce"].sum.item() == 0


def test_a_resumed_run_goes_on_with_the_queue(data):
    one, other = ready(data, queue=4), ready(data, queue=4)
    go(one, 6)
    other.load_state_dict(one.state_dict())
    for step in range(6, 9):
        a, b = (m.terms(Clock(step, 100)) for m in (one, other))
        assert [t.sum.item() for t in a.values()] == [t.sum.item() for t in b.values()]
        for method in (one, other):
            method.after_step(Clock(step, 100))
    assert other.state_dict().keys() == one.state_dict().keys()


@pytest.mark.parametrize(
    "wrong", [{"queue": 0}, {"push_every": 0}, {"looking": 0}, {"learning": -1}, {"net_steps": -1}]
)
def test_a_queue_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="idm: queue"):
        IDM(**wrong)
