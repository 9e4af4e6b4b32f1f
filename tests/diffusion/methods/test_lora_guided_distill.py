"""LoRA and guidance: the network is its own teacher, of which only the adapters learn."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.guidance import Guided
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, batch, descend, made, student, values

pytest.importorskip("peft")
PLAIN = {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 2}


def teacher(seed: int = 0):
    torch.manual_seed(seed)
    return build("model", Block("mlp_denoiser", PLAIN)).requires_grad_(False)


def lora(**args):
    return Block("lora", {"base": Block("mlp_denoiser", {**PLAIN, "guided": True}), "rank": 4, **args})


def method(net=None, law=None, **args):
    given = {"pairs": 64, "pair_steps": 4, **args}
    return made("lora_guided_distill", law or teacher(), student(net or lora(), scale=3.0), **given)


def unlike(ours) -> None:
    """Give the adapters some effect."""
    with torch.no_grad():
        for name, p in ours.learners["student"].named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(1))


def points(n: int = 12):
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, 2, generator=g), torch.rand(n, generator=g) + 0.1, torch.arange(n) % 2


def test_without_its_adapters_the_network_is_the_teacher():
    law = teacher()
    ours = method(law=law)
    unlike(ours)
    x, sigma, label = points()
    scale = torch.linspace(0, 5, 12)
    assert not torch.allclose(ours.network(x, sigma, label), law(x, sigma, label), atol=1e-2)
    with ours.alone():
        assert torch.equal(ours.base(x, sigma, label), law(x, sigma, label))
        assert torch.equal(ours.base(x, sigma), law(x, sigma))
    torch.testing.assert_close(ours.guided(x, sigma, label, scale), Guided(law, scale[:, None])(x, sigma, label))
    assert not torch.allclose(ours.network(x, sigma, label), law(x, sigma, label), atol=1e-2)  # they are on again


def test_strength_one_costs_nothing_before_the_adapters_have_moved_and_only_they_learn():
    assert values(next(iter(method(scale_max=1.0).updates(batch(), CLOCK))))["guidance"] < 1e-8
    ours = method()
    (update,) = ours.updates(batch(), CLOCK)
    term = update.evaluate()["guidance"]
    assert float(term.sum.detach()) > 1e-3
    term.sum.backward()
    moved = [n for n, p in ours.learners["student"].named_parameters() if p.grad is not None and p.grad.any()]
    assert moved
    assert all("lora_" in n for n in moved)


def test_descent_comes_nearer_to_the_guided_teacher_which_stays_as_it_is():
    law = teacher()
    ours = method(law=law, scale_min=3.0, scale_max=3.0, told=False)
    x, sigma, label = points(256)
    scale = torch.full((256,), 3.0)
    target = ours.guided(x, sigma, label, scale)
    before = float((ours.network(x, sigma, label) - target).detach().square().mean())
    descend(ours, 40, lr=4e-2, rows=64)
    after = float((ours.network(x, sigma, label) - target).detach().square().mean())
    assert after < 0.5 * before
    assert torch.equal(ours.guided(x, sigma, label, scale), target)


def test_a_network_that_is_not_the_teacher_without_adapters_is_refused():
    with pytest.raises(UserError, match="adapters"):
        method(net=Block("mlp_denoiser", {**PLAIN, "guided": True}))
    wide = Block("lora", {"base": Block("mlp_denoiser", {**PLAIN, "width": 24, "guided": True})})
    with pytest.raises(UserError, match=r"make student\.net\.base like"):
        method(net=wide)
    own = method(net=wide, from_teacher=False)  # a base that was trained elsewhere
    x, sigma, label = points()
    assert not torch.allclose(own.guided(x, sigma, label, torch.ones(12)), teacher()(x, sigma, label))
