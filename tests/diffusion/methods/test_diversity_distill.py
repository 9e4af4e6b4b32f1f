"""Diversity distillation: the distilling method sees a plain generator, and what is delivered is the hybrid."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, batch, made, student, values

NET = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5})
BY = Block("dmd2", {"critic_updates": 1, "gan_weight": 0.0, "discriminator_weight": 0.0})


def hybrid():
    torch.manual_seed(0)
    block = Block("hybrid", {"net": NET, "base": NET, "nfe": 3, "sigma_min": 0.02, "sigma_max": 10.0})
    return build("model", block)


def test_the_network_is_distilled_as_if_there_were_no_base():
    law = mixture.ring(4, 1.0, 0.2).float()
    model = hybrid().train()
    method = made("diversity_distill", law, model, by=BY, first=2, fine=5)
    torch.manual_seed(0)
    alone = student(NET, nfe=3)
    alone.net.load_state_dict(model.net.state_dict())
    plain = made("dmd2", law, alone, **BY.args)
    plain.learners["fake_score"].load_state_dict(method.learners["fake_score"].state_dict())
    for ours, theirs in zip(method.updates(batch(), CLOCK), plain.updates(batch(), CLOCK), strict=True):
        assert ours.role == theirs.role
        assert values(ours) == values(theirs)


def test_the_base_becomes_the_teacher_and_does_not_learn():
    teacher = build("model", NET)
    model = hybrid()
    method = made("diversity_distill", teacher, model, by=BY, first=2, fine=5)
    assert (int(model.first), int(model.fine)) == (2, 5)
    for name, value in teacher.state_dict().items():
        assert torch.equal(model.base.state_dict()[name], value)
    assert not any(p.requires_grad for p in model.base.parameters())
    assert set(method.learners) == {"student", "fake_score"}
    assert model.eval().nfe == 6


def test_what_cannot_be_is_refused():
    law = mixture.ring(4, 1.0, 0.2).float()
    with pytest.raises(UserError, match="hybrid"):
        made("diversity_distill", law, student())
    with pytest.raises(UserError, match="first"):
        made("diversity_distill", law, hybrid(), first=3)
