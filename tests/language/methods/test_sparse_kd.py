import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.sparse_kd import SparseKD
from limbeck.models.causal import causal_lm
from limbeck.models.forward import Signals
from limbeck.truncated import sampled_of, topk_of


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=10)


def network(data, seed, extra=0):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size + extra, context=10)


def ready(data, extra=0, **arguments):
    method = SparseKD(**arguments)
    teacher = Teacher(network(data, 1, extra), {"logits"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec))
    return method


def batch_of(data, rows=4):
    batch = data.train.batch(torch.arange(rows))
    batch["labels"][0, 3:] = -100
    return batch


def both(method, batch):
    student = method.student(input_ids=batch["input_ids"]).logits[:, :-1].double()
    teacher = method.teacher.module(input_ids=batch["input_ids"]).logits[:, :-1].double()
    return student, teacher, batch["labels"][:, 1:]


@pytest.mark.parametrize("mode", ["tail", "renormalise", "naive"])
def test_the_loss_is_the_cards_formula(data, mode):
    method, batch = ready(data, mode=mode, k=3, alpha=0.7, temperature=2.0), batch_of(data)
    terms, (student, teacher, labels) = method.terms(batch), both(method, batch)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    wanted = torch.zeros((), dtype=torch.float64)
    for b, t in (labels != -100).nonzero().tolist():
        best = p[b, t].argsort(descending=True)[:3]
        top, own = p[b, t][best], q[b, t][best]
        target = top / top.sum() if mode == "renormalise" else top
        value = (target * (target / own).log()).sum()
        if mode == "tail":
            value = value + (1 - top.sum()) * ((1 - top.sum()) / (1 - own.sum())).log()
        wanted = wanted + 4 * value
    torch.testing.assert_close(terms["kd"].sum.double(), wanted, rtol=1e-4, atol=1e-4)
    assert (terms["ce"].weight, terms["kd"].weight) == (pytest.approx(0.3), 0.7)


def test_draws_follow_the_row_and_the_step(data):
    method, batch = ready(data, draws=5), batch_of(data)

    def loss(rows, step):
        part = {k: v[rows] if k != "view" else v for k, v in batch.items()}
        (update,) = method.updates(part, Clock(step=step, total=10, seed=0))
        return float(update.terms["kd"].sum.detach())

    every = torch.arange(4)
    assert loss(every, 3) == pytest.approx(loss(every[:1], 3) + loss(every[1:], 3), rel=1e-5)
    assert loss(every, 3) != loss(every, 4)


def test_the_mean_gradient_over_draws_is_the_whole_one(data):
    method, batch = ready(data, draws=40), batch_of(data)

    def gradient(terms):
        method.student.zero_grad()
        terms["kd"].sum.backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters()]).double()

    generator = torch.Generator().manual_seed(0)
    found = torch.stack([gradient(method.terms(batch, torch.rand(4, 9, 40, generator=generator))) for _ in range(60)])
    whole = gradient(ready_like(method, data, mode="tail", k=1000).terms(batch))
    error = found.std(0) / 60**0.5
    # Of thousands of weights a few lie beyond any bound: what counts is that together they lie as chance would have it.
    z = ((found.mean(0) - whole) / error)[error > 1e-9]
    assert 0.8 < float(z.square().mean()) < 1.25
    biased = gradient(ready_like(method, data, mode="renormalise", k=3).terms(batch))
    assert float(((biased - whole) / error)[error > 1e-9].square().mean()) > 4


def ready_like(method, data, **arguments):
    other = SparseKD(**arguments)
    other.setup(Parts(method.student, {"teacher": method.teacher}, data.spec))
    return other


class Stored:
    def __init__(self, **signals):
        self.signals = Signals(**signals)

    def serve(self, batch):
        return self.signals


def test_stored_tokens_give_what_the_teacher_gives(data):
    batch = batch_of(data)
    for mode in ("tail", "sampled"):
        method = ready(data, mode=mode, k=4, draws=6)
        draws = torch.rand(4, 10, 6, generator=torch.Generator().manual_seed(1))
        live = method.terms(batch, draws[:, :-1])["kd"].sum
        logits = method.teacher.compute(batch).logits
        method.teacher.stored = Stored(logits_sampled=sampled_of(logits, draws))
        if mode == "tail":
            method.teacher.stored = Stored(logits_topk=topk_of(logits, 7))
        torch.testing.assert_close(method.terms(batch)["kd"].sum, live)


def test_padding_of_the_teachers_vocabulary_changes_nothing(data):
    method, batch = ready(data, extra=8, mode="tail", k=1000), batch_of(data)
    student, teacher, labels = both(method, batch)
    p = teacher[..., : data.spec.vocab_size].softmax(-1)
    kl = (p * (p.log() - student.log_softmax(-1))).sum(-1)[labels != -100].sum()
    torch.testing.assert_close(method.terms(batch)["kd"].sum.double(), kl, rtol=1e-4, atol=1e-4)


def test_a_store_of_another_mode_and_numbers_out_of_range_are_refused(data):
    method, batch = ready(data, mode="sampled"), batch_of(data)
    method.teacher.stored = Stored(logits_topk=topk_of(method.teacher.compute(batch).logits, 4))
    with pytest.raises(UserError, match=r"finds likeliest tokens of the teacher: set cache.mode to sampled"):
        method.terms(batch, torch.rand(4, 9, 50))
    with pytest.raises(UserError, match="k and draws"):
        SparseKD(k=0)
    with pytest.raises(UserError, match="proposal"):
        SparseKD(proposal=-1.0)
