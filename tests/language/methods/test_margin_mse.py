import pytest
import torch

from limbeck.data.retrieval import retrieval
from limbeck.engine.method import Parts
from limbeck.errors import UserError
from limbeck.language.methods.margin_mse import MarginMSE
from toolkit.rankers import assert_cut_free, batch_of, lists, network, outputs, ready, total


def made(**arguments):
    data = lists()
    return ready(MarginMSE(**arguments), data, network(data, "text", 0), teacher=("logits", network(data, "cross", 1)))


def test_the_loss_is_the_cards_formula():
    method, batch = made(teacher_scale=10.0), batch_of(lists())
    s, t = outputs(method.student, batch), 10 * outputs(method.teacher.module, batch)
    wanted = sum(((s[b, 0] - s[b, i]) - (t[b, 0] - t[b, i])) ** 2 for b in range(6) for i in (1, 2, 3)) / 18
    torch.testing.assert_close(total(method.terms(batch), method.count(batch)).double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_teacher_whose_scores_are_shifted_teaches_the_same_margins_but_other_scores():
    batch = batch_of(lists())
    for match, same in (("margin", True), ("pointwise", False)):
        method = made(match=match)
        before = float(method.terms(batch)[match].sum.detach())
        method.teacher.module.head.bias.data += 3
        after = float(method.terms(batch)[match].sum.detach())
        assert (abs(after - before) < 1e-2) == same


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut():
    assert_cut_free(made(), batch_of(lists()))


def test_several_teachers_teach_by_their_mean_score():
    data, batch = lists(), batch_of(lists())
    nets = [network(data, "cross", seed) for seed in (1, 2)]
    method = ready(MarginMSE(), data, network(data, "text", 0), a=("logits", nets[0]), b=("logits", nets[1]))
    s, t = outputs(method.student, batch), sum(outputs(net, batch) for net in nets) / 2
    wanted = ((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])).square().mean()
    torch.testing.assert_close(total(method.terms(batch), method.count(batch)).double(), wanted, rtol=1e-4, atol=1e-5)


def test_scores_of_a_file_stand_for_a_teacher(tmp_path):
    options = {"corpus": "catalogue", "documents": 20, "queries": 10, "test_queries": 5, "negatives": 3, "context": 12}
    file = tmp_path / "scores.tsv"
    file.write_text("".join(f"q{q}\td{d}\t{(7 * q + 3 * d) % 11}\n" for q in range(10) for d in range(20)))
    data = retrieval(**options, scores=file)
    method = ready(MarginMSE(), data, network(data, "text", 0))
    batch = batch_of(data)
    s, t = outputs(method.student, batch), batch["teacher_scores"].double()
    wanted = ((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])).square().mean()
    torch.testing.assert_close(total(method.terms(batch), method.count(batch)).double(), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="needs a teacher, or data with a teacher's scores"):
        MarginMSE().setup(Parts(network(data, "text", 0), {}, lists().spec, streams={"data": lists().train}))


def test_it_brings_the_students_order_to_the_teachers():
    method, batch = made(), batch_of(lists())
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = total(method.terms(batch), method.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_plain_texts_are_refused():
    data = retrieval(
        corpus="catalogue", documents=20, queries=10, test_queries=5, negatives=3, context=12, rows="texts"
    )
    method = ready(MarginMSE(), data, network(data, "text", 0), teacher=("logits", network(data, "text", 1)))
    with pytest.raises(UserError, match="needs rows of a query and documents"):
        method.terms(data.train.batch(torch.arange(3)))
