"""Kernel ridge regression against float64 solves, and kernels of infinite networks against wide finite ones."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from limbeck.condensation.kernels import best_targets, linear_kernel, mlp_kernel, ridge, squared_loss

G = torch.Generator().manual_seed(3)
S, T = torch.randn(5, 7, generator=G), torch.randn(9, 7, generator=G)
Y = torch.randn(5, 2, generator=G)


def test_ridge_is_the_definition_in_float64():
    k_ss, k_ts = linear_kernel(S, S), linear_kernel(T, S)
    a, b = k_ss.double(), k_ts.double()
    wanted = b @ torch.linalg.inv(a + 0.01 * a.trace() * torch.eye(5)) @ Y.double()
    assert torch.allclose(ridge(k_ss, k_ts, Y, 0.01).double(), wanted, rtol=1e-5, atol=1e-5)


def test_ridge_is_the_ridge_regression_of_the_features():
    """The dual form is the primal one: the weights of least squares with a penalty."""
    features = torch.cat([S, torch.ones(5, 1)], 1).double()
    penalty = 0.01 * float((features @ features.T).trace())
    weights = torch.linalg.solve(features.T @ features + penalty * torch.eye(8), features.T @ Y.double())
    wanted = torch.cat([T, torch.ones(9, 1)], 1).double() @ weights
    assert torch.allclose(ridge(linear_kernel(S, S), linear_kernel(T, S), Y, 0.01).double(), wanted, atol=1e-4)


def test_gradients_reach_images_and_targets_but_not_through_the_trace():
    images, targets = S.double().requires_grad_(), Y.double().requires_grad_()
    real = T.double()
    trace = float(linear_kernel(S, S).double().trace())

    def loss(x, y, fixed):
        k = linear_kernel(x, x)
        weights = torch.linalg.solve(k + 0.01 * fixed * torch.eye(5), y)
        return (linear_kernel(real, x) @ weights).square().sum()

    found = ridge(linear_kernel(images, images), linear_kernel(real, images), targets, 0.01).square().sum()
    ours = torch.autograd.grad(found, (images, targets))
    theirs = torch.autograd.grad(loss(images, targets, trace), (images, targets))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-6)
    step = 1e-6
    way = torch.randn(5, 7, generator=G, dtype=torch.float64)
    slope = (loss(images + step * way, targets, trace) - loss(images - step * way, targets, trace)) / (2 * step)
    assert float((ours[0] * way).sum().detach()) == pytest.approx(float(slope.detach()), rel=1e-4)


def test_best_targets_leave_no_better_ones():
    k_ss, k_ts = linear_kernel(S, S), linear_kernel(T, S)
    wanted = torch.randn(9, 2, generator=G)
    best = best_targets(k_ss, k_ts, wanted, 1e-3)
    least = squared_loss(ridge(k_ss, k_ts, best, 1e-3), wanted).sum()
    for _ in range(20):
        other = best + 0.1 * torch.randn(5, 2, generator=G)
        assert squared_loss(ridge(k_ss, k_ts, other, 1e-3), wanted).sum() > least


class Wide(nn.Module):
    """A finite perceptron in the neural-tangent scaling: every weight and bias is standard normal."""

    def __init__(self, depth: int, width: int, bias: float) -> None:
        super().__init__()
        sizes = [7, *[width] * depth, 1]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(b, a, generator=G) for a, b in pairs)
        self.biases = nn.ParameterList(torch.randn(b, generator=G) for _, b in pairs)
        self.bias = bias

    def forward(self, x):
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x if number == 0 else x.relu()) @ w.T * math.sqrt(2 / w.shape[1]) + self.bias * b
        return x[:, 0]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_nngp_is_the_covariance_of_wide_networks(depth):
    x = torch.cat([S[:3], T[:2]])
    outputs = torch.stack([Wide(depth, 256, 0.3)(x).detach() for _ in range(3000)])
    found = outputs.T @ outputs / len(outputs)
    wanted = mlp_kernel(x, x, depth=depth, bias=0.3, kind="nngp")
    assert torch.allclose(found, wanted, atol=0.12 * float(wanted.diagonal().max()))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_ntk_is_that_of_a_wide_network(depth):
    x = torch.cat([S[:2], T[:2]])
    total = torch.zeros(4, 4)
    for _ in range(6):
        network = Wide(depth, 1024, 0.3)
        slopes = []
        for row in network(x):
            grads = torch.autograd.grad(row, list(network.parameters()), retain_graph=True)
            slopes.append(torch.cat([g.flatten() for g in grads]))
        rows = torch.stack(slopes)
        total += rows @ rows.T / 6
    wanted = mlp_kernel(x, x, depth=depth, bias=0.3)
    assert torch.allclose(total, wanted, rtol=0.1, atol=0.05 * float(wanted.diagonal().max()))


def test_the_kernel_has_gradients_where_two_images_are_the_same():
    x = S.clone().requires_grad_()
    mlp_kernel(x, x, depth=2).sum().backward()
    assert bool(torch.isfinite(x.grad).all())
