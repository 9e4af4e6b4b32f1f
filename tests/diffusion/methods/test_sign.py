"""SIGN: a function of the sample alone, its terms, and where they drive it."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.idempotent import Idempotent
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, descend, gaussian, made, student

SOURCE = 2.0


class Net(Affine):
    """An affine function of the sample, whatever the level is said to be."""

    classes, sigma_data = None, 1.0

    def forward(self, x, sigma, label=None):
        assert bool((sigma == SOURCE).all())
        return super().forward(x)


class OwnLaw(FakeScore):
    """The fake score of what :class:`Net` makes of noise of the source's level."""

    def forward(self, x, sigma):
        net = self.of[0]
        return FakeScore(Affine(float(net.a.detach()) * SOURCE, float(net.b.detach())))(x, sigma)


def affine(monkeypatch, levels=(SOURCE,), **args):
    net = Net(0.8, 0.0)
    monkeypatch.setattr("limbeck.diffusion.generators.GeneratorMethod.build_critic", lambda self, parts: OwnLaw(net))
    generator = Idempotent(net, levels, sigma_min=0.02, sigma_max=5.0)
    return made("sign", gaussian(), generator, from_teacher=False, **args), net


def test_matching_alone_comes_to_the_teachers_law(monkeypatch):
    method, net = affine(monkeypatch, reconstruction_weight=0.0, idempotence_weight=0.0)
    descend(method, 120)
    assert abs(float(net.a.detach())) * SOURCE == pytest.approx(STD, abs=0.05)
    assert float(net.b.detach()) == pytest.approx(MEAN, abs=0.05)


def test_the_identities_are_those_of_the_function_on_samples_and_on_its_results(monkeypatch):
    method, net = affine(monkeypatch)
    terms = next(iter(method.updates(batch(), CLOCK))).evaluate()
    z = CLOCK.normal(batch()["id"], (1,), "generator start") * SOURCE
    y = (net.a * z + net.b).detach()
    x, _ = method.clean(batch(), CLOCK, "real")
    for name, points in (("idempotence", y), ("reconstruction", x)):
        expected = ((net.a * points + net.b - points) ** 2).sum()
        torch.testing.assert_close(terms[name].sum, expected)
        # No gradient passes through the results themselves.
        (got,) = torch.autograd.grad(terms[name].sum, net.a, retain_graph=True)
        (right,) = torch.autograd.grad(expected, net.a)
        torch.testing.assert_close(got, right)


def test_the_identities_pull_towards_the_identity_and_away_from_the_law(monkeypatch):
    method, net = affine(monkeypatch, reconstruction_weight=30.0, idempotence_weight=30.0)
    descend(method, 100)
    assert float(net.a.detach()) > 0.6


def test_it_is_one_function_at_every_level_and_goes_over_its_results_again():
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 8, "depth": 1})
    model = build("model", Block("idempotent", {"net": net, "sigma": 2.0, "again": [0.5]}))
    draws = torch.randn(4, 2, 2)
    first = model.apply_to(2.0 * draws[:, 0])
    torch.testing.assert_close(model(draws), model.apply_to(first + 0.5 * draws[:, 1]))
    torch.testing.assert_close(model(first, at=torch.full((4,), 0.1)), model.apply_to(first))
    assert model.nfe == 2
    with pytest.raises(UserError, match="again"):
        build("model", Block("idempotent", {"net": net, "sigma": 2.0, "again": [3.0]}))


def test_other_generators_are_refused():
    with pytest.raises(UserError, match="idempotent"):
        made("sign", mixture.ring(4, 2.0, 0.3).float(), student())
