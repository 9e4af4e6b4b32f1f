"""Steps between levels against the exact flow of one Gaussian, and forward-mode derivatives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from limbeck.diffusion import samplers, steps
from toolkit.diffusion import ExactFlow, gaussian

LAW = gaussian().double()
NOW, THEN = torch.full((200,), 4.0, dtype=torch.float64), torch.full((200,), 0.5, dtype=torch.float64)
X = 1 + 4 * torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def error(order: str, count: int) -> float:
    arrived = steps.solve(LAW, X, NOW, THEN, steps=count, order=order)
    return float((arrived - LAW.flow(X, 4.0, 0.5)).abs().mean())


@pytest.mark.parametrize(("order", "slope"), [("euler", 1.0), ("heun", 2.0)])
def test_a_solver_has_its_order(order, slope):
    coarse, fine = error(order, 32), error(order, 128)
    assert torch.tensor(coarse / fine).log2().item() / 2 == pytest.approx(slope, abs=0.15)


def test_levels_of_each_sample_are_levels_of_the_whole_batch():
    both = steps.solve(LAW, X[:2], torch.tensor([4.0, 2.0]).double(), torch.tensor([0.5, 0.1]).double(), steps=3)
    alone = [steps.solve(LAW, X[k : k + 1], torch.tensor([a]).double(), torch.tensor([b]).double(), steps=3)
             for k, (a, b) in enumerate(((4.0, 0.5), (2.0, 0.1)))]  # fmt: skip
    torch.testing.assert_close(both, torch.cat(alone))


def test_a_step_to_zero_gives_the_estimate_and_agrees_with_the_samplers():
    zero = torch.zeros_like(NOW)
    torch.testing.assert_close(steps.step(LAW, X, NOW, zero), LAW(X, 4.0))
    torch.testing.assert_close(steps.step(LAW, X, NOW, THEN), samplers.heun(LAW, X, torch.tensor([4.0, 0.5])).samples)


def test_a_jump_to_what_heads_for_a_point_arrives_there():
    arrived = torch.randn_like(X)
    heads_for = steps.target_of(X, arrived, NOW, THEN)
    torch.testing.assert_close(steps.jump(X, heads_for, NOW, THEN), arrived)
    exact = ExactFlow().double()(X, NOW, to=THEN)
    torch.testing.assert_close(steps.jump(X, exact, NOW, THEN), LAW.flow(X, 4.0, 0.5))


def test_stochastic_steps_keep_the_law_and_strength_zero_is_ddim():
    torch.manual_seed(0)
    count = 40_000
    x = 1 + (0.25 + 16) ** 0.5 * torch.randn(count, 1, dtype=torch.float64)
    levels = samplers.log_grid(60, 4.0, 0.05)
    for now, then in pairwise(levels):
        a, b = now.expand(count), then.expand(count)
        x = steps.stochastic_step(LAW, x, a, b, torch.randn_like(x))
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(x.std()) == pytest.approx((0.25 + 0.05**2) ** 0.5, abs=0.02)
    plain = steps.stochastic_step(LAW, X, NOW, THEN, torch.randn_like(X), strength=0.0)
    torch.testing.assert_close(plain, steps.step(LAW, X, NOW, THEN, order="euler"))


def test_noise_goes_back_on_by_the_level():
    z = torch.randn_like(X)
    torch.testing.assert_close(steps.renoise(X, THEN, z), X + 0.5 * z)


def test_the_tangent_is_the_derivative_along_a_direction():
    def call(x, t):
        return (x * t[:, None]).sin()

    x, t, v = torch.randn(3, 2).double(), torch.rand(3).double(), torch.randn(3, 2).double()
    value, derivative = steps.tangent(call, (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(value, call(x, t))
    by_hand = (x * t[:, None]).cos() * (v * t[:, None] + x)
    torch.testing.assert_close(derivative, by_hand)
    assert not derivative.requires_grad


def test_without_forward_mode_a_difference_is_taken_and_said(capsys):
    class NoForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return grad

    x, v = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    _, derivative = steps.tangent(NoForward.apply, (x,), (v,))
    torch.testing.assert_close(derivative, 3 * x**2 * v, atol=1e-4, rtol=1e-4)
    assert "finite difference" in capsys.readouterr().err
