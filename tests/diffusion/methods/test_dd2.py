"""Distilled decoding 2: exact conditionals of a codebook, the gradient by the chain rule, and its fixed point."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.codebook import CodebookChain, PrefixDenoiser, TokenGenerator, circle
from limbeck.diffusion.discrete import chain
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import find
from toolkit.diffusion import CLOCK, batch, values

V, L = 4, 3


def law() -> CodebookChain:
    return CodebookChain(circle(V), chain(V, L, 1.5, 0, "uniform", 6.0)).float()


def dd2(student=None, **args):
    method = find("method", "dd2").load()(**{"pairs": 64, "critic_width": 16, "critic_depth": 1, **args})
    student = student or TokenGenerator(circle(V).float(), L, 16, 1)
    method.setup(Parts(student=student, teachers={"teacher": Teacher(law(), {"codes"}, "teacher")}))
    return method


def test_the_estimate_is_that_of_the_mixture_of_codes_given_the_tokens_before():
    model = law()
    tokens = model.chain.draw(torch.arange(20), 0)
    x = torch.randn(20, L, 2) * 2
    sigma = torch.rand(20, L) * 3 + 0.3
    found = model(x, sigma, tokens)
    for b in range(5):
        for i in range(L):
            weights = model.chain.start if i == 0 else model.chain.steps[tokens[b, i - 1]]
            mixture = GaussianMixture(weights, model.codes, torch.zeros_like(model.codes))
            torch.testing.assert_close(
                found[b, i], mixture(x[b, i : i + 1], sigma[b, i : i + 1])[0], rtol=1e-4, atol=1e-4
            )


def test_later_tokens_are_no_condition():
    model = law()
    x, sigma = torch.randn(6, L, 2), torch.ones(6, L)
    tokens = model.chain.draw(torch.arange(6), 0)
    other = tokens.clone()
    other[:, 1] = (other[:, 1] + 1) % V
    assert torch.equal(model(x, sigma, tokens)[:, :2], model(x, sigma, other)[:, :2])
    assert not torch.equal(model(x, sigma, tokens)[:, 2], model(x, sigma, other)[:, 2])
    critic = PrefixDenoiser((L, 2), 16, 1, 1.4)
    points, moved = model.codes[tokens], model.codes[other]
    assert torch.equal(critic(x, sigma, points)[:, :2], critic(x, sigma, moved)[:, :2])
    assert not torch.equal(critic(x, sigma, points)[:, 2], critic(x, sigma, moved)[:, 2])


def test_the_flow_takes_noise_to_the_joint_law():
    model = law()
    tokens = model.nearest(model.flow(torch.randn(4000, L, 2, generator=torch.Generator().manual_seed(0)), 48))
    shares = torch.bincount((tokens[:, :-1] * V + tokens[:, 1:]).flatten(), minlength=V * V) / (4000 * (L - 1))
    assert float((shares - model.chain.pairs().flatten()).abs().sum()) / 2 < 0.04


class ExactCritic(torch.nn.Module):
    """The denoiser of a generator whose tokens follow a chain of its own and lie on the codes."""

    def __init__(self, chain) -> None:
        super().__init__()
        self.law = CodebookChain(circle(V).float(), chain)

    def forward(self, x, sigma, points):
        return self.law(x, sigma, self.law.nearest(points))


def test_where_the_joint_law_is_the_teachers_there_is_no_direction():
    method = dd2()
    tokens = method.law.chain.draw(torch.arange(64), 1)
    points = method.law.codes[tokens]
    x, sigma = method.noised(points, torch.arange(64), CLOCK, "here")
    method.learners["fake_score"] = ExactCritic(law().chain)
    assert float(method.direction(points, x, sigma).abs().max()) < 1e-5
    independent = law().chain
    independent.steps.copy_(independent.start.expand(V, -1))
    method.learners["fake_score"] = ExactCritic(independent)
    away = method.direction(points, x, sigma)
    assert float(away[:, 0].abs().max()) < 1e-5 < float(away[:, 1:].abs().mean())


def test_the_direction_is_the_gradient_of_the_divergence_of_a_conditional():
    """``sigma^2 d/dm KL`` for a first token ``m + s z``: its critic is exact, and the KL is known by quadrature."""
    torch.manual_seed(0)
    model, sigma, s = law(), 1.0, 0.6
    codes, weights = model.codes.double(), model.chain.start.double()
    noise = torch.randn(40_000, 2, dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    wide = (s**2 + sigma**2) ** 0.5

    def divergence(m):
        x = m + wide * noise
        teacher = GaussianMixture(weights, codes, torch.zeros_like(codes))
        own = -(noise.square().sum(1)) / 2 - 2 * torch.log(torch.tensor(wide))
        own = own - torch.log(torch.tensor(2 * torch.pi))
        return (own - teacher.log_prob(x, sigma=sigma)).mean()

    m = torch.tensor([0.4, -0.3], dtype=torch.float64)
    finite = torch.stack([(divergence(m + d) - divergence(m - d)) / 2e-4 for d in 1e-4 * torch.eye(2).double()])
    x = m + wide * noise
    fake = m + s**2 / wide**2 * (x - m)
    real = model.double()(x[:, None], torch.full((len(x), 1), sigma).double(), torch.zeros(len(x), 1, dtype=torch.long))
    torch.testing.assert_close((fake - real[:, 0]).mean(0) / sigma**2, finite, rtol=0.02, atol=2e-3)


def test_warmup_comes_first_and_the_critic_learns_all_along():
    method = dd2(warmup=0.5, critic_updates=2)
    for step, term in [(0, "regression"), (9, "matching")]:
        updates = list(method.updates(batch(), Clock(step, 10, seed=1)))
        assert [u.role for u in updates] == ["student", "fake_score", "fake_score"]
        assert [set(values(u)) for u in updates] == [{term}, {"denoising"}, {"denoising"}]


def test_what_comes_before_takes_no_gradient():
    method = dd2(warmup=0.0)
    seen = []
    plain = method.direction
    method.direction = lambda points, *at: seen.append(points.requires_grad) or plain(points, *at)
    next(iter(method.updates(batch(), CLOCK))).evaluate()["matching"].sum.backward()
    assert seen == [False]
    assert all(p.grad is None for p in method.learners["fake_score"].parameters())


def test_tokens_of_an_independent_generator_depend_on_their_own_noise():
    z = torch.randn(5, L, 2)
    other = z.clone()
    other[:, 0] += 1
    for independent in (True, False):
        net = TokenGenerator(circle(V).float(), L, 16, 1, independent=independent)
        assert torch.equal(net(z)[:, 1:], net(other)[:, 1:]) == independent


def test_another_teacher_is_refused():
    method = find("method", "dd2").load()()
    with pytest.raises(UserError, match="codebook_chain"):
        method.setup(Parts(student=torch.nn.Identity(), teachers={"teacher": Teacher(law(), {"codes"}, "teacher")}))
