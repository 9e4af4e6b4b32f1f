import pytest
import torch

from limbeck.data.retrieval import retrieval
from limbeck.errors import UserError
from limbeck.language.methods.leaf import Leaf
from toolkit.rankers import assert_cut_free, batch_of, lists, network, outputs, ready, total


def made(dim=10, **arguments):
    data = lists()
    student, teacher = network(data, "text", 0, dim=10), network(data, "text", 1, dim=dim, normalize=True)
    return ready(Leaf(**arguments), data, student, teacher=("embedding", teacher))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_is_the_cards_formula(squared, normalize):
    method, batch = made(squared=squared, normalize=normalize), batch_of(lists())
    s, t = outputs(method.student, batch, "embedding"), outputs(method.teacher.module, batch, "embedding")
    wanted = 0.0
    for b in range(6):
        for n in range(5):
            own = s[b, n] / s[b, n].norm() if normalize else s[b, n]
            wanted += (own - t[b, n]).norm() ** (2 if squared else 1) / 30
    torch.testing.assert_close(total(method.terms(batch), method.count(batch)).double(), wanted, rtol=1e-4, atol=1e-5)


def test_plain_texts_are_enough():
    data = retrieval(
        corpus="catalogue", documents=20, queries=10, test_queries=5, negatives=3, context=12, rows="texts"
    )
    student, teacher = network(data, "text", 0, dim=10), network(data, "text", 1, dim=10)
    method, batch = ready(Leaf(), data, student, teacher=("embedding", teacher)), data.train.batch(torch.arange(6))
    s, t = outputs(student, batch, "embedding"), outputs(teacher, batch, "embedding")
    found = total(method.terms(batch), method.count(batch)).double()
    torch.testing.assert_close(found, (s - t).norm(dim=-1).mean(), rtol=1e-4, atol=1e-5)
    assert_cut_free(method, batch)


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut():
    assert_cut_free(made(), batch_of(lists()))


def test_a_student_that_is_its_teacher_has_no_loss_and_a_finite_gradient():
    method, batch = made(), batch_of(lists())
    method.teacher.module.load_state_dict(method.student.state_dict())
    method.teacher.module.normalize = False
    loss = total(method.terms(batch), method.count(batch))
    loss.backward()
    assert float(loss.detach()) < 1e-5
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)


def test_another_dimension_is_refused_before_training():
    with pytest.raises(UserError, match=r"10 dimensions, the teacher's 7: .* student\.dim: 7"):
        made(dim=7)
