"""Descent in the graph: against one that is written out, finite differences, and itself without its graph."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.networks import fresh_network
from limbeck.condensation.unroll import Flat, gradient, unroll
from limbeck.registry import Block

N = 4


def network(data, norm="instance"):
    block = Block("convnet", {"width": 3, "depth": 1, "norm": norm})
    return fresh_network(block, data.spec.offers(), "net").double()


def task(data, norm="instance"):
    flat = Flat(network(data, norm))
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(flat.size, generator=generator, dtype=torch.float64)

    def loss(weights, step, x, y):
        rows = torch.arange(6)[step % 2 :: 2]
        return F.cross_entropy(flat(weights, x[rows]), y[rows].softmax(1))

    def end(x, y, rate, **how):
        return (unroll(loss, flat.weights(flat.network), rate, N, (x, y), **how)[-1] - target).square().sum()

    rate = torch.tensor(0.3, dtype=torch.float64)
    return flat, end, [t.requires_grad_() for t in (images, targets, rate)]


def test_a_vector_of_weights_is_the_network(data):
    plain = network(data)
    flat, x = Flat(plain), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    weights = flat.weights(plain)
    assert torch.allclose(flat(weights, x), plain(x))
    other = flat.put(copy.deepcopy(plain), weights * 0.5)
    assert torch.allclose(other(x), flat(weights * 0.5, x))
    module, _ = flat.bound(weights * 0.5)
    assert torch.allclose(module(x), other(x))
    assert torch.equal(flat.weights(plain), weights)
    named = flat.named(weights)
    assert all(torch.equal(named[name], p) for name, p in plain.named_parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_descent_is_that_of_torch(data, momentum):
    plain = network(data)
    flat, x = Flat(plain), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    start = flat.weights(plain)
    found = unroll(lambda w, k: flat(w, x).square().mean(), start, torch.tensor(0.1), N, momentum=momentum)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=momentum)
    for k in range(N):
        assert torch.allclose(found[k], flat.weights(plain))
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
    assert torch.allclose(found[N], flat.weights(plain))


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_is_that_of_finite_differences(data, momentum, checkpoint):
    _, end, at = task(data)
    how = {"momentum": momentum, "checkpoint": checkpoint}
    found = torch.autograd.grad(end(*at, **how), at)
    for place, slope in enumerate(found):
        way = torch.randn(slope.shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            moved = [x.detach().clone() for x in at]
            moved[place] += sign * 1e-5 * way
            sides.append(float(end(*moved, **how).detach()))
        assert float((slope * way).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


def test_the_gradient_is_that_of_a_loop_over_named_weights(data):
    flat, end, (x, y, rate) = task(data)
    found = torch.autograd.grad(end(x, y, rate, momentum=0.5), (x, y, rate))
    plain = flat.network
    weights = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    for k in range(N):
        rows = torch.arange(6)[k % 2 :: 2]
        z = torch.func.functional_call(plain, weights, (x[rows],))
        loss = -(y[rows].softmax(1) * z.log_softmax(1)).sum(1).mean()
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        velocity = {name: 0.5 * v + g for (name, v), g in zip(velocity.items(), slopes, strict=True)}
        weights = {name: w - rate * velocity[name] for name, w in weights.items()}
    generator = torch.Generator().manual_seed(2)
    # The task's generator has drawn images and targets before the target.
    *_, target = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 1, 8, 8), (6, 3), (flat.size,))
    )
    end_of_loop = (torch.cat([w.flatten() for w in weights.values()]) - target).square().sum()
    for one, other in zip(found, torch.autograd.grad(end_of_loop, (x, y, rate)), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_its_graph_the_gradient_is_the_same(data, momentum):
    _, end, at = task(data)
    plain = torch.autograd.grad(end(*at, momentum=momentum), at)
    again = torch.autograd.grad(end(*at, momentum=momentum, checkpoint=True), at)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(plain, again, strict=True))


class Kept:
    """A tensor that waits for a backward."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_a_forgetful_descent_keeps_the_graph_of_no_step(data):
    left = {}
    for checkpoint in (False, True):
        alive = weakref.WeakSet()

        def pack(tensor, alive=alive):
            kept = Kept(tensor)
            alive.add(kept)
            return kept

        _, end, at = task(data)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            value = end(*at, checkpoint=checkpoint)
        gc.collect()
        left[checkpoint] = sum(kept.tensor.numel() for kept in alive)
        del value
    assert left[True] < left[False] / 5


def test_batch_norm_leaks_nothing(data):
    plain = network(data, "batch")
    before = {name: b.clone() for name, b in plain.named_buffers()}
    flat, x = Flat(plain), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    weights = flat.weights(plain)
    first = flat(weights, x)
    unroll(lambda w, k: flat(w, 3 * x + k).square().mean(), weights, torch.tensor(0.1), 2)
    assert torch.equal(flat(weights, x), first)
    assert all(torch.equal(before[name], b) for name, b in plain.named_buffers())
    assert not any(name.endswith("running_mean") for name, b in flat.network.named_buffers() if b is not None)
    assert torch.allclose(first, plain(x))


def test_a_gradient_alone_has_no_graph(data):
    flat = Flat(network(data))
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = flat.weights(flat.network)
    found = gradient(lambda w, k, x: flat(w, x).square().mean(), weights, 0, (x,))
    assert not found.requires_grad
    assert found.shape == weights.shape
