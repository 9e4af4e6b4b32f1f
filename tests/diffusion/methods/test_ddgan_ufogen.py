"""Denoising diffusion GANs: real steps, and the law of a step that a latent can match and the mean square cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion.gan import HEAD
from limbeck.diffusion.latent import PosteriorSteps
from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, batch, descend, gaussian, made, student, values


class Drawing(nn.Module):
    """``E[x0 | x] + c z`` of :func:`gaussian`: right for one c, the standard deviation of its posterior."""

    shape = (1,)
    classes = None
    sigma_data = STD

    def __init__(self, c: float = 0.1) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, x, sigma, label=None, *, latent=None):
        mean = gaussian()(x, sigma)
        return mean if latent is None else mean + self.c * latent


class Ratio(nn.Module):
    """The exact logit of the steps of :class:`Drawing`: the log ratio of the conditional laws of the lower point."""

    def __init__(self, net: Drawing) -> None:
        super().__init__()
        self.of = (net,)

    def forward(self, x, sigma, label=None, *, beside=None, at=None):
        share = ((sigma / at) ** 2)[:, None]
        mean = gaussian()(beside, at)
        mean = mean + share * (beside - mean)
        rest = sigma[:, None] ** 2 * (1 - share)
        true = spread(at)[:, None] ** 2
        own = self.of[0].c.detach() ** 2
        return sum(
            sign * torch.distributions.Normal(mean, torch.sqrt((1 - share) ** 2 * v + rest)).log_prob(x)
            for sign, v in ((1, true), (-1, own))
        ).squeeze(1)


def spread(sigma):
    return torch.sqrt(STD**2 * sigma**2 / (STD**2 + sigma**2))


def drawing(c: float = 0.1, levels=(0.6,), r1=0.0, **args):
    net = Drawing(c)
    generator = PosteriorSteps(net, levels, sigma_min=0.02)
    generator.latent = True
    method = made("ddgan_ufogen", gaussian(), generator, from_teacher=False, r1=r1, **args)
    if HEAD in method.learners:
        method.learners[HEAD] = Ratio(net)
    return net, method


@pytest.mark.parametrize("levels", [(0.6,), (0.6, 0.55)])
def test_with_the_exact_discriminator_the_latents_spread_comes_to_the_posteriors(levels):
    net, method = drawing(0.15, levels)
    descend(method, 90, lr=0.03)
    assert abs(float(net.c.detach())) == pytest.approx(float(spread(torch.tensor(0.6))), rel=0.1)


def test_the_mean_square_leaves_no_spread():
    net, method = drawing(0.2, adversarial=0.0, reconstruction=1.0)
    assert HEAD not in method.learners
    descend(method, 50, lr=0.02)
    assert abs(float(net.c.detach())) < 0.05


def test_a_real_step_is_of_the_diffusion():
    _, method = drawing(levels=(2.0, 0.5))
    real = method.real_step(batch(0, 20_000), CLOCK, "apart")
    pairs = set(zip(real.now.tolist(), real.then.tolist(), strict=True))
    assert pairs == {(2.0, 0.5), (0.5, 0.0)}
    high = real.now == 2.0
    assert float(high.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((real.lower - real.x0)[high].std()) == pytest.approx(0.5, rel=0.03)
    assert float((real.x - real.lower)[high].std()) == pytest.approx(3.75**0.5, rel=0.03)
    assert float((real.x - real.x0)[high].std()) == pytest.approx(2.0, rel=0.03)
    assert torch.equal(real.lower[~high], real.x0[~high])


def test_the_penalty_is_of_real_points_and_the_discriminator_moves_first():
    torch.manual_seed(0)
    generator = student(nfe=2)
    method = made("ddgan_ufogen", plane(), generator, sees="point", width=8, depth=1, r1=0.5, reconstruction=0.1)
    first, second = method.updates(batch(), CLOCK)
    assert (first.role, second.role) == (HEAD, "student")
    assert values(second).keys() == {"adversarial", "reconstruction"}
    terms = first.evaluate()
    assert terms["r1"].weight == 0.5
    real = method.real_step(batch(), CLOCK, "apart")
    shift = 1e-3 * torch.eye(2)
    with torch.no_grad():
        slope = [(method.logit(real.lower + s, real) - method.logit(real.lower - s, real)) / 2e-3 for s in shift]
    expected = float(torch.stack(slope).square().sum() / 2)
    assert float(terms["r1"].sum.detach()) == pytest.approx(expected, rel=0.02)


def test_steps_that_are_not_drawn_are_refused():
    with pytest.raises(UserError, match="posterior_steps"):
        made("ddgan_ufogen", plane(), student(rule="ode", nfe=2))
    with pytest.raises(UserError, match="sees: point"):
        made("ddgan_ufogen", plane(), student(nfe=2))
    with pytest.raises(UserError, match="both 0"):
        made("ddgan_ufogen", plane(), student(nfe=2), adversarial=0.0)


def plane():
    """A Gaussian of the mean ``MEAN`` in the plane."""
    from limbeck.diffusion.mixture import GaussianMixture

    return GaussianMixture(torch.ones(1), torch.full((1, 2), MEAN), torch.full((1, 2), STD**2))
