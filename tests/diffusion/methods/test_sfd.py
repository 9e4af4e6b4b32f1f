"""SFD: where its loss is nothing, whose score the teacher is asked for, and who is drawn how often."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, batch, made, student, values


def teacher():
    return mixture.ring(4, 2.0, 0.3, classes=4).float()


def sfd(**args):
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})
    return made("sfd", teacher(), student(net), **args)


class Relabelled(nn.Module):
    """The fake score of a generator that gives the teacher's law of another class for one of them."""

    def __init__(self, forget: int, safe: int) -> None:
        super().__init__()
        self.law, self.forget, self.safe = teacher(), forget, safe

    def forward(self, x, sigma, label):
        return self.law(x, sigma, torch.where(label == self.forget, self.safe, label))


def cost(method) -> float:
    (term,) = next(iter(method.updates(batch(0, 256), CLOCK))).evaluate().values()
    return float(term.sum.detach().abs())


def test_a_generator_with_the_safe_law_in_place_of_the_forgotten_costs_nothing():
    method = sfd(forget=2, safe=3)
    method.learners["fake_score"] = Relabelled(2, 3)
    assert cost(method) == 0
    for forget, safe in ((2, 2), (2, 1), (0, 3)):
        method.learners["fake_score"] = Relabelled(forget, safe)
        assert cost(method) > 1e-3


def test_the_share_of_the_class_to_forget_and_the_others_evenly():
    method = sfd(forget=1, forget_share=0.4)
    label = method.draw_label(torch.arange(40_000), CLOCK, "x")
    shares = torch.bincount(label, minlength=4) / 40_000
    assert shares.tolist() == pytest.approx([0.2, 0.4, 0.2, 0.2], abs=0.01)


def test_the_weights_are_of_the_samples_to_forget_alone():
    def both(**args):
        return [next(iter(values(u).values())) for u in sfd(**args).updates(batch(), CLOCK)]

    off, base, double = (both(forget_weight=w) for w in (0.0, 1.0, 2.0))
    assert double[0] - base[0] == pytest.approx(base[0] - off[0], rel=1e-3)
    assert base[0] != off[0]
    assert base[1] == double[1]
    off, base, double = (both(forget_critic_weight=w) for w in (0.0, 1.0, 2.0))
    assert double[1] - base[1] == pytest.approx(base[1] - off[1], rel=1e-3)
    assert 0 < off[1] < base[1]
    assert base[0] == double[0]


@pytest.mark.parametrize("args", [{"forget": 4}, {"safe": -1}, {"forget_share": 1.0}])
def test_settings_that_cannot_work_are_refused(args):
    with pytest.raises(UserError, match="sfd"):
        sfd(**args)


def test_without_classes_it_is_refused():
    with pytest.raises(UserError, match="classes"):
        made("sfd", mixture.ring(4, 2.0, 0.3).float(), student())
