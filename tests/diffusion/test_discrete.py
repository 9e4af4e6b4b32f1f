"""Discrete diffusion: the exact score and steps of a chain against sums over all sequences."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.diffusion.discrete import DiscreteSampler, chain, generator, inverse, log_linear, step_law, transition
from limbeck.diffusion.metrics.sequences import sequence_quality
from limbeck.metrics.base import Evaluation

V, L = 3, 3
KINDS = ["uniform", "absorb"]


def law(kind: str, length: int = L):
    return chain(V, length, 1.5, 0, kind, 4.0)


def everything(states: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(states), repeat=L)))


def joint(model, time: float) -> torch.Tensor:
    """Probability of every corrupted sequence at a time, as the sum over all clean ones."""
    clean, noisy = everything(V), everything(model.states)
    moves = transition(model.rates, time)
    ways = moves[clean[:, None, :], noisy[None]].prod(-1)
    return model.log_prob(clean).exp() @ ways


@pytest.mark.parametrize("kind", KINDS)
def test_transitions_are_the_exponential_of_the_generator(kind):
    rates = generator(kind, V)
    torch.testing.assert_close(transition(rates, 0.7), torch.linalg.matrix_exp(0.7 * rates))
    torch.testing.assert_close(transition(rates, 0.7) @ transition(rates, -0.7), torch.eye(len(rates)).double())


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_ratio_of_probabilities_of_neighbouring_sequences(kind):
    model, time = law(kind), 0.8
    x, chances = everything(model.states), joint(model, time)
    index = {tuple(row): k for k, row in enumerate(x.tolist())}
    score = model(x, time).exp()
    for i in range(L):
        for v in range(model.states):
            other = x.clone()
            other[:, i] = v
            ratio = chances[[index[tuple(row)] for row in other.tolist()]] / chances
            torch.testing.assert_close(score[:, i, v], ratio, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_tweedies_step_is_the_exact_law_of_one_token_and_the_others_come_to_it(kind):
    model, now, then = law(kind), 0.9, 0.5
    x = everything(model.states)
    before, moves = joint(model, then), transition(model.rates, now - then)
    exact = torch.zeros(len(x), L, model.states, dtype=torch.float64)
    ways = before[:, None] * moves[x[:, None, :], x[None]].prod(-1)  # [earlier, later]
    for i in range(L):
        for v in range(model.states):
            exact[:, i, v] = ways[x[:, i] == v].sum(0) / ways.sum(0)
    torch.testing.assert_close(step_law(model(x, now), x, now, then, model.rates, "tweedie"), exact)
    for rule in ("euler", "tau_leaping"):
        gaps = []
        for width in (0.04, 0.02):
            made = step_law(model(x, now), x, now, now - width, model.rates, rule)
            torch.testing.assert_close(made.sum(-1), torch.ones(len(x), L).double())
            right = step_law(model(x, now), x, now, now - width, model.rates, "tweedie")
            gaps.append(float((made - right).abs().max()))
        assert gaps[1] < gaps[0] / 3.5  # a step's own error is of second order


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_in_a_step_is_that_tokens_move_on_their_own(kind):
    """The product of exact laws is not the joint law, and the difference goes with the width of the step."""
    model = law(kind)
    x = everything(model.states)
    gaps = []
    for then in (0.0, 0.45, 0.675):
        ways = joint(model, then)[:, None] * transition(model.rates, 0.9 - then)[x[:, None, :], x[None]].prod(-1)
        product = step_law(model(x, 0.9), x, 0.9, then, model.rates, "tweedie")
        alone = product[:, None].expand(-1, len(x), -1, -1).gather(3, x[None, :, :, None].expand(len(x), -1, -1, 1))
        seen = joint(model, 0.9)
        gaps.append(float(((alone[..., 0].prod(-1).T - ways / ways.sum(0)).abs().sum(0) * seen).sum()) / 2)
    assert gaps[0] > gaps[1] > gaps[2] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_give_the_chain_and_few_do_not(kind):
    model = law(kind, 6).float()
    z = torch.randn(2000, 33, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for steps in (2, 32):
        sampler = DiscreteSampler(model, steps, "tweedie")
        made = sampler(z[:, : steps + 1])
        pairs = torch.zeros(V, V)
        pairs.view(-1).index_add_(0, (made[:, :-1] * V + made[:, 1:]).reshape(-1), torch.ones(5 * 2000))
        found.append(float((pairs / pairs.sum() - model.pairs()).abs().sum()) / 2)
    assert found[1] < 0.025 < found[0]


def test_inverse_draws_the_law_and_times_fall_to_zero():
    made = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    u = torch.tensor([[0.0], [0.19], [0.21], [0.69], [0.71], [1.0]])
    assert inverse(made, u).flatten().tolist() == [0, 0, 2, 2, 3, 3]
    times = DiscreteSampler(law("uniform").float(), 5).times()
    torch.testing.assert_close(torch.exp(-times), torch.linspace(float(torch.tensor(-4.0).exp()), 1, 6))
    assert log_linear(torch.ones(()), 4.0) == pytest.approx(4.0)


def test_coefficients_speed_jumps_up_or_sharpen_them():
    model = law("uniform").float()
    x = everything(V)[:4]
    score = model(x, 0.9)
    for scaled in ("score", "log_score"):
        sampler = DiscreteSampler(model, 2, scaled=scaled)
        torch.testing.assert_close(sampler.scale(score, x, 0), score)
        sampler.coefficients.data.fill_(2.0)
        doubled = sampler.scale(score, x, 0).detach()
        away = torch.nn.functional.one_hot(x, V) == 0
        expected = score + torch.log(torch.tensor(2.0)) if scaled == "score" else 2 * score
        torch.testing.assert_close(doubled[away], expected[away])
        assert float(doubled[~away].abs().max()) < 1e-6


def test_the_chain_itself_scores_as_its_own_law():
    model = law("uniform", 8).float()
    found = sequence_quality(Evaluation(model), samples=4000).values
    assert found["pair_tv"] < 0.02
    assert found["distant_tv"] < 0.02
    assert abs(found["sequence_nll"]) < 0.15
