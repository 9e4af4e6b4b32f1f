"""Masked diffusion of tokens: the score, its samples, and the objective."""

from __future__ import annotations

import itertools
import math

import torch

from limbeck.diffusion.discrete import MarkovChain, transition
from limbeck.registry import Block, build


def network(tokens=3, length=4):
    torch.manual_seed(0)
    given = {"vocab_size": tokens, "context": length, "width": 8, "layers": 1, "heads": 2}
    return build("model", Block("masked_transformer", given)).eval()


def test_the_score_of_a_masked_token_is_that_of_an_exact_chain_with_its_posterior():
    chain = MarkovChain(torch.tensor([0.5, 0.3, 0.2]), torch.full((3, 3), 1 / 3), 4, "absorb", 6.0)
    net, x, time = network(), torch.tensor([[0, 3, 1, 3]]), 0.7
    posterior = chain.messages(x, time)  # of a chain that forgets, the law of each place by itself
    net.fill = lambda x: posterior.log()
    masked = x[0] == 3
    assert torch.allclose(net(x, time)[0][masked], chain(x, time)[0][masked], atol=1e-5)
    assert torch.equal(net(x, time)[0][~masked].argmax(-1), x[0][~masked])


def test_a_step_from_time_to_time_keeps_what_is_left_and_unmasks_by_the_schedule():
    from limbeck.diffusion.discrete import step_law

    net, x = network(), torch.tensor([[0, 3, 1, 3]])
    law = step_law(net(x, 2.0), x, 2.0, 1.0, net.rates, "tweedie")[0]
    assert torch.allclose(law[0, 0], torch.tensor(1.0)) and torch.allclose(law[2, 1], torch.tensor(1.0))
    # Masked at time 2, a token was masked at time 1 already with probability (1 - e^-1) / (1 - e^-2).
    still = (1 - math.exp(-1)) / (1 - math.exp(-2))
    assert torch.allclose(law[1, 3], torch.tensor(still), atol=1e-5)
    assert torch.allclose(law[1, :3], (1 - still) * net.fill(x).softmax(-1)[0, 1], atol=1e-5)
    assert torch.allclose(transition(net.rates, 1.0)[0, 3], torch.tensor(1 - math.exp(-1)))


def test_samples_have_no_masks_and_follow_the_network():
    net = network(length=2)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([2.0, 0.0, -1.0]))
    made = net.draw(torch.arange(4000), "here", steps=16)
    assert int(made.max()) < 3
    # The law of two tokens when one is filled in before the other, either first alike (both in one step is rare).
    blank = torch.full((1, 2), 3)
    law = torch.zeros(3, 3)
    with torch.no_grad():
        for a, b in itertools.product(range(3), range(3)):
            one = net.fill(blank).softmax(-1)[0]
            after = net.fill(torch.tensor([[a, 3]])).softmax(-1)[0, 1, b]
            before = net.fill(torch.tensor([[3, b]])).softmax(-1)[0, 0, a]
            law[a, b] = 0.5 * (one[0, a] * after + one[1, b] * before)
    found = torch.zeros(3, 3).index_put_((made[:, 0], made[:, 1]), torch.ones(4000), accumulate=True) / 4000
    assert float((found - law).abs().sum() / 2) < 0.04
