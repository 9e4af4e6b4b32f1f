"""Negative prompts by attention: beside the definition on our network and on one of diffusers."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.negatives import negative_attention, prompt_states
from limbeck.diffusion.pipelines import from_folder
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.pipelines import stable_diffusion


def unet(**args):
    torch.manual_seed(0)
    net = build("model", Block("unet_denoiser", {"shape": [1, 8, 8], "width": 8, "classes": 3, **args}))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def by_hand(attention, inputs, states, negative, strength):
    """One head after the other, in float64: the output of a projection without its bias."""
    q, heads = (inputs @ attention.to_q.weight.T).double(), attention.heads
    found = []
    for told in (states, negative):
        k, v = ((told @ layer.weight.T).double() for layer in (attention.to_k, attention.to_v))
        parts = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            law = torch.softmax(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5, dim=-1)
            parts.append(law @ c)
        found.append(torch.cat(parts, -1))
    return found[0] - strength[:, None, None] * found[1]


def test_what_the_projection_sees_is_the_definition():
    net, seen = unet(tokens=2), {}
    attention = net.backbone.cross[0]
    attention.to_q.register_forward_hook(lambda _, given, made: seen.update(inputs=given[0]))
    x, label, no = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0])
    strength = torch.tensor([0.3, 0.0, 1.0])
    with negative_attention(net, prompt_states(net, no), strength):
        handle = attention.to_out.register_forward_pre_hook(lambda _, given: seen.update(found=given[0]))
        net(x, torch.ones(3), label)
        handle.remove()
    states, negative = prompt_states(net, label), prompt_states(net, no)
    expected = by_hand(attention, seen["inputs"], states, negative, strength)
    assert torch.allclose(seen["found"].double(), expected, atol=1e-5)


def test_no_strength_changes_nothing_and_the_network_is_itself_afterwards():
    net = unet(tokens=2)
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    plain = net(x, torch.ones(2), label)
    with negative_attention(net, prompt_states(net, label), torch.tensor([0.0, 0.5])):
        found = net(x, torch.ones(2), label)
    assert torch.allclose(found[0], plain[0]) and not torch.allclose(found[1], plain[1])
    assert torch.equal(net(x, torch.ones(2), label), plain)


def test_a_negative_prompt_of_a_pipeline_is_the_definition_too(tmp_path):
    net = from_folder(stable_diffusion(tmp_path / "sd"), ["a cat", "a red shoe"], "").eval()
    layer, seen = next(m for n, m in net.network.named_modules() if n.endswith("attn2")), {}
    layer.to_q.register_forward_hook(lambda _, given, made: seen.update(inputs=given[0]))
    x, label, no = torch.randn(2, 4, 8, 8), torch.tensor([0, 1]), torch.tensor([1, 1])
    with torch.no_grad(), negative_attention(net, prompt_states(net, no), 0.4):
        handle = layer.to_out[0].register_forward_pre_hook(lambda _, given: seen.update(found=given[0]))
        net(x, torch.full((2,), 5.0), label)
        handle.remove()
    expected = by_hand(layer, seen["inputs"], prompt_states(net, label), prompt_states(net, no), torch.full((2,), 0.4))
    assert layer.heads > 1
    assert torch.allclose(seen["found"].double(), expected.detach(), atol=1e-5)


def test_networks_without_cross_attention_are_refused():
    net = unet()
    with pytest.raises(UserError, match="tokens"):
        prompt_states(net, torch.tensor([0]))
    with pytest.raises(UserError, match="no cross-attention"), negative_attention(net, torch.zeros(1, 2, 4), 0.3):
        pass
