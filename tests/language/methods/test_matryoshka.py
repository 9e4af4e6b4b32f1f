import pytest
import torch

from limbeck.errors import UserError
from limbeck.language.methods.matryoshka import Matryoshka
from toolkit.rankers import assert_cut_free, batch_of, lists, network, outputs, ready, total

MATCHES = ["similarity", "cosine", "mse"]
DIMS = (4, 8)


def made(**arguments):
    data = lists()
    teacher = ("embedding", network(data, "text", 1))
    return ready(Matryoshka(**{"dims": DIMS, **arguments}), data, network(data, "text", 0), teacher=teacher)


def unit(x):
    return x / x.norm()


def by_hand(match, s, t):
    """The loss of one row [5, 16] by one prefix [5, m]."""
    m = s.shape[1]
    if match == "similarity":
        own = torch.stack([unit(s[0]) @ unit(s[n]) for n in range(1, 5)]) / 0.2
        theirs = torch.stack([unit(t[0]) @ unit(t[n]) for n in range(1, 5)]) / 0.2
        p = torch.softmax(theirs, 0)
        return float((p * (p.log() - torch.log_softmax(own, 0))).sum())
    cosines = [float(unit(s[n]) @ unit(t[n, :m])) for n in range(5)]
    return sum((1 - c) * (2 if match == "mse" else 1) for c in cosines) / 5


@pytest.mark.parametrize("match", MATCHES)
def test_the_loss_is_the_cards_formula(match):
    method, batch = made(match=match, temperature=0.2, alpha=0.6), batch_of(lists())
    s, t = outputs(method.student, batch, "embedding"), outputs(method.teacher.module, batch, "embedding")
    nested = sum(by_hand(match, s[b, :, :m], t[b]) for b in range(6) for m in DIMS) / 6
    labelled = [0, 2, 3, 4, 5]
    ce = 0.0
    for m in DIMS:
        for b in labelled:
            own = torch.stack([unit(s[b, 0, :m]) @ unit(s[b, n, :m]) for n in range(1, 5)]) / 0.2
            ce += float(-torch.log_softmax(own, 0)[0]) / len(labelled)
    found = total(method.terms(batch), method.count(batch))
    assert float(found.detach()) == pytest.approx(0.6 * nested + 0.4 * ce, rel=1e-4)


@pytest.mark.parametrize("match", MATCHES)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(match):
    assert_cut_free(made(match=match, alpha=0.5), batch_of(lists()))


def test_coordinates_beyond_the_longest_prefix_are_not_taught():
    data = lists()
    student = network(data, "text", 0, dim=16)
    method = ready(Matryoshka(dims=DIMS), data, student, teacher=("embedding", network(data, "text", 1)))
    total(method.terms(batch_of(data)), method.count(batch_of(data))).backward()
    rows = student.dense.weight.grad.abs().amax(1)
    assert (rows[:8] > 0).all() and not rows[8:].any()


@pytest.mark.parametrize("dims", [(4, 17), (), (0, 4)])
def test_prefixes_that_the_vectors_do_not_have_are_refused(dims):
    with pytest.raises(UserError, match="are not all from 1 to 16"):
        made(dims=dims)
