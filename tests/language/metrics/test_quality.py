import json
import math

import pytest
import torch
from torch import nn

from limbeck.data.text import text
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.metrics.quality import perplexity
from limbeck.language.metrics.texts import sample_texts
from limbeck.metrics.base import Evaluation, evaluate
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16, test_fraction=0.2)


class Unigram(nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(logits)

    def forward(self, input_ids, attention_mask):
        return self.table.expand(*input_ids.shape, -1)


def network(data, seed=0, extra=0):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size + extra, context=16)


def judged(model, data, teacher=None, **changes):
    taught = Teacher(teacher, {"logits"}, "teacher") if teacher is not None else None
    return Evaluation(model, data.spec, data.test, data.train, taught, **changes)


def test_the_loss_of_a_uniform_model_is_the_log_of_the_vocabulary(data):
    scores = perplexity(judged(Unigram(torch.zeros(data.spec.vocab_size)), data))
    assert scores.values["perplexity"] == pytest.approx(data.spec.vocab_size)
    assert scores.values["bits_per_token"] == pytest.approx(math.log2(data.spec.vocab_size))
    assert scores.values["bits_per_character"] == pytest.approx(scores.values["bits_per_token"])
    assert scores.details["test_tokens"] == 15 * len(data.test)
    assert len(scores.details["nll_by_position"]) == 15
    assert "agreement" not in scores.values


def test_every_value_is_that_of_one_pass_over_everything_at_once(data):
    model, teacher = network(data), network(data, 1)
    scores = perplexity(judged(model, data, teacher, batch_size=7))
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        log_q, log_p = (
            torch.log_softmax(m.eval()(input_ids=batch["input_ids"]).logits[:, :-1].double(), -1)
            for m in (model, teacher)
        )
    nll = -log_q.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    assert scores.values["nll_per_token"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert scores.values["perplexity"] == pytest.approx(float(nll.mean().exp()), rel=1e-6)
    assert scores.details["nll_by_position"] == pytest.approx(nll.mean(0).tolist(), rel=1e-6)
    assert scores.values["teacher_kl"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-4)
    assert scores.values["agreement"] == pytest.approx(float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean()))


def test_only_the_answers_are_judged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": "ab", "a": a}) + "\n" for a in ("c", "cc", "ccccc")))
    data = text(path=path, prompt_field="q", completion_field="a", context=10, val_fraction=0.0, test_path=path)
    logits = torch.full((data.spec.vocab_size,), 0.0)
    scores = perplexity(judged(Unigram(logits), data))
    assert scores.details["test_tokens"] == 2 + 3 + 6
    assert scores.details["nll_by_position"][0] is None and scores.details["nll_by_position"][-1] is None
    assert json.dumps(scores.details)


def test_a_teacher_with_a_padded_vocabulary_is_compared_on_the_shared_one(data):
    teacher = network(data, 1, extra=7)
    alike = network(data, 1)
    alike.load_state_dict({k: v[: data.spec.vocab_size] if v.shape[:1] == (data.spec.vocab_size + 7,) else v
                           for k, v in teacher.state_dict().items()})  # fmt: skip
    scores = perplexity(judged(alike, data, teacher))
    assert scores.values["teacher_kl"] == pytest.approx(0, abs=1e-6) and scores.values["agreement"] == 1.0


def test_a_teacher_with_another_tokenizer_is_refused(data):
    model, teacher = network(data), network(data, 1)
    model.tokenizer_hash, teacher.tokenizer_hash = "aaaa", "bbbb"
    with pytest.raises(UserError, match="different tokenizers"):
        perplexity(judged(model, data, teacher))


def test_a_loss_that_is_not_finite_is_an_error_not_a_number(data):
    with pytest.raises(UserError, match="not finite"):
        perplexity(judged(Unigram(torch.full((data.spec.vocab_size,), math.nan)), data))


def test_texts_can_be_read_and_repeat_for_a_seed(data):
    model = network(data)
    texts = sample_texts(judged(model, data), samples=2, tokens=20).details["texts"]
    words = data.extra["tokenizer"]
    first = words.decode(data.test.batch(torch.tensor([0]))["input_ids"][0])
    assert texts[0]["prompt"] + texts[0]["truth"] == first
    assert len(texts) == 2 and set(texts[0]) == {"prompt", "truth", "greedy", "sampled"}
    assert sample_texts(judged(model, data), samples=2, tokens=20).details["texts"] == texts
    other = sample_texts(judged(model, data, seed=1), samples=2, tokens=20).details["texts"]
    assert other[0]["greedy"] == texts[0]["greedy"] and other[0]["sampled"] != texts[0]["sampled"]


def test_judging_leaves_the_mode_of_the_model(data):
    model = network(data).train()
    evaluate(judged(model, data))
    assert all(m.training for m in model.modules())


def test_both_metrics_are_the_defaults_of_language(data):
    scores = evaluate(judged(network(data), data))
    assert {"perplexity", "bits_per_token"} <= set(scores.values) and "texts" in scores.details
