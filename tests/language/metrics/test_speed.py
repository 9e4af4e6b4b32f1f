import pytest
import torch
from torch import nn

from limbeck.data.text import text
from limbeck.errors import UserError
from limbeck.language.metrics.speed import decoding_speed
from limbeck.metrics.base import Evaluation
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def judged(model, data):
    return Evaluation(model, data.spec, data.test, data.train, None)


def network(data, layers):
    torch.manual_seed(0)
    return causal_lm(
        architecture="llama", hidden=16, layers=layers, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_the_cache_holds_a_key_and_a_value_of_every_layer_for_each_token(data, layers):
    scores = decoding_speed(judged(network(data, layers), data), batch_size=2, repeats=2, seconds=0.1).values
    assert scores["cache_bytes_per_token"] == layers * 2 * 16 * 4
    assert scores["prefill_tokens_s"] > 0 and scores["decode_tokens_s"] > 0


class Counting(nn.Module):
    """Counts the tokens that it reads, and keeps no cache."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.read = vocab, []

    def forward(self, input_ids, attention_mask):
        self.read.append(tuple(input_ids.shape))
        return torch.zeros(*input_ids.shape, self.vocab)


def test_without_a_cache_the_text_is_read_anew_and_no_cache_is_reported(data):
    model = Counting(data.spec.vocab_size)
    scores = decoding_speed(judged(model, data), tokens=4, repeats=1, seconds=0.1)
    assert "cache_bytes_per_token" not in scores.values
    assert model.read[-5:] == [(1, 8), (1, 9), (1, 10), (1, 11), (1, 12)]
    assert scores.details["written_tokens"] == 4


def test_what_is_not_positive_is_refused(data):
    with pytest.raises(UserError, match="positive"):
        decoding_speed(judged(network(data, 1), data), tokens=0)
