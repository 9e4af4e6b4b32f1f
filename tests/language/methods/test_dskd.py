import pytest
import torch
from torch import nn

from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.dskd import DSKD, attention, head_of
from toolkit.tokens import gradient, padded, reading, ready, rows_of, terms_of


def kl(p, q):
    p, q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def test_the_loss_is_the_cards_formula():
    method, batch = ready(DSKD(rate=0.4), "bpe"), rows_of(count=3)
    ours = method.student(input_ids=batch["input_ids"], output_hidden_states=True)
    theirs = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    maps = method.learners["projectors"]
    p_ts = maps["to_student"](theirs.hidden_states[-1]) @ method.student.lm_head.weight.T
    q_st = maps["to_teacher"](ours.hidden_states[-1]) @ method.teacher.module.lm_head.weight.T
    mask, labels = batch["labels"][:, 1:] != -100, batch["labels"][:, 1:]
    gold = labels[mask][:, None]
    wanted = {
        "ce": -torch.log_softmax(ours.logits[:, :-1][mask].double(), -1).gather(-1, gold).mean(),
        "student_space": kl(p_ts[:, :-1][mask], ours.logits[:, :-1][mask]).mean(),
        "projected": -torch.log_softmax(p_ts[:, :-1][mask].double(), -1).gather(-1, gold).mean(),
        "teacher_space": kl(theirs.logits[:, :-1][mask], q_st[:, :-1][mask]).mean(),
    }
    terms = terms_of(method, batch)
    for name, value in wanted.items():
        torch.testing.assert_close((terms[name].sum / terms[name].count).double(), value, rtol=1e-4, atol=1e-6)
        assert terms[name].weight == pytest.approx(0.6 if name == "ce" else 0.4)


def test_who_learns_from_which_term():
    method, batch = ready(DSKD(), "char"), rows_of()

    def moved(term):
        for module in (*method.learners.values(), method.teacher.module):
            module.zero_grad()
        terms_of(method, batch)[term].sum.backward()
        found = {f"{r}.{n}": p for r, m in method.learners.items() for n, p in m.named_parameters()}
        return {n for n, p in found.items() if p.grad is not None and p.grad.abs().max() > 0}

    assert all(n.startswith("student.") for n in moved("student_space")), "the target is held still"
    assert moved("projected") == {
        f"projectors.{n}" for n in ("to_student.weight", "to_student.bias", "query.weight", "query.bias")
    }
    assert {"projectors.to_teacher.weight", "student.model.embed_tokens.weight"} <= moved("teacher_space")
    assert all(p.grad is None for p in method.teacher.module.parameters())


@pytest.mark.parametrize("teacher", ["char", "bpe"])
@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean"])
def test_neither_cutting_nor_padding_changes_the_gradient(teacher, reduction):
    method, batch = ready(DSKD(reduction=reduction), teacher), rows_of()
    whole = gradient(method, batch, 6)
    for other, size in ((batch, 1), (batch, 4), (padded(batch), 6)):
        torch.testing.assert_close(gradient(method, other, size), whole, rtol=1e-4, atol=1e-6)
    counts = method.count(batch)
    assert all(int(counts[t.unit]) == int(t.count) for t in terms_of(method, batch).values())


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nothing_looks_ahead(side):
    """A later token changes no target before it: else the target would know what it is to predict."""
    method, batch = ready(DSKD(), "char"), rows_of(count=2)
    batch["labels"][:] = batch["input_ids"]

    def projected():
        crossing = method.cross(batch)
        own = method.student(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1]
        other = method.asked(crossing, output_hidden_states=True).hidden_states[-1]
        return method.moved(batch, crossing, own, other)[0 if side == "student" else 1].detach(), crossing

    before, crossing = projected()
    words = reading("bpe").extra["tokenizer"]
    batch["input_ids"][:, 9] = words.convert_tokens_to_ids("q")
    batch["labels"][:, 9] = batch["input_ids"][:, 9]
    after, _ = projected()
    read = crossing.student_read if side == "student" else crossing.teacher_read
    for b in range(2):
        early = read[b] <= crossing.student_read[b, 8]
        early &= (read[b] > 0) if side == "teacher" else torch.ones_like(early)
        width = min(before.shape[1], after.shape[1])
        kept = early[:width].nonzero()[:, 0]
        assert len(kept) > 5
        torch.testing.assert_close(before[b, kept], after[b, kept])
        assert not torch.allclose(before[b, 11:width], after[b, 11:width])


def test_attention_sees_what_has_been_read():
    read, theirs = torch.tensor([[2, 4, 0]]), torch.tensor([[1, 2, 3, 4]])
    asking = {"attention_mask": torch.tensor([[1, 1, 0]])}
    weights = attention(torch.zeros(1, 3, 4), asking, {"attention_mask": torch.ones(1, 4)}, read, theirs)
    assert weights[0].tolist() == [[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [0.0] * 4]


def test_training_brings_the_spaces_together():
    method, batch = ready(DSKD(rate=1.0), "char"), rows_of()
    assert set(terms_of(method, batch)) == {"student_space", "projected", "teacher_space"}
    parameters = [p for m in method.learners.values() for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    seen = []
    for _ in range(25):
        values = {name: t.sum / t.count for name, t in terms_of(method, batch).items()}
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
        seen.append({name: float(value.detach()) for name, value in values.items()})
    # The target of the student's space sharpens while it is learnt, so that its distance need not fall from the start.
    for name in ("projected", "teacher_space"):
        assert seen[-1][name] < 0.9 * seen[0][name]


def test_the_student_is_delivered_without_projectors():
    method = ready(DSKD(), "char")
    (update,) = method.updates(rows_of(), Clock(0, 1))
    assert update.roles == ("student", "projectors")
    assert not any("query" in name for name, _ in method.student.named_parameters())


def test_a_model_that_does_not_say_its_head_is_refused():
    data = reading("bpe")
    with pytest.raises(UserError, match="does not say which layer gives its logits"):
        DSKD().setup(Parts(nn.Linear(2, 2), {"teacher": Teacher(nn.Linear(2, 2), {"logits"}, "teacher")}, data.spec))
    assert isinstance(head_of(ready(DSKD(), "bpe").student), nn.Linear)
