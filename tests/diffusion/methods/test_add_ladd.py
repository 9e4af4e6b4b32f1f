"""Adversarial diffusion distillation: what the heads see, where gradients go, and what the teacher asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.gan import HEAD
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, batch, gaussian, made, student, values


class Line(Affine):
    """An affine estimate as the network of a generator."""

    classes = None
    floor = 0.0

    def forward(self, x, sigma, label=None):
        return self.a * x + self.b


def network():
    return build("model", Block("mlp_denoiser", {"shape": [1], "width": 8, "depth": 2, "sigma_data": 0.5}))


def distilled(teacher=None, **args):
    torch.manual_seed(0)
    teacher = network() if teacher is None else teacher
    net = Line(0.1, 0.3)
    return net, made("add_ladd", teacher, student(net, rule="renoise"), from_teacher=False, pairs=64, **args)


def test_the_teacher_runs_once_for_all_heads_and_they_see_its_layers():
    teacher = network()
    paths = ("backbone.first", "backbone.layers.0", "backbone.layers.1")
    _, method = distilled(teacher, features=paths)
    runs = []
    handle = teacher.register_forward_hook(lambda module, args, out: runs.append(args))
    seen = method.seen(torch.randn(5, 1), None, batch(0, 5), CLOCK, "here")
    handle.remove()
    ((x, sigma),) = runs
    own = {path: [] for path in paths}
    for path in paths:
        teacher.get_submodule(path).register_forward_hook(lambda module, args, out, path=path: own[path].append(out))
    teacher(x, sigma)
    for features, path in zip(seen, paths, strict=True):
        assert torch.equal(features, own[path][0])


def test_the_levels_of_the_look_are_log_normal():
    _, method = distilled(mean=0.5, std=0.3)
    sigmas = []
    method.teacher.module.register_forward_hook(lambda module, args, out: sigmas.append(args[1]))
    method.seen(torch.zeros(4000, 1), None, batch(0, 4000), CLOCK, "here")
    logs = sigmas[0].log()
    assert float(logs.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(logs.std()) == pytest.approx(0.3, abs=0.03)


def test_fooling_has_the_gradient_of_its_value_through_the_teacher():
    net, method = distilled(distillation_weight=0.0)
    frozen_before = [p.grad for p in method.learners[HEAD].parameters()]

    def value():
        _, update = method.updates(batch(0, 256), CLOCK)
        return update.evaluate()["adversarial"].sum

    value().backward()
    assert [p.grad for p in method.learners[HEAD].parameters()] == frozen_before
    with torch.no_grad():
        ends = []
        for shift in (1e-2, -1e-2):
            net.b += shift
            ends.append(float(value()))
            net.b -= shift
    assert float(net.b.grad) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02)


def test_the_distance_moves_samples_towards_estimates_that_stand_still():
    _, method = distilled(gaussian(), gan_weight=0.0)
    assert HEAD not in method.learners
    x = torch.randn(6, 1, requires_grad=True)
    distance = method.distance(x, None, batch(0, 6), CLOCK)
    (slope,) = torch.autograd.grad(distance.sum(), x)
    u = CLOCK.uniform(torch.arange(6), (1,), "teacher level").squeeze(1)
    sigma = method.levels(u)
    noisy = x.detach() + sigma[:, None] * CLOCK.normal(torch.arange(6), (1,), "teacher noise")
    apart = x.detach() - (MEAN + (STD**2 / (STD**2 + sigma**2))[:, None] * (noisy - MEAN))
    share = 1 / torch.sqrt(1 + sigma**2)
    torch.testing.assert_close(distance.detach(), share * apart.square().squeeze(1))
    torch.testing.assert_close(slope, 2 * share[:, None] * apart)


def test_real_samples_are_the_datas_or_the_teachers():
    given = {**batch(0, 4), "input": torch.full((4, 1), 9.0)}
    _, data = distilled()
    assert float(data.real_samples(given, CLOCK, "x")[0].min()) == 9.0
    _, own = distilled(samples="teacher")
    assert float(own.real_samples(given, CLOCK, "x")[0].max()) < 9.0


def test_the_discriminator_moves_first_and_then_the_student():
    _, method = distilled()
    first, second = method.updates(batch(), CLOCK)
    assert (first.role, second.role) == (HEAD, "student")
    assert values(first).keys() == {"discriminator", "r1"}
    assert values(second).keys() == {"adversarial", "distillation"}


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="where its features are"):
        distilled(gaussian())
    with pytest.raises(UserError, match="rule: renoise"):
        made("add_ladd", plane(), student(rule="ode", nfe=2))
    with pytest.raises(UserError, match="both 0"):
        distilled(gan_weight=0.0, distillation_weight=0.0)


def plane() -> nn.Module:
    """A Gaussian in the plane."""
    return GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
