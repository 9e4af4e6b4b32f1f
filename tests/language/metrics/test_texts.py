import math

import pytest
import torch
from torch import nn

from limbeck.data.arithmetic import arithmetic
from limbeck.data.text import text
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.metrics.texts import exact_match, final_number, own_text
from limbeck.metrics.base import Evaluation
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def network(data, seed=0):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data).eval()


def judged(model, data, teacher=None):
    taught = None if teacher is None else Teacher(teacher, {"logits"}, "teacher")
    return Evaluation(model, data.spec, data.test, data.train, taught)


# -- exact match -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7+8=15 3+4+1=8 =85", 85.0),
        ("so he has 3. #### 1,200", 1200.0),
        ("it is -2.5 degrees", -2.5),
        ("none at all", None),
    ],
)
def test_the_answer_is_the_last_number(text, number):
    assert final_number(text) == number


class Reciter(nn.Module):
    """Knows some rows by heart and says their tokens; after anything else it says zeros."""

    def __init__(self, rows, vocab):
        super().__init__()
        self.rows, self.vocab = [r.tolist() for r in rows], vocab

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, self.vocab)
        for b, row in enumerate(input_ids.tolist()):
            for t in range(len(row)):
                known = next((r for r in self.rows if r[: t + 1] == row[: t + 1] and t + 1 < len(r)), None)
                logits[b, t, known[t + 1] if known else 3] = 9.0
        return logits


def test_exact_match_is_the_share_of_prompts_that_are_answered_rightly():
    data = arithmetic(train_size=4, test_size=6, digits=1)
    known = data.test.batch(torch.arange(4))["input_ids"]
    model = Reciter(known, data.spec.vocab_size)
    scores = exact_match(Evaluation(model, data.spec, data.test, data.train, None), samples=6)
    assert scores.values["exact_match"] == pytest.approx(4 / 6)


def test_exact_match_wants_answers(data):
    with pytest.raises(UserError, match="no number"):
        exact_match(judged(network(data), data), samples=2)


# -- its own text ------------------------------------------------------------------------------------------------------


class Law(nn.Module):
    """The same distribution after anything."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask):
        return self.logits.expand(*input_ids.shape, -1)


def test_of_laws_without_memory_everything_is_known(data):
    torch.manual_seed(0)
    p, q = (torch.randn(data.spec.vocab_size) for _ in range(2))
    q[1] = p[1] = -math.inf  # no text ends early
    scores = own_text(judged(Law(q), data, Law(p)), samples=20, tokens=8)
    log_p, log_q = (torch.log_softmax(x.double(), 0) for x in (p, q))
    seen = torch.isfinite(log_p)
    kl = float((log_p.exp() * (log_p - log_q))[seen].sum())
    reverse = float((log_q.exp() * (log_q - log_p))[seen].sum())
    assert scores.values["own_kl"] == pytest.approx(kl, rel=1e-4)
    assert scores.values["own_reverse_kl"] == pytest.approx(reverse, rel=1e-4)
    assert scores.details["own_tokens"] == 20 * 8
    # The teacher's surprise at text drawn from q is the cross-entropy, but for chance.
    wanted = float(-(log_q.exp() * log_p)[seen].sum())
    assert math.log(scores.values["own_perplexity"]) == pytest.approx(wanted, abs=0.4)


def test_a_model_is_no_way_off_itself_and_repetition_is_seen(data):
    model = network(data)
    scores = own_text(judged(model, data, model), samples=8, tokens=8)
    assert abs(scores.values["own_kl"]) < 1e-6
    one = torch.full((data.spec.vocab_size,), -30.0)
    one[5] = 30.0
    assert own_text(judged(Law(one), data, Law(one)), samples=4, tokens=8).values["distinct"] == pytest.approx(1 / 20)


def test_without_a_teacher_there_is_only_the_text(data):
    assert set(own_text(judged(network(data), data), samples=4).values) == {"distinct"}
