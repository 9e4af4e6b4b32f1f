import pytest
import torch

from limbeck.data.topics import topics
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.first import HEATS, First
from limbeck.models.causal import causal_lm
from limbeck.truncated import TopK


@pytest.fixture(scope="module")
def data():
    return topics(train_size=20, val_size=40, test_size=10, words=2, topics=3, length=4)


def network(data, seed):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=data.spec.shape[0])


def ready(data, held_out=True, **arguments):
    method = First(**arguments)
    teacher = Teacher(network(data, 1), {"logits"}, "teacher")
    val = {"data": data.val} if held_out else {}
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, held_out=val))
    return method


@pytest.mark.parametrize("normalise", ["linear", "softmax", "bucket"])
def test_the_loss_is_the_cards_formula(data, normalise):
    method = ready(data, k=3, heat=0.4, normalise=normalise, student_heat=0.7)
    batch = data.train.batch(torch.arange(5))
    student = method.student(input_ids=batch["input_ids"]).logits[:, :-1].double().softmax(-1)
    teacher = method.teacher.module(input_ids=batch["input_ids"]).logits[:, :-1].double().softmax(-1)
    wanted = torch.zeros((), dtype=torch.float64)
    for b, t in (batch["labels"][:, 1:] != -100).nonzero().tolist():
        best = teacher[b, t].argsort(descending=True)[:3]
        r = (teacher[b, t][best] / 0.4).softmax(-1)
        q = student[b, t][best]
        own = (q / 0.7).softmax(-1) if normalise == "softmax" else q / q.sum()
        if normalise == "bucket":
            r = torch.cat([r * teacher[b, t][best].sum(), 1 - teacher[b, t][best].sum().reshape(1)])
            own = torch.cat([q, 1 - q.sum().reshape(1)])
        wanted = wanted + (r * (r / own).log()).sum()
    term = method.terms(batch)["kd"]
    torch.testing.assert_close(term.sum.double(), wanted / method.max_len, rtol=1e-4, atol=1e-5)
    assert int(term.count) == 5


def test_the_chosen_heat_has_the_lowest_calibration_error(data):
    """A teacher that gives 0.98 to a token of whom two thirds are right: the heat makes it say about two thirds."""
    method = ready(data, heat=1.0, k=3)
    best = torch.tensor([0.98, 0.01, 0.01]).log()
    right = torch.arange(40) % 3 > 0
    labels = data.val.batch(torch.arange(40))["labels"]

    def kept(signals, own):
        rows, length = signals.logits.shape[0], signals.logits.shape[1] - 1
        ids = torch.arange(3).expand(rows, length, 3).clone()
        answers = labels[:rows, 1:]
        ids[..., 0] = torch.where(right[:, None].expand_as(answers), answers, torch.full_like(answers, 2))
        return TopK(ids, best.expand(rows, length, 3), torch.full((rows, length), -9.0))

    method.kept = kept
    heat = method._best_heat(data.val)
    assert heat in HEATS
    said = float((torch.tensor([0.98, 0.01, 0.01]) / heat).softmax(-1)[0])
    share = float((right[:, None] & (labels[:, 1:] != -100)).sum() / (labels[:, 1:] != -100).sum())
    assert said == pytest.approx(share, abs=0.05)


def test_without_validation_data_a_heat_is_asked_for(data):
    with pytest.raises(UserError, match=r"chooses its heat on validation data.* set method\.heat"):
        ready(data, held_out=False)
    assert ready(data, held_out=False, heat=0.3).says() == []
    assert ready(data, held_out=False, how="smoothing").chosen is None
    assert "lowest calibration error" in ready(data).says()[0]
    with pytest.raises(UserError, match="k must be at least 2"):
        First(k=1)


def test_its_students_best_reply_is_the_recalibrated_teacher_and_the_released_codes_is_not(data):
    """By gradient descent on free logits: what the class says of the two ways to normalise the student."""
    topk = TopK(torch.arange(3), torch.tensor([0.9, 0.06, 0.04]).log(), torch.tensor(-20.0), 1.0, 3)
    ends = {}
    for normalise in ("linear", "softmax"):
        method = First(heat=0.4, k=3, normalise=normalise)
        logits = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            method._compared(logits, topk).backward()
            optimizer.step()
        ends[normalise] = logits.detach().softmax(-1)
    target = (torch.tensor([0.9, 0.06, 0.04]) / 0.4).softmax(-1)
    torch.testing.assert_close(ends["linear"], target, rtol=1e-2, atol=1e-3)
    assert float(ends["softmax"][0]) > float(target[0]) + 0.1
