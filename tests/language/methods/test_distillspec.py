import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.distillspec import DistillSpec
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=12, test_size=4, digits=1)


def network(data, seed):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data)


def ready(data, **arguments):
    method = DistillSpec(**arguments)
    teacher = Teacher(network(data, 1), {"logits"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(2, 10))
    return method


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_is_one_minus_the_acceptance_rate(data, share):
    """On the text of the step, with the total variation: by the definition sum_x min(p, q) of Leviathan et al."""
    method, batch = ready(data, student_share=share), data.train.batch(torch.arange(4))
    term = method.terms(batch)["kd"]
    rows = method.rows(batch).batch
    p = torch.softmax(method.teacher.module(input_ids=rows["input_ids"]).logits.double(), -1)
    q = torch.softmax(method.student(input_ids=rows["input_ids"]).logits.double(), -1)
    accepted = torch.minimum(p, q).sum(-1)[:, :-1][rows["labels"][:, 1:] != -100]
    assert int(term.count) == len(accepted) > 0
    torch.testing.assert_close(term.sum.double(), (1 - accepted).sum(), rtol=1e-4, atol=1e-6)


def test_the_gradient_raises_what_is_accepted(data):
    method, batch = ready(data, student_share=0.0), data.train.batch(torch.arange(8))
    optimizer = torch.optim.Adam(method.student.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = method.terms(batch)["kd"].sum
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_text_is_the_drafts_own_or_the_targets_as_asked(data):
    batch = data.train.batch(torch.arange(4))
    assert ready(data, student_share=1.0).rows(batch).source == "student"
    assert ready(data, student_share=0.0, teacher_share=1.0).rows(batch).source == "teacher"
    with pytest.raises(UserError, match="at most 1 together"):
        ready(data, student_share=0.7, teacher_share=0.7)
