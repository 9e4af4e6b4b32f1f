"""MSD: each student and fake score learns from its own classes alone, and comes to their law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.experts import ByClass
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.mixture import GaussianMixture, ring
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, Affine, batch, descend, made, student, values

MEANS, STDS = (1.0, -1.0), (0.5, 0.3)


class Net(Affine):
    """An affine generator as a network of one level."""

    classes, sigma_data = 2, 1.0

    def forward(self, x, sigma, label=None):
        return super().forward(x / sigma[:, None])


class OwnLaw(nn.Module):
    """The exact denoiser of one :class:`Net`."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.of = (net,)

    def forward(self, x, sigma, label=None):
        a, b = self.of[0].a.detach(), self.of[0].b.detach()
        return b + a**2 / (a**2 + sigma[:, None] ** 2) * (x - b)


def test_each_student_comes_to_the_law_of_its_class(monkeypatch):
    nets = [Net(0.6, 0.7), Net(0.4, -0.7)]
    critics = ByClass([OwnLaw(n) for n in nets], [0, 1])
    monkeypatch.setattr("limbeck.diffusion.methods.msd.MSD.build_critic", lambda self, parts: critics)
    means, variances = (torch.tensor(v)[:, None] for v in (MEANS, [s**2 for s in STDS]))
    law = GaussianMixture(torch.ones(2), means, variances, torch.tensor([0, 1])).float()
    generator = FewStep(ByClass(nets, [0, 1]), [5.0], sigma_min=0.02)
    descend(made("msd", law, generator, from_teacher=False), 200, rows=256)
    for net, mean, std in zip(nets, MEANS, STDS, strict=True):
        assert abs(float(net.a.detach())) == pytest.approx(std, abs=0.06)
        assert float(net.b.detach()) == pytest.approx(mean, abs=0.06)


def several(**args) -> nn.Module:
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 4})
    grid = {"sigma_min": 0.02, "sigma_max": 10.0}
    return build("model", Block("students", {"net": net, "count": 2, **grid, **args}))


def test_no_sample_of_another_class_moves_a_student_or_its_critic():
    law, grads = ring(4, 2.0, 0.3, 4).float(), []
    for moved in (False, True):
        generator = several()
        method = made("msd", law, generator)
        # The other student's classes ask for something else altogether.
        method.draw_label = lambda ids, clock, name, moved=moved: torch.where(ids < 32, 0, 3 if moved else 2)
        for update in method.updates(batch(), CLOCK):
            sum(t.sum for t in update.evaluate().values()).backward()
        first = [m.nets[0] for m in (generator.net, method.learners["fake_score"])]
        grads.append([p.grad.clone() for net in first for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)) and any(g.abs().sum() > 0 for g in grads[0])


def test_score_matching_teaches_students_and_critics_the_teachers_estimates():
    method = made("msd", ring(4, 2.0, 0.3, 4).float(), several(), score_matching=0.5)
    (update,) = method.updates(batch(), Clock(0, 10))
    assert update.role == ("student", "fake_score") and values(update).keys() == {"student_score", "critic_score"}
    assert [u.role for u in method.updates(batch(), Clock(5, 10))] == ["student", "fake_score"]
    teacher = several().net.nets[0]
    alike = made("msd", teacher, several(), score_matching=0.5, pairs=64, pair_steps=2)
    (update,) = alike.updates(batch(), Clock(0, 10))
    assert set(values(update).values()) == {0.0}  # both started as the teacher


def test_a_single_network_is_refused():
    with pytest.raises(UserError, match="students"):
        made("msd", ring(4, 2.0, 0.3, 4).float(), student(Block("mlp_denoiser", {"width": 8, "classes": 4})))
