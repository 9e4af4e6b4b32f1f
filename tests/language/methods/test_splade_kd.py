import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.language.methods.splade_kd import SpladeKD
from toolkit.rankers import batch_of, lists, network, outputs, ready, total

LATE = Clock(9, 10)


def made(**arguments):
    data = lists()
    teacher = ("logits", network(data, "cross", 1))
    return ready(SpladeKD(**arguments), data, network(data, "sparse", 0), teacher=teacher)


def test_the_loss_is_the_cards_formula():
    method, batch = made(alpha=0.8, query_flops=0.3, document_flops=0.2), batch_of(lists())
    s, t = outputs(method.student, batch), outputs(method.teacher.module, batch)
    margin = sum(((s[b, 0] - s[b, i]) - (t[b, 0] - t[b, i])) ** 2 for b in range(6) for i in (1, 2, 3)) / 18
    ce = -torch.log_softmax(s, -1)[:, 0][torch.tensor([0, 2, 3, 4, 5])].mean()
    w = outputs(method.student, batch, "embedding")
    query = sum((sum(w[b, 0, j] for b in range(6)) / 6) ** 2 for j in range(w.shape[-1]))
    document = sum((sum(w[b, n, j] for b in range(6) for n in range(1, 5)) / 24) ** 2 for j in range(w.shape[-1]))
    found = total(method.terms(batch, LATE), method.count(batch)).double()
    wanted = 0.8 * margin + 0.2 * ce + 0.3 * query + 0.2 * document
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_regulariser_grows_with_the_square_of_time():
    method, batch = made(query_flops=0.4, warmup=0.5), batch_of(lists())
    weights = [method.terms(batch, Clock(step, 8))["query_flops"].weight for step in (1, 2, 4, 7)]
    assert weights == pytest.approx([0.4 / 16, 0.4 / 4, 0.4, 0.4])
    assert "query_flops" not in method.terms(batch, Clock(0, 8))
    method.warmup = 0.0
    assert method.terms(batch, Clock(0, 8))["query_flops"].weight == 0.4


def test_paying_for_words_leaves_fewer_of_them():
    counts = []
    for price in (0.0, 1.0):
        method, batch = made(query_flops=price, document_flops=price, warmup=0.0), batch_of(lists())
        optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            total(method.terms(batch, LATE), method.count(batch)).backward()
            optimizer.step()
        found = method.health(batch, LATE)
        counts.append(float(found["active_document"].sum / found["active_document"].count))
    assert counts[1] < 0.7 * counts[0]


def test_without_a_teacher_only_labels_are_learnt():
    data = lists()
    method = ready(SpladeKD(alpha=0.0), data, network(data, "sparse", 0))
    assert set(method.terms(batch_of(data), LATE)) == {"ce", "query_flops", "document_flops"}
    with pytest.raises(UserError, match="needs a teacher"):
        ready(SpladeKD(), data, network(data, "sparse", 0))
