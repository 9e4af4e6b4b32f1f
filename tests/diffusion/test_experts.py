"""Networks that act as one: who answers, and with what gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.experts import ByClass, ByLevel, contiguous
from limbeck.errors import UserError
from limbeck.registry import Block, build


class Scale(nn.Module):
    """Multiplies by its number."""

    shape = (1,)
    classes = 4

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x, sigma, label=None, *, scale=None):
        return self.by * x * (1 if scale is None else scale[:, None])


def test_each_sample_is_answered_by_the_network_of_its_level_and_only_that_one_learns():
    net = ByLevel([Scale(1.0), Scale(10.0), Scale(100.0)], [20.0, 2.0, 0.5])
    sigma = torch.tensor([0.5, 30.0, 2.1, 2.0, 0.1, 0.6])
    out = net(torch.ones(6, 1), sigma, scale=torch.arange(1.0, 7.0))
    assert out.squeeze(1).tolist() == [100.0, 2.0, 3.0, 40.0, 500.0, 60.0]
    out[:2].sum().backward()
    assert [None if n.by.grad is None else float(n.by.grad) for n in net.nets] == [2.0, 0.0, 1.0]
    net.zero_grad()
    net(torch.ones(2, 1), torch.tensor(2.0)).sum().backward()
    assert [n.by.grad is None for n in net.nets] == [True, False, True]
    assert net.shape == (1,) and net.classes == 4


def test_each_sample_is_answered_by_the_network_of_its_class():
    assert contiguous(5, 2) == [0, 0, 0, 1, 1]
    net = ByClass([Scale(1.0), Scale(10.0)], contiguous(4, 2))
    out = net(torch.ones(4, 1), torch.ones(4), torch.tensor([3, 0, 2, 1]))
    assert out.squeeze(1).tolist() == [10.0, 1.0, 10.0, 1.0]
    with pytest.raises(UserError, match="class"):
        net(torch.ones(1, 1), torch.ones(1))


def test_generators_of_several_networks_sample_with_each_of_them():
    block = Block("mlp_denoiser", {"width": 8, "depth": 1, "classes": 4})
    generator = build("model", Block("experts", {"net": block, "nfe": 3, "sigma_min": 0.02, "sigma_max": 10.0}))
    asked: list[int] = []
    for k, net in enumerate(generator.net.nets):
        net.register_forward_hook(lambda *_, k=k: asked.append(k))
    assert generator(torch.randn(5, 2), torch.zeros(5, dtype=torch.long)).shape == (5, 2)
    assert asked == [0, 1, 2]
    shared = build("model", Block("students", {"net": block, "count": 3, "owners": [2, 0, 1, 1]}))
    assert shared.net.owners.tolist() == [2, 0, 1, 1] and len(shared.net.nets) == 3
    first, second = (generator.net.nets[k].backbone.last.weight for k in (0, 1))
    assert not torch.equal(first, second)
    with pytest.raises(UserError, match="classes"):
        build("model", Block("students", {"net": Block("mlp_denoiser", {"width": 8})}))
    with pytest.raises(UserError, match="leave none out"):
        build("model", Block("students", {"net": block, "count": 3, "owners": [0, 0, 1, 1]}))
