import pytest
import torch

from limbeck.data.base import DataSpec
from limbeck.data.text import TokenRows
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.language.losses import generalised_jsd
from limbeck.language.methods.seq_f_distill import SeqFDistill, jsd_halves
from limbeck.language.rollouts import Rollout
from toolkit.enumerated import N, TableLM, V, given, gradient, logprobs, ready, texts

SUMS = {"reduction": "max_len", "max_len": 1}


class Words:
    pad_token_id = eos_token_id = None


def source():
    rows = torch.zeros(4, 1 + N, dtype=torch.int32)
    spec = DataSpec("language", (1 + N,), vocab_size=V)
    labels = rows.clone()
    labels[:, 0] = -100
    return TokenRows(rows, labels, torch.ones_like(rows).bool(), torch.arange(4), spec, Words())


def made(f, **arguments):
    models = TableLM(0), TableLM(1)
    method = ready(SeqFDistill(f=f, keep=None, new_tokens=N, **SUMS, **arguments), *models, streams={"data": source()})
    return method, *models


def expected(method, laws):
    """Gradient in expectation of the terms, each over the law of those who wrote its text."""
    rows, total = texts(), 0.0
    method.responses.rows = lambda batch, _: Rollout(batch, torch.zeros_like(batch["input_ids"]).double(), "teacher")
    for i, row in enumerate(rows.split(1)):
        for name, term in method.terms(given(method, row, number=i)).items():
            total = total + float(laws[name][i]) * gradient(term.sum / term.count, method.student)
    return total


def pieces(student, teacher):
    rows = texts()
    p, q = (torch.log_softmax(m(rows[:, :-1]), -1) for m in (teacher, student))
    laws = {"teacher": logprobs(teacher, rows).sum(1).exp().detach(), "student": logprobs(student, rows).sum(1).exp()}
    return rows, p.detach(), q, {k: v.detach() for k, v in laws.items()}


def test_kl_is_that_of_whole_texts():
    method, student, teacher = made("kl")
    rows, _, _, laws = pieces(student, teacher)
    own, theirs = (logprobs(m, rows).sum(1) for m in (student, teacher))
    wanted = gradient((theirs.exp() * (theirs - own)).sum(), student)
    torch.testing.assert_close(expected(method, laws), wanted)


@pytest.mark.parametrize("f", ["reverse_kl", "js", "tvd"])
def test_every_half_is_on_its_own_text(f):
    method, student, teacher = made(f, beta=0.3)
    _, p, q, laws = pieces(student, teacher)
    m = torch.log(0.3 * p.exp() + 0.7 * q.exp())
    values = {
        "reverse_kl": {"student": (q.exp() * (q - p)).sum(-1)},
        "js": {"teacher": 0.3 * (p.exp() * (p - m)).sum(-1), "student": 0.7 * (q.exp() * (q - m)).sum(-1)},
        "tvd": {
            "teacher": 0.3 * 0.5 * (p.exp() - q.exp()).abs().sum(-1),
            "student": 0.7 * 0.5 * (p.exp() - q.exp()).abs().sum(-1),
        },
    }[f]
    wanted = gradient(sum((laws[k][:, None] * v).sum() for k, v in values.items()), student)
    torch.testing.assert_close(expected(method, laws), wanted)


def test_the_halves_add_up_to_the_divergence():
    p, q = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1)
    p[0, 0] = -torch.inf
    p = p.log_softmax(-1)
    left, right = jsd_halves(p, q, 0.3)
    torch.testing.assert_close(left + right, generalised_jsd(p, q, 0.3))
    with pytest.raises(ValueError, match="beta"):
        jsd_halves(p, q, 1.0)


def test_counts_are_of_the_rows_that_each_term_is_on():
    method, _, _ = made("js", per_prompt=2)
    method.before_step(Clock(0, 4))
    batch = source().batch(torch.arange(4))
    counts = method.count(batch)
    for term in method.terms(batch).values():
        assert int(counts[term.unit]) == int(term.count)


def test_a_half_of_nothing_is_refused():
    with pytest.raises(UserError, match="beta must be inside"):
        made("js", beta=1.0)
