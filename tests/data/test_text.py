import json
import os

import pytest
import torch

from limbeck.data.text import text
from limbeck.data.tokenizer import char_tokenizer, tokenizer_hash
from limbeck.errors import UserError

STORY = "".join(f"line {i} of a story that never repeats itself {i * i}\n" for i in range(80))


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf8")
    return path


def every(source):
    return source.batch(torch.arange(len(source)))


def read(source):
    return "".join(source.tokenizer.decode(row) for row in every(source)["input_ids"])


def test_blocks_are_the_text_in_order_and_no_part_shares_text_with_another(story):
    data = text(path=story, context=16, val_fraction=0.1, test_fraction=0.2)
    assert STORY.startswith(read(data.train))
    a, b = round(len(STORY) * 0.7), round(len(STORY) * 0.8)
    assert STORY[a:].startswith(read(data.val)) and STORY[b:].startswith(read(data.test))
    assert len(data.train) == a // 16 and len(data.val) == (b - a) // 16


def test_the_spec_says_what_models_are_built_from(story):
    data = text(path=story, context=16)
    assert data.spec.task == "language" and data.spec.offers()["context"] == 16
    assert data.spec.vocab_size == len(data.extra["tokenizer"]) == len(set(STORY)) + 3
    assert data.spec.tokenizer_hash == tokenizer_hash(data.extra["tokenizer"])


def test_a_row_is_the_same_however_it_is_asked_for_and_ids_are_unique_over_the_parts(story):
    data = text(path=story, context=16, val_fraction=0.1)
    alone, among = data.train.batch(torch.tensor([7])), data.train.batch(torch.tensor([3, 7, 1]), view=5)
    for name in ("input_ids", "attention_mask", "labels", "id"):
        assert alone[name].dtype == torch.int64
        assert torch.equal(alone[name][0], among[name][1])
    assert among["view"] == 5 and torch.equal(among["labels"], among["input_ids"])
    ids = torch.cat([every(s)["id"] for s in (data.train, data.val, data.test)])
    assert len(ids.unique()) == len(ids)


def test_the_fingerprint_follows_the_content(story):
    prints = {text(path=story, context=16).train.fingerprint for _ in range(2)}
    assert len(prints) == 1
    story.write_text(STORY.replace("line 3", "Line 3"), encoding="utf8")
    assert text(path=story, context=16).train.fingerprint not in prints


def test_bpe_merges_are_learnt_from_the_training_part_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcabcab " * 100 + "zyzyzyzy " * 12, encoding="utf8")
    words = text(path=path, tokenizer="bpe", vocab_size=300, context=4, val_fraction=0.0).extra["tokenizer"]
    assert "abcabcab" in words.get_vocab() and "zy" not in words.get_vocab()


def test_a_saved_tokenizer_is_used_as_it_is(tmp_path, story):
    words = char_tokenizer([STORY + "ABC"])
    words.save_pretrained(tmp_path / "words")
    data = text(path=story, context=16, tokenizer_path=tmp_path / "words")
    assert data.spec.tokenizer_hash == tokenizer_hash(words)


def test_documents_are_joined_by_the_end_of_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": w}) + "\n" for w in ("aa", "bb", "cc", "dd")), encoding="utf8")
    data = text(path=path, field="body", context=6, val_fraction=0.0, test_fraction=0.0)
    vocabulary = data.extra["tokenizer"].get_vocab()
    a, b, c, d, end = (vocabulary[t] for t in ("a", "b", "c", "d", "<eos>"))
    assert every(data.train)["input_ids"].tolist() == [[a, a, end, b, b, end], [c, c, end, d, d, end]]
    assert data.test is None and data.val is None


def pairs(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows), encoding="utf8")
    return {"path": path, "prompt_field": "q", "completion_field": "a", "val_fraction": 0.0, "test_fraction": 0.0}


def test_only_the_completion_and_its_end_are_learnt(tmp_path):
    data = text(**pairs(tmp_path, [("ab", "cd"), ("a", "dcba")]), context=7)
    v = data.extra["tokenizer"].get_vocab()
    a, b, c, d, end, pad = (v[t] for t in ("a", "b", "c", "d", "<eos>", "<pad>"))
    batch = every(data.train)
    assert batch["input_ids"].tolist() == [[a, b, c, d, end, pad, pad], [a, d, c, b, a, end, pad]]
    assert batch["labels"].tolist() == [[-100, -100, c, d, end, -100, -100], [-100, d, c, b, a, end, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]]


def test_long_completions_are_cut_and_prompts_without_room_are_dropped_and_counted(tmp_path):
    data = text(**pairs(tmp_path, [("aaaaaaaa", "b"), ("ab", "cdcdcdcd"), ("aaaa", "b")]), context=4)
    batch = every(data.train)
    assert data.extra["dropped"] == 2 and batch["id"].tolist() == [1]
    assert (batch["labels"] != -100).sum() == 2 and batch["attention_mask"].all()


def test_a_file_of_its_own_for_testing(tmp_path, story):
    other = tmp_path / "other.txt"
    other.write_text(STORY[::-1], encoding="utf8")
    data = text(path=story, test_path=other, context=16, val_fraction=0.0)
    assert STORY.startswith(read(data.train)) and len(data.train) == len(STORY) // 16
    assert STORY[::-1].startswith(read(data.test))


def test_the_package_makes_a_corpus_itself():
    data = text(corpus="grammar", context=64, characters=20_000)
    assert data.spec.licence == "public domain" and data.spec.vocab_size < 45
    assert len(data.train) == 17_000 // 64


def test_less_text_is_the_beginning_of_more(story):
    assert read(text(path=story, context=16).train).startswith(read(text(path=story, context=16, characters=800).train))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "one of path and corpus"),
        ({"corpus": "grammar", "path": "x.txt"}, "one of path and corpus"),
        ({"corpus": "grammar", "prompt_field": "q"}, "both prompt_field and completion_field"),
        ({"corpus": "grammar", "context": 1}, "at least 2 tokens"),
        ({"corpus": "grammar", "test_fraction": 0.9, "val_fraction": 0.1}, "leave some text"),
        ({"corpus": "grammar", "characters": 200, "context": 64}, "val part of the text gives no row"),
    ],
)
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        text(**arguments)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="no text to train on"):
        text(path=tmp_path / "a.txt")


@pytest.mark.skipif("LIMBECK_DATA" not in os.environ, reason="needs the real data under LIMBECK_DATA")
@pytest.mark.parametrize(("corpus", "vocabulary"), [("shakespeare", 68), ("gsm8k", None)])
def test_named_corpora_are_found(corpus, vocabulary):
    data = text(corpus=corpus, context=256, characters=50_000)
    assert vocabulary is None or abs(data.spec.vocab_size - vocabulary) < 10
    assert len(data.train) > 20 and len(data.test) > 0


def test_a_student_may_have_less_text_than_its_teacher_and_is_judged_on_the_same():
    whole, less = (text(corpus="grammar", characters=6000, tokenizer="bpe", train_characters=n) for n in (None, 2000))
    assert less.spec.tokenizer_hash == whole.spec.tokenizer_hash
    assert len(less.train) < len(whole.train) / 2
    rows = torch.arange(len(less.train) - 1)  # the last token of the cut text may be another
    assert torch.equal(less.train.batch(rows)["input_ids"], whole.train.batch(rows)["input_ids"])
    assert len(less.test) == len(whole.test)
    every = torch.arange(len(whole.test))
    assert torch.equal(less.test.batch(every)["input_ids"], whole.test.batch(every)["input_ids"])
