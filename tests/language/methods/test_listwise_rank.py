import itertools
import math

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.language.methods.listwise_rank import ListwiseRank
from toolkit.rankers import assert_cut_free, batch_of, lists, network, outputs, ready, total

MATCHES = ["listwise", "ranknet", "lambda"]


def made(**arguments):
    data = lists()
    teacher = ("logits", network(data, "cross", 1))
    return ready(ListwiseRank(**arguments), data, network(data, "text", 0), teacher=teacher)


def by_hand(match, s, t, heat):
    """The loss of one list, from its scores."""
    n = len(s)
    if match == "listwise":
        p, log_q = torch.softmax(t / heat, 0), torch.log_softmax(s / heat, 0)
        return float(heat**2 * (p * (p.log() - log_q)).sum())
    gains = {d: 1 / (r + 1) for r, d in enumerate(sorted(range(n), key=lambda d: -t[d]))}
    places = {d: r + 1 for r, d in enumerate(sorted(range(n), key=lambda d: -s[d]))}
    best = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(gains.values(), reverse=True)))
    loss = 0.0
    for i, j in itertools.permutations(range(n), 2):
        if t[i] > t[j]:
            moved = abs(1 / math.log2(1 + places[i]) - 1 / math.log2(1 + places[j]))
            weight = abs(gains[i] - gains[j]) * moved / best if match == "lambda" else 1.0
            loss += weight * math.log1p(math.exp(s[j] - s[i]))
    return loss


@pytest.mark.parametrize("match", MATCHES)
def test_the_loss_is_the_cards_formula(match):
    method, batch = made(match=match, alpha=0.7, temperature=2.0), batch_of(lists())
    s, t = outputs(method.student, batch), outputs(method.teacher.module, batch)
    rank = sum(by_hand(match, s[b], t[b], 2.0) for b in range(6)) / 6
    ce = -torch.log_softmax(s, -1)[:, 0][torch.tensor([0, 2, 3, 4, 5])].mean().item()  # the second has no label
    found = total(method.terms(batch), method.count(batch))
    assert float(found.detach()) == pytest.approx(0.7 * rank + 0.3 * ce, rel=1e-4)


@pytest.mark.parametrize("match", MATCHES)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(match):
    assert_cut_free(made(match=match, alpha=0.5), batch_of(lists()))


@pytest.mark.parametrize("match", ["ranknet", "lambda"])
def test_of_a_teacher_that_orders_only_its_order_counts(match):
    method, batch = made(match=match), batch_of(lists())
    before = method.terms(batch)["rank"].sum
    head = method.teacher.module.head
    head.weight.data *= 5
    head.bias.data += 2
    torch.testing.assert_close(method.terms(batch)["rank"].sum, before)


def test_alpha_decides_which_terms_there_are():
    method, batch = made(), batch_of(lists())
    seen = []
    for method.alpha in (0.0, 0.5, 1.0):
        (update,) = method.updates(batch, Clock(0, 1))
        seen.append({name: term.weight for name, term in update.terms.items()})
    assert seen == [{"ce": 1.0}, {"ce": 0.5, "rank": 0.5}, {"rank": 1.0}]
