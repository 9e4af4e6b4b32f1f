import pytest
import torch
import torch.nn.functional as F

from limbeck.data.base import DataSpec
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.dse import DSE
from toolkit.rankers import assert_cut_free, batch_of, network, outputs, pairs, ready, total


def made(classes=3, alpha=0.5):
    data = pairs()
    student = network(data, "pair", 0, classes=classes, head_hidden=8)
    return ready(DSE(alpha=alpha), data, student, teacher=("logits", network(data, "cross", 1, classes=classes)))


def test_the_loss_is_the_cards_formula():
    method, batch = made(alpha=0.3), batch_of(pairs())
    s, t = outputs(method.student, batch), outputs(method.teacher.module, batch)
    logits = sum((s[b, k] - t[b, k]) ** 2 for b in range(6) for k in range(3)) / 6
    ce = -sum(torch.log_softmax(s[b], -1)[batch["label"][b]] for b in (0, 2, 3, 4, 5)) / 5
    found = total(method.terms(batch), method.count(batch)).double()
    torch.testing.assert_close(found, 0.7 * ce + 0.3 * logits, rtol=1e-4, atol=1e-5)


def test_pairs_with_scores_learn_them():
    method, batch = made(classes=None), batch_of(pairs())
    s, t = outputs(method.student, batch), outputs(method.teacher.module, batch)
    ce = F.binary_cross_entropy(torch.sigmoid(s[:, 0]), batch["score"].double())
    found = total(method.terms(batch), method.count(batch)).double()
    torch.testing.assert_close(found, 0.5 * ce + 0.5 * (s - t).square().mean(), rtol=1e-4, atol=1e-5)


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut():
    assert_cut_free(made(), batch_of(pairs()))


def test_alpha_decides_which_terms_there_are():
    batch = batch_of(pairs())
    assert [set(made(alpha=a).terms(batch)) for a in (0.0, 0.5, 1.0)] == [{"ce"}, {"ce", "logits"}, {"logits"}]


def test_pairs_without_anything_to_learn_are_refused():
    batch = {k: v for k, v in batch_of(pairs()).items() if k not in ("label", "score")}
    with pytest.raises(UserError, match="neither classes nor scores"):
        made().terms(batch)
    spec = DataSpec(shape=(1, 8, 8), classes=2)
    with pytest.raises(UserError, match="the data's task is classification"):
        DSE().setup(Parts(torch.nn.Linear(2, 2), {"teacher": Teacher(torch.nn.Linear(2, 2), {"logits"}, "t")}, spec))
