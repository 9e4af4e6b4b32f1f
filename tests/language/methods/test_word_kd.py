import pytest
import torch
from torch import nn

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.word_kd import WordKD
from limbeck.models.causal import causal_lm
from limbeck.models.forward import Signals
from limbeck.truncated import topk_of


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def network(data, seed, extra=0):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size + extra, context=16)


def ready(data, extra=0, **arguments):
    method = WordKD(**arguments)
    teacher = Teacher(network(data, 1, extra), {"logits"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec))
    return method


def batch_of(data, rows=6):
    batch = data.train.batch(torch.arange(rows))
    batch["labels"][0, 3:] = -100
    batch["labels"][1] = -100
    return batch


def total(terms, counts):
    return sum(t.weight * t.sum / counts[t.unit] for t in terms.values())


def test_the_loss_is_the_cards_formula(data):
    method, batch = ready(data, alpha=0.7, temperature=2.0), batch_of(data, rows=3)
    loss = total(method.terms(batch), method.count(batch))
    student = method.student(input_ids=batch["input_ids"]).logits.double()
    teacher = method.teacher.module(input_ids=batch["input_ids"]).logits.double()
    wanted, tokens = torch.zeros((), dtype=torch.float64), 0
    for b in range(3):
        for t in range(15):
            label = batch["labels"][b, t + 1]
            if label == -100:
                continue
            q, p = torch.softmax(student[b, t] / 2, -1), torch.softmax(teacher[b, t] / 2, -1)
            kd = 4 * (p * (p.log() - q.log())).sum()
            wanted = wanted + 0.3 * -torch.log_softmax(student[b, t], -1)[label] + 0.7 * kd
            tokens += 1
    torch.testing.assert_close(loss.double(), wanted / tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "max_len"])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(data, reduction):
    method, batch = ready(data, reduction=reduction), batch_of(data)
    counts = method.count(batch)
    tensors = {k: v for k, v in batch.items() if k != "view"}

    def gradient(cuts):
        method.student.zero_grad()
        for rows in torch.arange(6).split(cuts):
            total(method.terms({**{k: v[rows] for k, v in tensors.items()}, "view": 0}), counts).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters()])

    whole = gradient(6)
    for cuts in (1, 4):
        torch.testing.assert_close(gradient(cuts), whole, rtol=1e-4, atol=1e-7)
    units = {t.unit: int(t.count) for t in method.terms(batch).values()}
    assert all(int(counts[unit]) == count for unit, count in units.items())


def test_padding_changes_nothing(data):
    method, batch = ready(data), data.train.batch(torch.arange(2))
    short = {k: v[:, :10] if getattr(v, "ndim", 0) == 2 else v for k, v in batch.items()}
    padded = {k: v.clone() if hasattr(v, "clone") else v for k, v in batch.items()}
    padded["attention_mask"][:, 10:], padded["labels"][:, 10:] = 0, -100
    values = [total(method.terms(b), method.count(b)) for b in (short, padded)]
    torch.testing.assert_close(*values)


def test_a_teacher_that_is_the_student_gives_the_gradient_of_the_text_alone(data):
    method, batch = ready(data, alpha=0.5), batch_of(data)
    method.teacher.module.load_state_dict(method.student.state_dict())
    terms = method.terms(batch)
    assert abs(float(terms["kd"].sum.detach())) < 1e-3
    method.student.zero_grad()
    terms["kd"].sum.backward()
    assert max(p.grad.abs().max() for p in method.student.parameters()) < 1e-4


def test_alpha_decides_which_terms_there_are_and_can_be_scheduled(data):
    method, batch = ready(data), batch_of(data)
    seen = []
    for method.alpha in (0.0, 0.5, 1.0):
        (update,) = method.updates(batch, Clock(0, 1))
        seen.append({name: term.weight for name, term in update.terms.items()})
    assert seen == [{"ce": 1.0}, {"ce": 0.5, "kd": 0.5}, {"kd": 1.0}]


@pytest.mark.parametrize("direction", ["forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd"])
def test_every_direction_brings_the_student_to_the_teacher(data, direction):
    method, batch = ready(data, alpha=1.0, direction=direction), batch_of(data)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = total(method.terms(batch), method.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_padded_teacher_is_the_same_as_the_teacher_without_its_padding(data):
    plain, padded, batch = ready(data), ready(data, extra=9), batch_of(data)
    v = data.spec.vocab_size
    cut = {k: x[:v] if x.shape[:1] == (v + 9,) else x for k, x in padded.teacher.module.state_dict().items()}
    plain.teacher.module.load_state_dict(cut)
    torch.testing.assert_close(plain.terms(batch)["kd"].sum, padded.terms(batch)["kd"].sum)


def test_a_teacher_with_another_tokenizer_is_refused_before_training(data):
    teacher = network(data, 1)
    teacher.tokenizer_hash = "ffffffffffffffff"
    with pytest.raises(UserError, match=rf"different tokenizers \({data.spec.tokenizer_hash} .* ffffffffffffffff"):
        WordKD().setup(Parts(network(data, 0), {"teacher": Teacher(teacher, {"logits"}, "teacher")}, data.spec))


class Stored(nn.Module):
    """Stands for a cache: the teacher's k likeliest tokens."""

    def __init__(self, teacher, k, temperature):
        super().__init__()
        self.inner, self.k, self.temperature = teacher, k, temperature

    def __call__(self, batch):
        logits = self.inner(input_ids=batch["input_ids"]).logits.detach()
        return Signals(logits_topk=topk_of(logits, self.k, self.temperature))


@pytest.mark.parametrize("direction", ["forward", "reverse", "tvd", "jsd"])
def test_a_stored_teacher_of_all_tokens_is_the_live_teacher(data, direction):
    method, batch = ready(data, direction=direction, temperature=2.0), batch_of(data)
    live = method.terms(batch)["kd"]
    method.teachers["teacher"] = Stored(method.teacher.module, data.spec.vocab_size, 2.0)
    stored = method.terms(batch)["kd"]
    torch.testing.assert_close(stored.sum, live.sum, rtol=1e-4, atol=1e-5)
    assert int(stored.count) == int(live.count)


def test_what_a_stored_teacher_cannot_do_is_refused(data):
    method, batch = ready(data, temperature=2.0), batch_of(data)
    method.teachers["teacher"] = Stored(method.teacher.module, 4, 1.0)
    with pytest.raises(UserError, match="cut at temperature 1, not 2"):
        method.terms(batch)
    wide = ready(data, extra=3)
    wide.teachers["teacher"] = Stored(wide.teacher.module, 4, 1.0)
    with pytest.raises(UserError, match="store it at the student's width"):
        wide.terms(batch)


def test_pictures_are_refused():
    from limbeck.data.base import DataSpec

    teacher = Teacher(nn.Linear(2, 2), {"logits"}, "teacher")
    with pytest.raises(UserError, match="learns from text"):
        WordKD().setup(Parts(nn.Linear(2, 2), {"teacher": teacher}, DataSpec(shape=(1, 8, 8), classes=2)))
