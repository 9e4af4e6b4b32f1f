"""The distance to an expert, and its gradient in constant memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.networks import fresh_network
from limbeck.condensation.trajectory import constant_memory, distance
from limbeck.condensation.unroll import Flat, unroll
from limbeck.registry import Block

DOUBLE = torch.float64


def task(data):
    network = fresh_network(Block("convnet", {"width": 3, "depth": 1}), data.spec.offers(), "net").double()
    flat, generator = Flat(network), torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=DOUBLE).requires_grad_()
    targets = torch.rand(6, 3, generator=generator, dtype=DOUBLE).requires_grad_()
    begin = flat.weights(network)
    target = begin + 0.1 * torch.randn(flat.size, generator=generator, dtype=DOUBLE)
    rate = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)

    def loss(weights, k, x, y):
        rows = torch.arange(6)[k % 2 :: 2]
        return F.cross_entropy(flat(weights, x[rows]), y[rows])

    return loss, begin, target, rate, (images, targets)


def full(data, steps, momentum):
    loss, begin, target, rate, inputs = task(data)
    value = distance(unroll(loss, begin, rate, steps, inputs, momentum=momentum)[-1], target, begin)
    return value, torch.autograd.grad(value, (*inputs, rate))


def test_the_distance_is_what_is_left_of_the_way():
    begin, target = torch.zeros(4), torch.tensor([3.0, 0, 4, 0])
    assert distance(target, target, begin) == 0
    assert distance(begin, target, begin) == 1
    assert distance(0.5 * target, target, begin) == 0.25


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_of_one_step_the_gradient_is_that_of_the_whole_graph(data, momentum):
    value, slopes = full(data, 1, momentum)
    loss, begin, target, rate, inputs = task(data)
    found, parts, by_rate = constant_memory(loss, begin, target, rate, 1, inputs, momentum=momentum)
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    for one, other in zip((*parts, by_rate), slopes, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_of_several_it_is_that_of_a_graph_whose_weights_are_cut_between_steps(data, momentum):
    loss, begin, target, rate, inputs = task(data)
    value, parts, by_rate = constant_memory(loss, begin, target, rate, 5, inputs, momentum=momentum)
    weights, velocity, cut = begin, 0, begin
    for k in range(5):
        leaf = cut.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, k, *inputs), leaf, create_graph=True)
        velocity = momentum * velocity + slope
        weights = weights - rate * velocity
        cut = weights
    expected = distance(weights, target, begin)
    slopes = torch.autograd.grad(expected, (*inputs, rate))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip((*parts, by_rate), slopes, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-14)


def test_of_several_it_points_the_way_of_the_whole_graph_and_is_not_it(data):
    _, slopes = full(data, 6, 0.0)
    loss, begin, target, rate, inputs = task(data)
    _, parts, _ = constant_memory(loss, begin, target, rate, 6, inputs)
    cosine = F.cosine_similarity(parts[0].flatten(), slopes[0].flatten(), dim=0)
    assert 0.8 < cosine < 0.9999


def test_classes_take_no_gradient(data):
    loss, begin, target, rate, (images, _) = task(data)
    _, (by_images, by_labels), _ = constant_memory(loss, begin, target, rate, 2, (images, torch.arange(6) % 3))
    assert by_images.abs().sum() > 0
    assert by_labels is None
