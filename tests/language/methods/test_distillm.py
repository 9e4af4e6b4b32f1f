import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.losses import skew_forward_kl, skew_reverse_kl
from limbeck.language.methods.distillm import DistiLLM
from limbeck.models.causal import causal_lm


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=24, test_size=5, val_size=6, digits=1, context=16)


def network(data, seed):
    torch.manual_seed(seed)
    return causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16)


def ready(data, **arguments):
    method = DistiLLM(new_tokens=6, **arguments)
    teacher = Teacher(network(data, 1).eval(), {"logits", "text"}, "teacher")
    streams, offers = {"data": data.train}, {"data": data}
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, offers, streams, quiet=True))
    return method


def laws(method, rows):
    student, teacher = (
        m(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1]
        for m in (method.student, method.teacher.module)
    )
    kept = rows["labels"][:, 1:] != -100
    return torch.log_softmax(teacher.detach(), -1)[kept], torch.log_softmax(student, -1)[kept]


@pytest.mark.parametrize(("direction", "loss"), [("skew_forward", skew_forward_kl), ("skew_reverse", skew_reverse_kl)])
def test_the_loss_is_the_skewed_divergence_on_the_rows_of_the_step(data, direction, loss):
    method, batch = ready(data, direction=direction, skew=0.2), data.train.batch(torch.arange(5))
    method.before_step(Clock(0, 10))
    term = method.terms(batch)["kd"]
    torch.testing.assert_close(term.sum / term.count, loss(*laws(method, batch), 0.2).mean())


def test_the_share_rises_when_the_validation_loss_does(data):
    method = ready(data, student_share=0.2, share_step=0.3, tolerance=0.05, checks=10)
    losses, shares = iter([1.0, 0.8, 0.84, 0.9, 1.5, 1.4, 2.0, 3.0]), []
    method.loss_on = lambda _: next(losses)
    for step in range(8):
        method.before_step(Clock(step, 10))
        shares.append(round(method.share, 6))
    assert shares == [0.2, 0.2, 0.2, 0.5, 0.8, 0.8, 1.0, 1.0]


def test_the_validation_loss_is_the_mean_over_tokens(data):
    method = ready(data)
    rows = data.val.batch(torch.arange(6))
    logits = method.student(input_ids=rows["input_ids"]).logits[:, :-1]
    kept = rows["labels"][:, 1:] != -100
    wanted = torch.nn.functional.cross_entropy(logits[kept], rows["labels"][:, 1:][kept])
    assert method.loss_on(data.val) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_text_is_written_when_fresh_and_drawn_again_when_not(data):
    method = ready(data, student_share=1.0, fresh=1.0)
    wrote = []
    inner = method.written
    method.written = lambda *a, **k: wrote.append(1) or inner(*a, **k)
    batch = data.train.batch(torch.arange(4))
    for step, fresh in enumerate((1.0, 0.0, 0.0)):
        method.fresh = fresh
        method.before_step(Clock(step, 10))
        rows = method.rows(batch).batch["input_ids"]
        method.after_step(Clock(step, 10))
        if step == 0:
            first = {str([t for t in row.tolist() if t]) for row in rows}
    assert len(wrote) == 1 and len(method.replay) == 4
    assert {str([t for t in row.tolist() if t]) for row in rows} <= first


def test_the_share_and_the_buffer_survive_a_resume(data):
    method, again = ready(data, student_share=1.0), ready(data, student_share=1.0)
    method.before_step(Clock(0, 10))
    method.rows(data.train.batch(torch.arange(4)))
    method.after_step(Clock(0, 10))
    method.raised = 0.4
    again.load_state_dict(method.state_dict())
    assert (again.raised, again.seen, len(again.replay)) == (0.4, method.seen, 4)


def test_the_second_version_weighs_both_texts(data):
    method = ready(data, contrastive=True, balance=0.3, skew=0.1)
    method.before_step(Clock(0, 10))
    batch = data.train.batch(torch.arange(5))
    theirs, own = method.both(batch)
    terms, counts = method.terms(batch), method.count(batch)
    assert {name: t.weight for name, t in terms.items()} == {"teacher_text": 0.7, "student_text": 0.3}
    for name, rows, loss in (("teacher_text", theirs, skew_forward_kl), ("student_text", own, skew_reverse_kl)):
        assert int(terms[name].count) == int(counts[terms[name].unit])
        torch.testing.assert_close(terms[name].sum / terms[name].count, loss(*laws(method, rows), 0.1).mean())
    assert not torch.equal(theirs["input_ids"], own["input_ids"])


def test_without_validation_rows_it_says_what_would_be_right():
    bare = arithmetic(train_size=24, test_size=5, digits=1, context=16)
    with pytest.raises(UserError, match="share_step to 0"):
        ready(bare)
    ready(bare, share_step=0.0)
