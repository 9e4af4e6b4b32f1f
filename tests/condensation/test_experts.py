"""Expert trajectories: one course against torch's optimizer, stacked against alone, and the buffer on disk."""

from __future__ import annotations

import copy
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation import experts as module
from limbeck.condensation.augment import augment, unpaired
from limbeck.condensation.experts import Course, Experts, alone, followed, functional, stacks_well, trajectories
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import RealImages
from limbeck.condensation.unroll import Flat
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import Block

NET = Block("convnet", {"width": 3, "depth": 1})
OPS = ("color", "crop", "cutout", "scale", "rotate")
EVERYTHING = {"momentum": 0.9, "weight_decay": 0.01, "drop": 0.5, "shares": (0.5, 0.7), "augment": OPS}


def course(**args) -> Course:
    return Course(**{"epochs": 3, "batch_size": 16, "lr": 0.1, **args})


def parts(data, block=NET, double=False):
    real = RealImages.of(data.train)
    if double:
        real.images = real.images.double()
    nets = [fresh_network(block, data.spec.offers(), n) for n in range(3)]
    nets = [n.double() for n in nets] if double else nets
    return real, nets, Flat(nets[0])


def test_an_expert_is_trained_as_torch_would(data):
    real, nets, flat = parts(data, double=True)
    taken = course(**EVERYTHING)
    found = trajectories(flat, flat.weights(nets[1])[None], real, taken, ["key"], until=3, stacked=False)
    network = copy.deepcopy(nets[1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    assert found.shape == (1, 4, flat.size)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch == 2 else 0.1
        order = uniform(torch.arange(45), (1,), ("key", epoch, "order"))[:, 0].argsort()
        for step, rows in enumerate(order.split(16)):
            x = augment(real.images[rows], unpaired(len(rows), ("key", epoch, step), OPS))
            optimizer.zero_grad()
            ((0.5, 0.7, 1.0)[epoch] * F.cross_entropy(network(x), real.labels[rows])).backward()
            optimizer.step()
        assert torch.allclose(found[0, epoch + 1], flat.weights(network), atol=1e-10)


@pytest.mark.parametrize("block", [NET, Block("mlp", {"hidden": 5}), Block("convnet", {**NET.args, "norm": "batch"})])
@pytest.mark.parametrize(
    "args", [{}, EVERYTHING, {"flat": "sam", "rho": 0.1}, {"flat": "gsam", "rho": 0.1}, {"penalty": 0.1}]
)
def test_stacked_is_alone_to_rounding(data, block, args):
    real, nets, flat = parts(data, block, double=True)
    starts = torch.stack([flat.weights(n) for n in nets])
    keys = ["a", "b", "c"]
    one, other = (
        trajectories(flat, starts, real, course(**args), keys, until=2, stacked=stacked) for stacked in (True, False)
    )
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(one[0, 2], one[1, 2])


@pytest.mark.parametrize("of", ["inputs", "weights"])
def test_the_penalty_is_the_squared_gradient(data, of):
    real, nets, flat = parts(data, double=True)
    weights = flat.weights(nets[0])
    x, y = real.images[::5], real.labels[::5]

    def value(w):
        with torch.enable_grad():
            w, images = w.detach().requires_grad_(), x.detach().requires_grad_()
            each = F.cross_entropy(flat(w, images), y, reduction="none")
            if of == "weights":
                squared = torch.autograd.grad(each.mean(), w)[0].square().sum()
            else:
                squared = torch.autograd.grad(each.sum(), images)[0].square().flatten(1).sum(1).mean()
            return float(0.5 * each.mean().detach() + 0.3 * squared)

    way = torch.randn(flat.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (value(weights + 1e-6 * way) - value(weights - 1e-6 * way)) / 2e-6
    for kind in (alone, functional):
        found = kind(flat, weights, x, y, 0.5, penalty=0.3, of=of)
        assert float(found @ way) == pytest.approx(slope, rel=1e-4)


def test_the_flat_ways_are_the_papers(data):
    real, nets, flat = parts(data, double=True)
    weights, x, y = flat.weights(nets[0]), real.images[::4], real.labels[::4]
    slope = partial(alone, flat)
    g = slope(weights, x, y, 1.0)
    h = slope(weights + 0.2 * g / g.norm(), x, y, 1.0)
    sam = followed(slope, weights, x, y, 1.0, course(flat="sam", rho=0.2))
    gsam = followed(slope, weights, x, y, 1.0, course(flat="gsam", rho=0.2, alpha=0.4))
    assert torch.allclose(sam, h)
    upright = (h - gsam) / 0.4
    assert float(upright @ h) == pytest.approx(0, abs=1e-9)
    assert torch.allclose(upright + (g @ h) / (h @ h) * h, g)


def test_stacking_is_for_what_gains_by_it(data):
    cpu = torch.device("cpu")
    assert not stacks_well(fresh_network(NET, data.spec.offers(), 0), cpu)
    assert stacks_well(fresh_network(Block("mlp", {"hidden": 4}), data.spec.offers(), 0), cpu)
    assert stacks_well(fresh_network(NET, data.spec.offers(), 0), torch.device("cuda"))


# -- the buffer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    return tmp_path


def buffer(data, count=3, seed=1, keep: str | None = "10MB", block=NET, **args) -> Experts:
    fresh = partial(fresh_network, block, data.spec.offers())
    return Experts(block, fresh, RealImages.of(data.train), course(**args), count, seed, keep=keep, quiet=True)


def all_of(experts: Experts) -> torch.Tensor:
    return torch.stack([torch.stack(experts.at(e, [0, 1, 2, 3], torch.device("cpu"))) for e in range(experts.count)])


def trained(experts: Experts) -> int:
    """Epochs of training while they are opened."""
    done, walk = [], module._walk
    with mock.patch.object(module, "_walk", lambda *a: done.append(len(a[1]) * a[-1]) or walk(*a)):
        all_of(experts)
    return sum(done)


def test_a_buffer_is_found_again_whoever_asks(data, home):
    first = all_of(buffer(data))
    assert torch.equal(all_of(buffer(data)), first)
    assert torch.equal(all_of(buffer(data, keep=None)), first)
    assert len(list(home.glob("**/experts/*/*.safetensors"))) == 1


def test_a_found_buffer_trains_one_epoch_and_more_experts_are_added(data, home):
    all_of(buffer(data, count=10))
    assert trained(buffer(data, count=10)) == 1
    assert trained(buffer(data, count=12)) == 1 + 2 * 3


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"lr": 0.2}, {"flat": "sam"}, {"block": Block("convnet", {"width": 4, "depth": 1})}]
)
def test_another_course_is_another_buffer(data, home, other):
    all_of(buffer(data))
    all_of(buffer(data, **other))
    assert len(list(home.glob("**/experts/*"))) == 2


def test_an_expert_starts_anew_and_learns(data):
    found = all_of(buffer(data, keep=None, lr=0.2))
    assert not torch.equal(found[0, 0], found[1, 0])
    experts = buffer(data)
    real = experts.real
    right = [(experts.net(w, real.images).argmax(1) == real.labels).double().mean().item() for w in found[0]]
    assert right[-1] > max(0.8, right[0])


def test_too_little_room_is_told(data, home):
    with pytest.raises(UserError, match=r"over method\.keep"):
        all_of(buffer(data, keep="1KB"))
