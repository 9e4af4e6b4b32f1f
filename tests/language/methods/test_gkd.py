import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.language.methods.gkd import GKD
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=12, test_size=4, digits=1)


def network(data, seed):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data)


def ready(data, **arguments):
    method = GKD(**arguments)
    teacher = Teacher(network(data, 1), {"logits"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(2, 10))
    return method


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_is_the_divergence_on_the_rows_of_the_step(data, share):
    method, batch = ready(data, student_share=share, direction="jsd", beta=0.3), data.train.batch(torch.arange(4))
    term = method.terms(batch)["kd"]
    rows = method.rows(batch).batch
    student = method.student(input_ids=rows["input_ids"]).logits.double()
    teacher = method.teacher.module(input_ids=rows["input_ids"]).logits.double()
    wanted, tokens = torch.zeros((), dtype=torch.float64), 0
    for b in range(4):
        for t in range(rows["labels"].shape[1] - 1):
            if rows["labels"][b, t + 1] == -100:
                continue
            q, p = torch.softmax(student[b, t], -1), torch.softmax(teacher[b, t], -1)
            m = 0.3 * p + 0.7 * q
            wanted = wanted + 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum()
            tokens += 1
    assert int(term.count) == tokens == int(method.count(batch)["tokens"])
    torch.testing.assert_close(term.sum.double(), wanted, rtol=1e-4, atol=1e-6)


def test_no_gradient_goes_through_the_sampling(data):
    """The gradient is that of the divergence on the rows, held fixed."""
    method, batch = ready(data, student_share=1.0, direction="reverse"), data.train.batch(torch.arange(4))
    parameters = list(method.student.parameters())
    found = torch.autograd.grad(method.terms(batch)["kd"].sum, parameters, allow_unused=True)
    rows = {k: v.clone() for k, v in method.rows(batch).batch.items() if isinstance(v, torch.Tensor)}
    fixed = GKD(student_share=0.0, direction="reverse")
    fixed.setup(Parts(method.student, dict(method.teachers), data.spec, streams={"data": data.train}))
    fixed.before_step(Clock(2, 10))
    wanted = torch.autograd.grad(fixed.terms({**rows, "view": 0})["kd"].sum, parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_the_text_itself_is_learnt_only_where_asked_and_only_from_the_data(data):
    batch = data.train.batch(torch.arange(4))
    assert set(ready(data, student_share=0.0).terms(batch)) == {"kd"}
    assert set(ready(data, student_share=0.0, data_weight=0.5).terms(batch)) == {"kd", "ce"}
    assert set(ready(data, student_share=1.0, data_weight=0.5).terms(batch)) == {"kd"}
