"""Each formula against loops in float64, and against sentence-transformers where that has it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.errors import UserError
from limbeck.language.ranking_losses import (
    cosine_distance,
    flops,
    list_scores,
    listwise_kl,
    margin_mse,
    ndcg_weights,
    places,
    pointwise_mse,
    prefixes,
    ranknet,
    vector_l2,
)


@pytest.fixture
def scores():
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))


class Encoder(nn.Module):
    """What sentence-transformers' losses call: a map with the vectors of one column of texts."""

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(6, 3, bias=False).double()

    def forward(self, features):
        return {"sentence_embedding": self.linear(features["x"])}


def columns():
    g = torch.Generator().manual_seed(2)
    return [{"x": torch.randn(5, 6, generator=g, dtype=torch.float64)} for _ in range(4)]


def both(peer, ours, targets):
    """Value and gradient of a loss of sentence-transformers and of ours, on the same encoder and texts."""
    model, texts = Encoder(), columns()
    found = []
    for loss in (
        lambda: peer(model)(texts, targets),
        lambda: ours(torch.stack([model(t)["sentence_embedding"] for t in texts], 1)),
    ):
        model.zero_grad()
        value = loss()
        value.backward()
        found.append((value.detach(), model.linear.weight.grad.clone()))
    return found


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


def test_margin_mse_is_that_of_sentence_transformers(peers):
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # The peer wants the margins themselves, or with as many columns as documents the scores.
    (one, its), (two, ours) = both(peers.MarginMSELoss, lambda v: margin_mse(list_scores(v), targets).mean(), targets)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(its, ours)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_listwise_kl_is_that_of_sentence_transformers(peers, temperature):
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (one, its), (two, ours) = both(
        lambda m: peers.DistillKLDivLoss(m, temperature=temperature),
        lambda v: listwise_kl(list_scores(v), targets, temperature=temperature).mean(),
        targets,
    )
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(its, ours)


def test_squared_vectors_are_the_mse_of_sentence_transformers(peers):
    model, texts = Encoder(), columns()[:1]
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    peer = peers.MSELoss(model)(texts, targets)
    (its,) = torch.autograd.grad(peer, [model.linear.weight])
    ours = (
        vector_l2(model(texts[0])["sentence_embedding"], targets, squared=True).mean() / 3
    )  # theirs is per coordinate
    (own,) = torch.autograd.grad(ours, [model.linear.weight])
    torch.testing.assert_close(peer, ours)
    torch.testing.assert_close(its, own)


def test_margins_by_hand_and_unmoved_by_a_shift(scores):
    s, t = scores
    wanted = [[((s[b, 0] - s[b, i]) - (t[b, 0] - t[b, i])) ** 2 for i in range(1, 4)] for b in range(5)]
    torch.testing.assert_close(margin_mse(s, t), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(margin_mse(s + 3, t - 5), margin_mse(s, t))
    assert not torch.allclose(pointwise_mse(s + 3, t), pointwise_mse(s, t))


def test_ranknet_by_loops(scores):
    s, t = scores
    t[0, 1] = t[0, 2]  # a tie counts nothing
    for b in range(5):
        wanted = sum(
            math.log1p(math.exp(s[b, j] - s[b, i])) for i, j in itertools.permutations(range(4), 2) if t[b, i] > t[b, j]
        )
        assert ranknet(s, t)[b].item() == pytest.approx(wanted)


def test_weights_are_the_change_of_ndcg_where_two_swap(scores):
    s, _ = scores
    gains = torch.rand(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = ndcg_weights(s, gains)

    def value(order, b):
        dcg = lambda o: sum(gains[b, d] / math.log2(r + 2) for r, d in enumerate(o))  # noqa: E731
        return dcg(order) / dcg(sorted(range(4), key=lambda d: -gains[b, d]))

    for b in range(5):
        order = sorted(range(4), key=lambda d: -s[b, d])
        for i, j in itertools.combinations(range(4), 2):
            swapped = [{i: j, j: i}.get(d, d) for d in order]
            assert weights[b, i, j].item() == pytest.approx(abs(value(order, b) - value(swapped, b)))
    assert not ndcg_weights(s.requires_grad_(), gains).requires_grad


def test_places_count_from_one_and_keep_the_order_of_ties():
    assert places(torch.tensor([[0.1, 0.9, 0.9, 0.4]])).tolist() == [[4, 1, 2, 3]]


def test_flops_by_loops():
    w = torch.rand(3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    wanted = sum((sum(w[b, j] for b in range(3)) / 3) ** 2 for j in range(4))
    torch.testing.assert_close(flops(w), wanted)


def test_vectors_that_agree_have_no_distance_and_a_finite_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    value = vector_l2(x, torch.stack([x[0].detach(), x[1].detach() + torch.tensor([3.0, 0.0, 4.0])]))
    torch.testing.assert_close(value, torch.tensor([0.0, 5.0]))
    value.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0, 0.0], [-0.6, 0.0, -0.8]]))


def test_cosine_distance_ignores_lengths():
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(cosine_distance(3 * x, y), 1 - (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1))


def test_prefixes_are_cut_and_have_length_one():
    x = torch.randn(2, 3, 6)
    short, whole = prefixes(x, [2, 6])
    torch.testing.assert_close(short, x[..., :2] / x[..., :2].norm(dim=-1, keepdim=True))
    assert whole.shape == x.shape
    with pytest.raises(UserError, match=r"6 dimensions.*\[8\]"):
        prefixes(x, [2, 8])


@pytest.mark.parametrize("loss", [margin_mse, pointwise_mse, listwise_kl, ranknet, vector_l2, cosine_distance])
def test_unlike_shapes_are_refused(loss):
    with pytest.raises(UserError, match="same shape"):
        loss(torch.zeros(3, 4), torch.zeros(3, 1))


def test_a_list_of_one_has_no_margin():
    with pytest.raises(UserError, match="at least 2"):
        margin_mse(torch.zeros(3, 1), torch.zeros(3, 1))
