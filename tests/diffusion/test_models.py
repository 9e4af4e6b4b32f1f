"""The networks and the models that recipes name."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import OneStep
from limbeck.diffusion.networks import EDMDenoiser, inherit
from limbeck.errors import UserError
from limbeck.registry import Block, build, find


def denoiser(**args) -> EDMDenoiser:
    return build("model", Block("mlp_denoiser", {"width": 16, "depth": 2, **args}))


def test_a_fresh_denoiser_is_preconditioned():
    torch.manual_seed(0)
    net, x = denoiser(sigma_data=2.0), torch.randn(64, 2)
    small, large = torch.full((64,), 1e-3), torch.full((64,), 1e3)
    torch.testing.assert_close(net(x, small), x, atol=0.01, rtol=0)
    assert net(1e3 * x, large).std() < 4


def test_a_denoiser_takes_any_shape_and_scalar_levels():
    net, x = denoiser(shape=[1, 4, 4]), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(net.denoise(x, 0.7), net(x, torch.full((3,), 0.7)))
    assert net(x, 0.7).shape == x.shape


def test_no_label_and_minus_one_both_mean_unconditional():
    net, x = denoiser(classes=3), torch.randn(4, 2)
    free = net(x, 0.5)
    torch.testing.assert_close(net(x, 0.5, torch.full((4,), -1)), free)
    assert not torch.allclose(net(x, 0.5, torch.tensor([0, 1, 2, 0])), free)


def test_a_small_denoiser_learns_the_exact_one():
    torch.manual_seed(0)
    law = mixture.ring(4, 2.0, 0.3).float()
    net = denoiser(sigma_data=law.sigma_data, width=32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    before = after = 0.0
    for step in range(120):
        x0 = law.sample(256, seed=step).samples
        sigma = torch.exp(torch.randn(256))
        x = x0 + sigma[:, None] * torch.randn_like(x0)
        optimizer.zero_grad()
        weight = (1 / sigma**2 + 1 / net.sigma_data**2)[:, None]
        (weight * (net(x, sigma) - x0) ** 2).mean().backward()
        optimizer.step()
        after = float((net(x, sigma) - law.denoise(x, sigma)).detach().square().mean())
        before = after if step == 0 else before
    assert after < 0.25 * before


def test_one_step_denoises_scaled_noise_once():
    generator = build("model", Block("one_step", {"net": Block("mlp_denoiser", {"width": 8}), "sigma": 20.0}))
    z = torch.randn(5, 2)
    torch.testing.assert_close(generator(z), generator.net(20 * z, torch.full((5,), 20.0)))
    assert generator.shape == (2,)
    assert generator(*generator.example_inputs(3)).shape == (3, 2)


def test_one_step_hands_its_facts_down_to_the_network():
    generator = build(
        "model", Block("one_step", {"net": Block("mlp_denoiser", {"width": 8})}),
        offers={"shape": (3,), "sigma_data": 1.5, "classes": 4},
    )  # fmt: skip
    assert (generator.shape, generator.net.sigma_data, generator.classes) == ((3,), 1.5, 4)


def test_one_step_refuses_what_has_no_sample_shape():
    with pytest.raises(UserError, match="shape of its samples"):
        build("model", Block("one_step", {"net": Block("test_linear")}))


@pytest.fixture(autouse=True)
def _linear():
    from limbeck import registry

    @registry.register("model", gives={"logits"})
    def test_linear() -> torch.nn.Module:
        return torch.nn.Linear(2, 2)

    yield
    registry._LIVE.pop(("model", "test_linear"))


def test_weights_are_inherited_only_by_the_same_network():
    source, same, other = denoiser(), denoiser(), denoiser(width=8)
    assert inherit(same, source)
    torch.testing.assert_close(same(torch.ones(1, 2), 1.0), source(torch.ones(1, 2), 1.0))
    before = [p.clone() for p in other.parameters()]
    assert not inherit(other, source)
    assert not inherit(other, mixture.ring(4, 1.0, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gaussian_ring", "gaussian_grid", "gaussian_line"])
def test_exact_teachers_say_that_they_need_no_training(name):
    assert find("model", name).facts == {"gives": {"denoiser", "samples"}, "exact": True}
    law = build("model", Block(name))
    assert sum(p.numel() for p in law.parameters()) == 0
    x = torch.randn(3, *law.shape)
    assert law.denoise(x, 1.0).shape == x.shape


def test_classes_alternate_around_the_ring():
    law = build("model", Block("gaussian_ring", {"modes": 6, "classes": 2}))
    assert law.classes == 2
    assert law.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("gaussian_ring", {"modes": 0}),
        ("gaussian_grid", {"std": -1.0}),
        ("gaussian_line", {"stds": (1.0,)}),
        ("mlp_denoiser", {"sigma_data": 0.0}),
    ],
)
def test_arguments_that_make_no_model_are_refused_in_one_line(name, args):
    with pytest.raises(UserError, match=name):
        build("model", Block(name, args))


def test_one_step_of_the_exact_denoiser_is_the_mean_and_covers_no_mode():
    """Why a one-step student must be trained: the teacher's own first step lands in the middle."""
    law = mixture.ring(8, 4.0, 0.3).float()
    x = OneStep(law, 80.0)(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
    assert x.norm(dim=1).max() < 1
