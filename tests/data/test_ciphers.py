import pytest
import torch

from limbeck.data.ciphers import OTHER, ciphers, said_in
from limbeck.data.worlds import WORLDS
from limbeck.errors import UserError

SIZES = {"train_size": 6, "test_size": 4}


def texts(source):
    batch = source.batch(torch.arange(len(source)))
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [source.tokenizer.decode(ids[mask.bool()]) for ids, mask in rows]


def test_the_other_language_has_other_words_and_can_be_read_back():
    assert len(set(OTHER.values())) == 26
    words = set(WORLDS["topics"].words.split())
    assert not words & {said_in("b", word) for word in words}
    assert said_in("a", "warm rain") == "warm rain"
    assert said_in("b", "bad cab") == "wqr eqw"


def test_a_task_is_trained_in_one_language_and_judged_in_the_other():
    plain, other = ciphers(**SIZES), ciphers(**SIZES, test_language="b")
    assert texts(plain.train) == texts(other.train)
    assert [said_in("b", text) for text in texts(plain.test)] == texts(other.test)
    examples = WORLDS["topics"].make(6, 0.0, 0)
    assert texts(plain.train) == [text for text, _, _ in examples]
    assert plain.train.label.tolist() == [label for _, _, label in examples]
    assert plain.spec.class_names == WORLDS["topics"].classes


def test_a_translation_says_the_first_languages_word_at_each_place():
    data = ciphers(form="translation", **SIZES)
    batch, said = data.train.batch(torch.arange(12)), texts(data.train)
    assert [said_in("b", text) for text in said[:6]] == said[6:]
    for row, text in enumerate(said[:6] + said[:6]):
        label = batch["label"][row]
        assert torch.equal(label >= 0, batch["attention_mask"][row].bool())
        assert data.train.tokenizer.decode(label[label >= 0]) == text


def test_pieces_are_those_of_the_first_language():
    data = ciphers(tokens="pieces", **SIZES, test_language="b")
    same = ciphers(tokens="pieces", form="language", train_size=50, test_size=4)
    assert data.spec.tokenizer_hash == same.spec.tokenizer_hash
    assert texts(data.train) == texts(ciphers(**SIZES).train)  # byte-pairs can say everything
    long = [
        source.batch(torch.arange(4))["attention_mask"].sum()
        for source in (ciphers(tokens="pieces", **SIZES).test, data.test)
    ]
    assert long[1] > 1.2 * long[0]


def test_a_language_model_learns_every_token_of_a_text():
    data = ciphers(form="language", tokens="pieces", **SIZES)
    batch = data.train.batch(torch.arange(6))
    assert torch.equal(batch["labels"] >= 0, batch["attention_mask"].bool())
    assert texts(data.train)[0] == WORLDS["topics"].make(6, 0.0, 0)[0][0] + "<eos>"


def test_both_sentences_of_a_pair_are_one_text():
    first, second, _ = WORLDS["nli"].make(6, 0.0, 0)[0]
    assert texts(ciphers(world="nli", **SIZES).train)[0] == f"{first} {second}"


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="say context: "):
        ciphers(context=3, **SIZES)
    with pytest.raises(UserError, match="word by word"):
        ciphers(form="translation", tokens="pieces")
    with pytest.raises(UserError, match="a share as ambiguity"):
        ciphers(ambiguity=2.0)
