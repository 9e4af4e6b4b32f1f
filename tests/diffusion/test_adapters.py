"""Adapters that are told of guidance: they begin as nothing, are alone in learning, and speak for their base."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.errors import UserError
from limbeck.registry import Block, build

POINTS = Block("mlp_denoiser", {"width": 16, "depth": 2, "sigma_data": 1.5, "classes": 2})
PICTURES = Block("unet_denoiser", {"shape": [1, 8, 8], "width": 8, "classes": 2, "attention": True})


def adapted(base=POINTS, **args):
    torch.manual_seed(0)
    return build("model", Block("guidance_adapter", {"base": base, "width": 4, **args}))


def moved(module):
    with torch.no_grad():
        for p in module.adapters.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    return module


def given(module, n=3):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, *module.shape, generator=g), torch.rand(n, generator=g) + 0.2, torch.arange(n) % 2


@pytest.mark.parametrize("base", [POINTS, PICTURES], ids=["points", "pictures"])
def test_it_begins_as_its_base_and_is_it_where_it_is_told_nothing(base):
    module = adapted(base)
    x, sigma, label = given(module)
    scale = torch.tensor([1.0, 3.0, 5.0])
    plain = copy.deepcopy(module.base)(x, sigma, label)
    torch.testing.assert_close(module(x, sigma, label, scale=scale), plain)
    moved(module)
    told = module(x, sigma, label, scale=scale)
    assert not torch.allclose(told, plain, atol=1e-3)
    assert torch.equal(module(x, sigma, label), plain)
    with module.off():
        assert torch.equal(module(x, sigma, label, scale=scale), plain)
    assert torch.equal(module(x, sigma, label, scale=scale), told)
    other = module(x, sigma, label, scale=scale.flip(0))
    torch.testing.assert_close(other[1], told[1])  # each sample has its own strength
    assert not torch.allclose(other[0], told[0])


def test_only_the_adapters_learn():
    module = adapted()
    learns = [n for n, p in module.named_parameters() if p.requires_grad]
    assert len(module.adapters) == 2
    assert learns and all(n.startswith("adapters.") for n in learns)


def test_it_speaks_for_its_base_and_copies_stand_alone():
    module = adapted()
    assert (module.shape, module.classes, module.sigma_data, module.guided) == ((2,), 2, 1.5, True)
    assert module.get_submodule(module.features_at) is module.base.get_submodule(module.base.features_at)
    with pytest.raises(AttributeError):
        _ = module.no_such_thing
    other = copy.deepcopy(module)
    moved(other)
    x, sigma, label = given(module)
    scale = torch.full((3,), 3.0)
    torch.testing.assert_close(module(x, sigma, label, scale=scale), module(x, sigma, label))
    assert not torch.allclose(other(x, sigma, label, scale=scale), module(x, sigma, label), atol=1e-3)


def test_targets_choose_where_they_are():
    module = adapted(PICTURES, targets=["backbone.middle", "backbone.attention"])
    assert [a.down.in_features for a in module.adapters] == [16, 16]
    with pytest.raises(UserError, match="nowhere"):
        adapted(targets=["nowhere"])
