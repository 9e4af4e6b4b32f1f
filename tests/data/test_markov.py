import math

import pytest
import torch

from limbeck.data.markov import Chain, markov
from limbeck.errors import UserError
from limbeck.language.models.markov_oracle import markov_oracle

SMALL = {"symbols": 4, "order": 2, "context": 12, "end": 0.1, "train_size": 3000, "test_size": 5}


@pytest.fixture(scope="module")
def data():
    return markov(**SMALL)


def test_the_table_is_a_law_with_the_chance_to_end():
    table = Chain(5, 3, 1.5, 0.07, 1).table().double().exp()
    assert table.shape == (125, 5)
    torch.testing.assert_close(table.sum(1), torch.ones(125, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table[:, 0], torch.full((125,), 0.07, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert not torch.equal(table, Chain(5, 3, 1.5, 0.07, 2).table().double().exp())


def test_states_are_the_last_symbols_by_loops():
    chain, tokens = Chain(4, 3, 1.0, 0.1, 0), torch.tensor([[1, 2, 3, 0, 1]])
    wanted = []
    for t in range(5):
        last = [0, 0, 0, *tokens[0, : t + 1].tolist()][-3:]
        wanted.append(last[0] * 16 + last[1] * 4 + last[2])
    assert chain.states(tokens)[0].tolist() == wanted


def test_texts_follow_the_law(data):
    rows = data.train.batch(torch.arange(3000))
    tokens, labels = rows["input_ids"], rows["labels"]
    chain = data.extra["chain"]
    state, after = chain.states(tokens)[:, :-1], labels[:, 1:]
    table = chain.table().exp()
    for s in (1, 5, 6, 11):
        seen = after[(state == s) & (after >= 0)]
        share = torch.bincount(seen, minlength=4) / len(seen)
        spread = (table[s] * (1 - table[s]) / len(seen)).sqrt()
        assert ((share - table[s]).abs() < 5 * spread + 1e-3).all(), s


def test_a_text_ends_with_its_first_end_and_is_not_learnt_beyond(data):
    rows = data.train.batch(torch.arange(200))
    for tokens, labels, mask in zip(rows["input_ids"], rows["labels"], rows["attention_mask"], strict=True):
        ends = (tokens == 0).nonzero()
        length = int(ends[0]) + 1 if len(ends) else 12
        assert mask.tolist() == [1] * length + [0] * (12 - length)
        assert labels[:length].tolist() == tokens[:length].tolist() and (labels[length:] == -100).all()


def test_the_oracle_is_the_law_and_no_model_predicts_better(data):
    oracle, rows = markov_oracle(data=data), data.train.batch(torch.arange(500))
    logits, tokens = oracle(rows["input_ids"])[:, :-1], rows["labels"][:, 1:]
    kept = tokens >= 0
    nll = -torch.log_softmax(logits, -1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0][kept].mean()
    entropy = -(logits.exp() * logits).sum(-1)[kept].mean()
    assert float(nll) == pytest.approx(float(entropy), abs=0.03)
    assert float(entropy) < math.log(4) - 0.05


def test_it_comes_from_the_seeds_alone(data):
    again, other = markov(**SMALL), markov(**SMALL, seed=1)
    assert again.train.fingerprint == data.train.fingerprint != other.train.fingerprint
    assert torch.equal(again.extra["chain"].table(), other.extra["chain"].table())
    law = markov(**SMALL, law_seed=1)
    assert not torch.equal(law.extra["chain"].table(), data.extra["chain"].table())
    assert data.extra["tokenizer"].decode([1, 2, 0]) == "ab." and data.spec.vocab_size == 4


@pytest.mark.parametrize("wrong", [{"symbols": 2}, {"symbols": 32, "order": 5}, {"end": 0.0}, {"context": 1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="data 'markov'"):
        markov(**{**SMALL, **wrong})


def test_the_oracle_of_other_data_is_refused():
    with pytest.raises(UserError, match="law of data 'markov'"):
        markov_oracle(data=None)
