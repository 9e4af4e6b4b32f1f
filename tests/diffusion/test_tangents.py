"""Forward-mode derivatives of networks with attention: against float64 with attention written out, and in training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.diffusion import steps
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.pipelines import from_folder, quietly
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, batch, made
from toolkit.pipelines import dit

SHAPE = (1, 8, 8)


def fused(q, k, v, mask=None, **rest):
    """As the library's own attention on some devices: without forward-mode derivative."""
    raise NotImplementedError("Trying to use forward AD with a fused kernel that does not support it")


def written_out(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **rest):
    assert attn_mask is None and dropout_p == 0 and not is_causal and scale is None
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v


def unet(**args):
    """A U-Net with attention whose layers that begin at zero do not."""
    torch.manual_seed(0)
    net = build("model", Block("unet_denoiser", {"shape": SHAPE, "width": 8, "attention": True, "classes": 3, **args}))
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def transformer(folder):
    with quietly():
        net = from_folder(dit(folder), ())
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module", params=["unet", "dit"])
def net(request, tmp_path_factory):
    if request.param == "unet":
        return unet()
    pytest.importorskip("diffusers")
    return transformer(tmp_path_factory.mktemp("pipelines") / "dit")


def asked(net):
    """A function of points and levels, with where it is asked and along what."""
    torch.manual_seed(2)
    x, sigma = 3 * torch.randn(3, *net.shape), torch.tensor([0.2, 1.0, 5.0])
    label = torch.tensor([0, 2, -1])
    return (lambda x, sigma: net(x, sigma, label)), (x, sigma), (torch.randn_like(x), torch.tensor([0.3, -1.0, 2.0]))


@pytest.fixture
def exact(net, monkeypatch):
    """Value and derivative in float64, with attention written out."""
    call, points, along = asked(copy.deepcopy(net).double())
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", written_out)
        return torch.func.jvp(call, tuple(p.double() for p in points), tuple(d.double() for d in along))


def off(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_tangent_of_attention_is_exact_and_nothing_is_said(net, exact, capsys):
    call, points, along = asked(net)
    value, change = steps.tangent(call, points, along)
    assert off(value, exact[0]) < 1e-5 and off(change, exact[1]) < 1e-4
    assert "finite difference" not in capsys.readouterr().err
    assert not change.requires_grad
    slow = steps.tangent(call, points, (along[0], torch.zeros(3)))[1]
    assert off(slow, exact[1]) > 0.01  # the level's own part counts


def test_the_difference_that_stands_in_for_it_is_near(net, exact, monkeypatch, capsys):
    steps._say_once.cache_clear()
    monkeypatch.setattr(torch.func, "jvp", fused)
    call, points, along = asked(net)
    for _ in range(2):
        value, change = steps.tangent(call, points, along)
    assert off(value, exact[0]) < 1e-5 and off(change, exact[1]) < 1e-2
    assert capsys.readouterr().err.count("finite difference") == 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("scm", {}), ("rcm", {}), ("tbcm", {"pair_steps": 3, "pairs": 8}), ("meanflow", {"same": 0.0}),
    ],
)  # fmt: skip
def test_methods_of_tangents_train_networks_with_attention(net, name, args, capsys):
    mapped = name == "meanflow"
    given = {"pairs": 8, "pair_steps": 2, "from_teacher": False, **args}
    if mapped and hasattr(net, "origin"):
        with pytest.raises(UserError, match="jumps"):
            made(name, net, FewStep(copy.deepcopy(net), [5.0], "map"), **given)
        return
    torch.manual_seed(3)
    own = unet(jumps=True) if mapped else copy.deepcopy(net).requires_grad_(True)
    for parameter in own.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    student = FewStep(own, [5.0], "map" if mapped else "renoise", sigma_min=0.05, sigma_max=5.0)
    method = made(name, net, student, **given)
    update = next(u for u in method.updates(batch(0, 4), CLOCK) if "student" in u.roles)
    sum(term.sum for term in update.evaluate().values()).backward()
    slopes = [p.grad for n, p in own.named_parameters() if "attn" in n or "attention" in n or "qkv" in n]
    assert slopes and all(s is None or bool(torch.isfinite(s).all()) for s in slopes)
    assert any(s is not None and float(s.abs().max()) > 0 for s in slopes)
    assert "finite difference" not in capsys.readouterr().err
