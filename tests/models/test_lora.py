"""LoRA by peft: what is frozen, what it starts as, switching it off, merging it, and being trained from a recipe."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.networks import inherit
from limbeck.engine.method import frozen
from limbeck.errors import UserError
from limbeck.models.lora import Adapted
from limbeck.registry import Block, build

pytest.importorskip("peft")
NET = {"shape": [2], "width": 16, "depth": 2, "classes": 3}
X, SIGMA, LABEL = torch.randn(5, 2), torch.rand(5) + 0.1, torch.tensor([0, 1, 2, 0, 1])


def adapted(**args) -> Adapted:
    return build("model", Block("lora", {"base": Block("mlp_denoiser", NET), "rank": 2, **args}))


def moved(module: Adapted) -> Adapted:
    """After one step of the adapters' output side, which is zero at first."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return module


def test_it_starts_as_its_base_and_speaks_for_it():
    module = adapted()
    torch.testing.assert_close(module(X, SIGMA, LABEL), module.base(X, SIGMA, LABEL))
    with module.off():
        torch.testing.assert_close(module.base(X, SIGMA, LABEL), module(X, SIGMA, LABEL))
    assert (module.shape, module.classes, module.floor, module.jumps) == ((2,), 3, 0.0, False)
    assert module.get_submodule(module.features_at) is module.base.get_submodule(module.base.features_at)
    with pytest.raises(AttributeError):
        _ = module.no_such_thing


def test_only_the_adapters_learn():
    module = adapted()
    learns = [name for name, p in module.named_parameters() if p.requires_grad]
    assert learns and all("lora_" in name for name in learns)
    layers = 5  # condition, first, two hidden layers, last
    assert len(learns) == 2 * layers
    with frozen(module):
        pass
    assert [name for name, p in module.named_parameters() if p.requires_grad] == learns


def test_targets_choose_the_layers():
    learns = [n for n, p in adapted(targets=["last"]).named_parameters() if p.requires_grad]
    assert len(learns) == 2 and all(".last." in n for n in learns)
    with pytest.raises(UserError, match="nowhere"):
        adapted(targets=["nowhere"])


def test_off_is_the_base_and_the_scale_is_alpha_over_rank():
    module = moved(adapted(alpha=6.0))
    with module.off():
        plain = module(X, SIGMA, LABEL)
    assert not torch.allclose(plain, module(X, SIGMA, LABEL))
    last = module.base.backbone.last
    h = torch.randn(4, 16)
    a, b = last.lora_A["default"].weight, last.lora_B["default"].weight
    torch.testing.assert_close(last(h), last.base_layer(h) + 6.0 / 2 * h @ a.T @ b.T)


def test_merged_is_a_plain_network_that_gives_the_same():
    module = moved(adapted())
    merged = module.merged()
    torch.testing.assert_close(merged(X, SIGMA, LABEL), module(X, SIGMA, LABEL), rtol=1e-4, atol=1e-5)
    assert set(merged.state_dict()) == set(build("model", Block("mlp_denoiser", NET)).state_dict())
    assert all(p.requires_grad for p in merged.parameters())


def test_it_inherits_its_base_and_keeps_its_adapters():
    teacher, module = build("model", Block("mlp_denoiser", NET)), moved(adapted())
    before = {n: p.detach().clone() for n, p in module.named_parameters() if "lora_" in n}
    assert inherit(module, teacher)
    with module.off():
        torch.testing.assert_close(module(X, SIGMA, LABEL), teacher(X, SIGMA, LABEL))
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters() if "lora_" in n)
