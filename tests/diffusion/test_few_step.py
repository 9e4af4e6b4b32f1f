"""Generators of a few steps: their levels, the three rules, and which calls pass a gradient."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import ExactFlow, gaussian, student


def test_levels_are_those_of_the_teachers_grid_without_its_end():
    grid = samplers.karras_grid(5, 0.02, 80.0)[:-1].tolist()
    assert few_levels(4, 0.02, 80.0) == pytest.approx(grid[:4])
    assert few_levels(1, 0.02, 80.0) == pytest.approx([80.0])


def test_along_the_line_it_is_ddim_and_with_the_exact_map_it_is_the_flow():
    law, z = gaussian().double(), torch.randn(50, 1).double()
    ddim = FewStep(law, [10.0, 2.0, 0.3], "ode")
    torch.testing.assert_close(ddim(z), samplers.euler(law, 10 * z, torch.tensor([10.0, 2.0, 0.3, 0.0])).samples)
    jumps = FewStep(ExactFlow().double(), [10.0, 2.0, 0.3], "map")
    torch.testing.assert_close(jumps(z), law.flow(10 * z, 10.0, 0.0))
    assert (ddim.draws, ddim.nfe, ddim.noise_shape) == (1, 3, (1,))


def test_fresh_noise_between_steps_comes_with_the_input():
    law = gaussian()
    generator, z = FewStep(law, [10.0, 1.0]), torch.randn(50, 2, 1)
    assert generator.noise_shape == (2, 1)
    once = law(10 * z[:, 0], 10.0)
    torch.testing.assert_close(generator(z), law(once + z[:, 1], 1.0))
    torch.testing.assert_close(generator(z, steps=1), once)


def test_only_the_last_call_passes_a_gradient():
    class Gain(torch.nn.Module):
        shape = (1,)

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, sigma, label=None):
            return self.gain * x

    net = Gain()
    generator, z = FewStep(net, [3.0, 1.0]), torch.randn(20, 2, 1)
    generator(z).sum().backward()
    x = 2 * 3 * z[:, 0] + z[:, 1]
    torch.testing.assert_close(net.gain.grad, x.sum())


def test_its_network_is_called_through_it():
    generator, x, at = student(), torch.randn(4, 2), torch.rand(4)
    torch.testing.assert_close(generator(x, at=at), generator.net(x, at))


def test_a_network_that_takes_a_second_level_begins_as_one_that_does_not():
    torch.manual_seed(0)
    net = build("model", Block("mlp_denoiser", {"width": 16, "depth": 1, "jumps": True, "guided": True}))
    x, at = torch.randn(4, 2), torch.rand(4) + 0.1
    assert net.jumps
    assert net.guided
    torch.testing.assert_close(net(x, at, to=at / 2, scale=3.0), net(x, at))
    torch.nn.init.normal_(net.backbone.condition.second.weight)
    torch.nn.init.normal_(net.backbone.condition.strength.weight)
    assert not torch.allclose(net(x, at, to=at / 2), net(x, at))
    assert not torch.allclose(net(x, at, scale=3.0), net(x, at, scale=1.0))


def test_a_floor_makes_the_identity_there():
    net = build("model", Block("mlp_denoiser", {"width": 16, "floor": 0.02}))
    x = torch.randn(4, 2)
    torch.testing.assert_close(net(x, 0.02), x)
    assert not torch.allclose(net(x, 0.5), x)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"nfe": 0}, "nfe"),
        ({"nfe": 2, "levels": [1.0]}, "levels"),
        ({"nfe": 2, "levels": [1.0, 2.0]}, "levels"),
        ({"rule": "map"}, "jumps"),
    ],
)
def test_what_cannot_sample_is_refused(args, says):
    with pytest.raises(UserError, match=says):
        student(**args)


def test_a_picture_memory_is_the_exact_denoiser_of_its_pictures():
    data = build("data", Block("digits", {"train_size": 30}))
    law = build("model", Block("image_memory", {"std": 0.05}), offers={"data": data})
    pictures = data.train.batch(torch.arange(30))
    assert isinstance(law, mixture.GaussianMixture)
    torch.testing.assert_close(law(pictures["input"] + 0.01, 0.05), pictures["input"], atol=0.01, rtol=0)
    assert law.classes == 10


def test_what_knows_all_levels_can_be_called_another_number_of_times():
    net = mixture.ring(4, 2.0, 0.2, None).float()
    line = FewStep(net, few_levels(2, 0.02, 10.0), "ode", sigma_min=0.02, sigma_max=10.0)
    assert line.any_calls and not FewStep(net, [10.0, 1.0]).any_calls
    z = torch.randn(20, 2)
    other = line.in_calls(4)
    assert (other.nfe, other.rule, other.levels) == (4, "ode", tuple(few_levels(4, 0.02, 10.0)))
    torch.testing.assert_close(other(z), FewStep(net, few_levels(4, 0.02, 10.0), "ode")(z))
    consistency = Block("mlp_denoiser", {"width": 8, "depth": 1, "floor": 0.02})
    assert build("model", Block("few_step", {"net": consistency, "nfe": 1, "sigma_min": 0.02})).any_calls
