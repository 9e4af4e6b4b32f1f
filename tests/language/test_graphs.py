from itertools import permutations

import pytest
import torch

from limbeck.language.graphs import graph_distance, signatures


def graph(logits, k):
    top = torch.zeros_like(logits).scatter(-1, logits.topk(k).indices, logits.topk(k).values)
    whole = top.T @ top
    return whole / whole.norm() * len(whole)


def gromov_wasserstein(a, b):
    """The best renaming of tokens, tried one by one: mean squared difference of the edges."""
    return min(((a - b[list(p)][:, list(p)]) ** 2).mean() for p in permutations(range(len(b))))


@pytest.mark.parametrize("seed", range(8))
def test_it_is_a_lower_bound_of_the_exact_distance(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(1, 3, dtype=torch.bool)
    fast = graph_distance(*(signatures(x[None].float(), mask, 3) for x in (first, second)))
    exact = gromov_wasserstein(graph(first, 3), graph(second, 3))
    assert 0 < float(fast) <= float(exact) + 1e-6
    assert float(fast) <= 4


def test_graphs_that_differ_in_names_alone_are_the_same():
    logits = torch.arange(30.0).sin().view(1, 5, 6)
    mask = torch.ones(1, 5, dtype=torch.bool)
    renamed = signatures(logits[..., [3, 1, 5, 0, 2, 4]], mask, 4)
    assert float(graph_distance(signatures(logits, mask, 4), renamed)) < 1e-12
    assert float(gromov_wasserstein(graph(logits[0], 4), graph(logits[0][:, [3, 1, 5, 0, 2, 4]], 4))) < 1e-10
    wider = torch.cat([logits, torch.full((1, 5, 3), -50.0)], -1)
    assert float(graph_distance(signatures(logits, mask, 4), signatures(wider, mask, 4)[:, :6])) < 1e-12


def test_reading_a_text_twice_changes_no_graph():
    logits = torch.arange(30.0).cos().view(1, 5, 6)
    once = signatures(logits, torch.ones(1, 5, dtype=torch.bool), 3)
    twice = signatures(torch.cat([logits, logits], 1), torch.ones(1, 10, dtype=torch.bool), 3)
    torch.testing.assert_close(once, twice)


def test_gradients_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, generator=generator, requires_grad=True)
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    target = torch.rand(2, 6, generator=generator)
    own = torch.autograd.grad(graph_distance(signatures(logits, mask, 3), target).sum(), logits)[0]
    hand = 0.0
    for b, count in enumerate((3, 4)):
        row = graph(logits[b, :count], 3).sum(1) / 6
        hand = hand + ((row.sort().values - target[b].sort().values) ** 2).mean()
    torch.testing.assert_close(own, torch.autograd.grad(hand, logits)[0], rtol=1e-4, atol=1e-7)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="k must be 1 to the number of tokens, 6; got 7"):
        signatures(torch.zeros(1, 2, 6), torch.ones(1, 2, dtype=torch.bool), 7)
