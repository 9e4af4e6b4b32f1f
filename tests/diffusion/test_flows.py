"""Changes of variables of TrigFlow and rectified flow against their definitions, on one Gaussian."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import flows
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, gaussian, made, student

SD = 0.7


def points(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return x, torch.linspace(0.05, 0.9, count, dtype=torch.float64)


EXACT = ExactFlow().double()


def exact_jump(x: torch.Tensor, sigma: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    return EXACT(x, sigma, to=to)


def test_trigflows_consistency_function_is_the_denoiser_of_edm():
    x, t = points()
    law = gaussian().double()
    field = flows.trig_field(law, x / SD, t, SD)
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    torch.testing.assert_close(cos * x - SD * sin * field, law(x / cos, SD * torch.tan(t)))


def test_trigflows_field_moves_points_along_the_flow():
    x, t = points()
    law, h = gaussian().double(), 1e-5

    def on_flow(s):  # the exact flow of one Gaussian: every quantile keeps its place
        at, to = torch.cos(t), torch.cos(s)
        std = [torch.sqrt((a * STD) ** 2 + (SD * torch.sin(u)) ** 2) for a, u in ((at, t), (to, s))]
        return (to * MEAN)[:, None] + (std[1] / std[0])[:, None] * (x - (at * MEAN)[:, None])

    slope = (on_flow(t + h) - on_flow(t - h)) / (2 * h)
    torch.testing.assert_close(SD * flows.trig_field(law, x / SD, t, SD), slope, rtol=1e-6, atol=1e-8)


def test_the_tangent_is_the_derivative_of_the_consistency_function():
    x, t = points()
    velocity, h = torch.cos(3 * x), 1e-5
    field = lambda x, t: torch.sin(x + 2 * t[:, None])  # noqa: E731
    f = lambda x, t: torch.cos(t)[:, None] * x - SD * torch.sin(t)[:, None] * field(x / SD, t)  # noqa: E731
    along = (f(x + h * velocity, t + h) - f(x - h * velocity, t - h)) / (2 * h)
    both = torch.cos(t) * torch.sin(t)
    _, change = torch.func.jvp(field, (x / SD, t), (both[:, None] * velocity / SD, both))
    found = flows.trig_tangent(x, t, velocity, field(x / SD, t), change, SD)
    torch.testing.assert_close(found, torch.cos(t)[:, None] * along, rtol=1e-6, atol=1e-8)
    part = flows.trig_tangent(x, t, velocity, field(x / SD, t), change, SD, warm=0.0)
    assert not torch.allclose(part, found)


def test_a_normalised_tangent_keeps_its_direction():
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(flows.normalised(g, 5.0), torch.tensor([[0.3, 0.4], [0.0, 0.0]]))


def test_the_mean_velocity_of_the_exact_map_is_the_way_over_the_time():
    z, t = points()
    r = 0.6 * t
    sigma, to = (t / (1 - t), r / (1 - r))
    ratio = torch.sqrt((STD**2 + to**2) / (STD**2 + sigma**2))[:, None]
    end = (1 - r)[:, None] * (MEAN + ratio * (z / (1 - t)[:, None] - MEAN))
    u = flows.mean_velocity(exact_jump, z, t, r)
    torch.testing.assert_close(u, (z - end) / (t - r)[:, None])
    torch.testing.assert_close(flows.flow_step(z, u, t, r), end)


def test_the_mean_velocity_over_no_time_is_the_velocity():
    z, t = points()
    at = flows.RF.at(t)
    velocity = (z - gaussian().double().posterior_mean(z, at.alpha, at.sigma)) / t[:, None]
    torch.testing.assert_close(flows.mean_velocity(exact_jump, z, t, t), velocity)


def test_the_exact_mean_velocity_is_its_own_target():
    z, t = points()
    r = 0.3 * t
    velocity = flows.mean_velocity(exact_jump, z, t, t)
    u, change = torch.func.jvp(
        lambda z, t: flows.mean_velocity(exact_jump, z, t, r), (z, t), (velocity, torch.ones_like(t))
    )
    torch.testing.assert_close(flows.mean_velocity_target(velocity, change, t, r), u)
    assert float((velocity - u).abs().max().detach()) > 0.05  # and the velocity alone is not


def test_a_level_weight_starts_at_nothing_and_learns():
    weight = flows.LevelWeight()
    level = torch.tensor([0.1, 1.0, 10.0])
    assert not weight(level).any()
    (weight(level).exp() * torch.tensor([1.0, 2.0, 3.0]) - weight(level)).sum().backward()
    assert all(bool(p.grad.any()) for p in weight.parameters())


@pytest.mark.parametrize("points_of", ["teacher", "data"])
def test_points_of_the_teacher_and_of_the_data_have_the_same_mean_velocity(points_of):
    method = made("meanflow", gaussian(), student(ExactFlow(), rule="map"), points=points_of)
    t = torch.full((8192,), 0.6)
    z, velocity, _ = method.on_line(batch(0, 8192), CLOCK, t)
    near = (z - z.mean()).abs().squeeze(1) < 0.3 * z.std()
    exact = method.velocity(z, t, None)
    assert float((velocity - exact)[near].mean()) == pytest.approx(0.0, abs=0.03)
    assert bool(((velocity - exact).abs() > 1e-6).any()) == (points_of == "data")
