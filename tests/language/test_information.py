import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.language.information import Critic, Critics, interpolated_bound


def scores(count=7, seed=0):
    made = torch.Generator().manual_seed(seed)
    draw = torch.randn(count, count, generator=made, dtype=torch.float64)
    return draw, torch.randn(count, generator=made, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_bound_is_the_cards_formula(alpha):
    f, log_b = scores()
    found = interpolated_bound(f, log_b, alpha)
    for j in range(7):
        b = math.exp(log_b[j])
        m = sum(math.exp(f[k, j]) for k in range(7)) / 7
        others = [math.exp(f[k, j]) for k in range(7) if k != j]
        m_others = sum(others) / 6
        joint = math.log(math.exp(f[j, j]) / (alpha * m + (1 - alpha) * b))
        product = sum(e / (alpha * m_others + (1 - alpha) * b) for e in others) / 6
        assert float(found[j]) == pytest.approx(1 + joint - product, rel=1e-10)


def test_alpha_one_is_info_nce():
    f, log_b = scores()
    nce = math.log(7) - torch.nn.functional.cross_entropy(f.T, torch.arange(7), reduction="none")
    assert torch.allclose(interpolated_bound(f, log_b, 1.0), nce)
    assert torch.allclose(interpolated_bound(f, log_b, 1 - 1e-9), nce, atol=1e-7), "and is its limit"
    sure = 100 * torch.eye(7, dtype=torch.float64)
    assert float(interpolated_bound(sure, log_b, 1.0).mean()) == pytest.approx(math.log(7))


def test_alpha_zero_is_nwj():
    f, _ = scores()
    g = f + 1  # NWJ's own critic: E_p[g] - E_q[e^(g - 1)]
    off = ~torch.eye(7, dtype=torch.bool)
    nwj = g.diagonal().mean() - (g - 1)[off].exp().mean()
    assert float(interpolated_bound(f, torch.zeros(7), 0.0).mean()) == pytest.approx(float(nwj))
    assert float(interpolated_bound(f, torch.zeros(7), 1e-9).mean()) == pytest.approx(float(nwj), abs=1e-7)


def gaussians(rho, count, seed=0):
    made = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, count, 1, generator=made, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def optimal(rho, x, y):
    """``log p(y | x) - log p(y)`` of unit Gaussians of correlation rho, in row x and column y."""
    y = y.T
    return -0.5 * math.log(1 - rho**2) + y**2 / 2 - (y - rho * x) ** 2 / (2 * (1 - rho**2))


@pytest.mark.parametrize(("alpha", "slack"), [(0.0, 0.05), (0.5, 0.05), (1.0, 0.05)])
def test_with_the_best_critic_the_bound_is_the_information_of_gaussians(alpha, slack):
    rho = 0.6
    x, y = gaussians(rho, 1000)
    known = -0.5 * math.log(1 - rho**2)
    found = interpolated_bound(optimal(rho, x, y), torch.zeros(1000, dtype=torch.float64), alpha)
    assert float(found.mean()) == pytest.approx(known, abs=slack)


def test_a_few_samples_bound_info_nce_but_not_nwj():
    rho = 0.999
    known = -0.5 * math.log(1 - rho**2)  # 3.1 nats, more than log 8
    values = {}
    for alpha in (0.0, 1.0):
        found = [interpolated_bound(optimal(rho, *gaussians(rho, 8, seed)), torch.zeros(8), alpha).mean()
                 for seed in range(200)]  # fmt: skip
        values[alpha] = torch.stack(found)
    assert float(values[1.0].mean()) < math.log(8) < known
    assert float(values[0.0].mean()) == pytest.approx(known, abs=0.35)
    assert values[0.0].std() > 3 * values[1.0].std(), "low bias at the price of variance"


@pytest.mark.parametrize("learned", [False, True])
def test_a_trained_critic_comes_near_the_information_from_below(learned):
    torch.manual_seed(0)
    rho = 0.9
    critic = Critic(1, 1, 16, learned=learned)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for step in range(200):
        x, y = (v.float() for v in gaussians(rho, 64, step + 1))
        loss = -interpolated_bound(*critic(x, y), 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = [float(interpolated_bound(*critic(*(v.float() for v in gaussians(rho, 500, -n))), 0.5).mean())
                 for n in range(1, 7)]  # fmt: skip
    known = -0.5 * math.log(1 - rho**2)
    assert known - 0.2 < sum(found) / 6 < known + 0.06


def test_the_critic_is_a_network_of_the_joined_pair():
    torch.manual_seed(0)
    critic = Critic(3, 5, 8, learned=True)
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    found, baseline = Critics([critic])([x], [y])[0]
    weight = torch.cat([critic.first.weight, critic.second.weight], 1)
    for k in range(4):
        for j in range(4):
            joined = torch.relu(weight @ torch.cat([x[k], y[j]]) + critic.first.bias)
            assert found[k, j].item() == pytest.approx(critic.out(joined).item(), rel=1e-4, abs=1e-6)
    assert torch.equal(baseline, critic.baseline(y).squeeze(-1))
    assert torch.equal(Critic(3, 5, 8)(x, y)[1], torch.zeros(4)), "the constant 1"


def test_gradients_are_finite_at_both_ends_and_wrong_input_is_refused():
    for alpha in (0.0, 0.5, 1.0):
        f = scores()[0].requires_grad_()
        interpolated_bound(f, torch.zeros(7), alpha).sum().backward()
        assert f.grad.isfinite().all() and f.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"alpha in \[0, 1\] and two samples; got 1.5 and 7"):
        interpolated_bound(*scores(), 1.5)
    with pytest.raises(UserError, match=r"got 0\.5 and 1"):
        interpolated_bound(torch.zeros(1, 1), torch.zeros(1), 0.5)
