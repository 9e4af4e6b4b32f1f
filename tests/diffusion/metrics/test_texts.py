"""The judge that counts, and what it says of generated texts."""

from __future__ import annotations

import math

import pytest

from limbeck.diffusion.metrics.texts import CountingJudge, entropy, text_judge
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import Block, build

TEXT = {"corpus": "grammar", "tokenizer": "char", "characters": 2000, "context": 12}


def test_probabilities_sum_to_one_and_are_the_formula():
    judge = CountingJudge([[0, 1, 0, 1, 2], [0, 1, 1, 0, 2]], 3, order=2)
    for context in ((), (0,), (1, 0), (2, 2)):
        assert sum(judge.probability(context, x) for x in range(3)) == pytest.approx(1)
    # By hand: 10 tokens, of which 4 are 1; after 0 come 1, 1, 1, 2.
    none = (4 + 3 / 3) / (10 + 3)
    assert judge.probability((), 1) == pytest.approx(none)
    assert judge.probability((0,), 1) == pytest.approx((3 + 2 * none) / (4 + 2))
    # After 1 0 come 1 and 2, once each.
    assert judge.probability((1, 0), 1) == pytest.approx((1 + 2 * judge.probability((0,), 1)) / (2 + 2))


def test_the_nll_is_that_of_its_tokens_one_after_another():
    judge = CountingJudge([[0, 1, 0, 1, 2]], 3, order=3)
    row = [0, 1, 2]
    expected = -sum(math.log(judge.probability(row[:i], x)) for i, x in enumerate(row)) / 3
    assert judge.nll(row) == pytest.approx(expected)
    assert judge.nll([0, 1, 0, 1]) < judge.nll([2, 2, 2, 2])


def test_the_entropy_is_of_the_tokens_within_a_text():
    assert entropy([1, 1, 1]) == 0
    assert entropy([0, 1, 0, 1]) == pytest.approx(math.log(2))


@pytest.fixture(scope="module")
def data():
    return Block("text", TEXT)


def network(data, **more):
    words = {"vocab_size": build("data", data).spec.vocab_size, "context": 12, **more}
    return Block("masked_transformer", {"width": 8, "layers": 1, "heads": 2, **words})


def test_a_network_and_its_sampler_are_judged_with_the_calls_that_they_take(data):
    plain = network(data)
    sampler = Block("discrete_sampler", {"net": plain, "steps": 3})
    for block, calls in ((plain, 12), (sampler, 3)):
        found = text_judge(Evaluation(build("model", block).eval()), data=data, samples=5)
        assert found.values["text_nfe"] == calls
        assert 0 < found.values["text_nll"] < 20 and len(found.details["texts"]) > 0


def test_text_of_other_tokens_is_refused(data):
    with pytest.raises(UserError, match="7 tokens"):
        text_judge(Evaluation(build("model", network(data, vocab_size=7))), data=data)
