import json

import pytest
import torch

from limbeck.data.labelled import fitted, labelled_text
from limbeck.data.worlds import NLI, TOPICS, nli, topics
from limbeck.errors import UserError


def test_a_pair_is_read_as_two_texts_with_their_marks():
    data = labelled_text(corpus="nli", train_size=20, test_size=5, context=32)
    words, batch = data.extra["tokenizer"], data.train.batch(torch.arange(20))
    for row, (premise, hypothesis, label) in enumerate(nli(20, 0.0, 0)):
        there = batch["attention_mask"][row].bool()
        text = words.decode(batch["input_ids"][row][there])
        assert text == f"<cls> {premise} <sep> {hypothesis} <sep>"
        second = batch["input_ids"][row][batch["token_type_ids"][row].bool()]
        assert words.decode(second) == f"{hypothesis} <sep>"
        assert data.spec.class_names[batch["label"][row]] == NLI[label]
        assert (batch["input_ids"][row][~there] == words.pad_token_id).all()


def test_hypotheses_say_what_their_label_says():
    for premise, hypothesis, label in nli(300, 0.0, 1):
        new = set(str(hypothesis).split()) - set(premise.split())
        if NLI[label] == "entailment":
            assert not new
        else:
            assert new


def test_a_share_of_labels_is_in_doubt_in_training_and_none_in_the_test():
    clean, doubtful = nli(3000, 0.0, 3), nli(3000, 0.5, 3)
    # Half the labels are drawn anew, a third of these to what they were.
    wrong = sum(_kind(a, b) != c for a, b, c in doubtful) / 3000
    assert abs(wrong - 0.5 * 2 / 3) < 0.04
    assert all(_kind(a, b) == c for a, b, c in clean)


def _kind(premise, hypothesis):
    new = set(hypothesis.split()) - set(premise.split())
    if not new:
        return 0
    from limbeck.data.worlds import _KIND, _WHEN

    return 1 if new & set(_KIND) or any(when in hypothesis for when in _WHEN) else 2


def test_most_topic_words_are_of_the_label():
    from limbeck.data.worlds import _TOPIC_WORDS

    for text, second, label in topics(200, 1.0, 0):
        counts = [sum(w in _TOPIC_WORDS[name] for w in text.split()) for name in TOPICS]
        assert second is None and counts.index(max(counts)) == label
        assert sorted(counts)[-2] == max(counts) - 1


def test_files_of_both_kinds_give_the_same_rows(tmp_path):
    lines = [("good film", "yes"), ("bad film", "no")] * 5
    (tmp_path / "a.tsv").write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in lines))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in lines))
    found = [labelled_text(path=tmp_path / name, context=8) for name in ("a.tsv", "a.jsonl")]
    assert found[0].train.fingerprint == found[1].train.fingerprint
    assert found[0].spec.class_names == ("no", "yes")
    assert (len(found[0].train), len(found[0].test)) == (8, 2)


@pytest.mark.parametrize(
    ("a", "b", "room", "kept"),
    [(5, 3, 8, (5, 3)), (7, 3, 8, (5, 3)), (3, 9, 8, (3, 5)), (9, 9, 8, (4, 4)), (9, 0, 4, (4, 0)), (9, 8, 7, (4, 3))],
)
def test_the_longer_text_is_cut_first(a, b, room, kept):
    found = fitted(list(range(a)), list(range(b)), room)
    assert tuple(map(len, found)) == kept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "needs one of path and corpus"),
        ({"corpus": "nli", "ambiguity": 2.0}, "ambiguity must be between"),
        ({"corpus": "nli", "test_fraction": 1.0}, "leave some rows to train on"),
        ({"corpus": "nli", "context": 3}, "too short for any text"),
    ],
)
def test_what_cannot_be_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        labelled_text(**arguments)


def test_a_missing_column_is_named_with_its_line(tmp_path):
    (tmp_path / "a.tsv").write_text("label\ttext\nyes\tgood\nno\n")
    with pytest.raises(UserError, match=r"a.tsv line 3: no column text; the line has label"):
        labelled_text(path=tmp_path / "a.tsv")


@pytest.mark.parametrize("world", ["nli", "topics"])
def test_a_world_has_one_vocabulary_however_many_rows_were_made(world):
    few, many = (labelled_text(corpus=world, train_size=n, test_size=5, ambiguity=0.5) for n in (10, 3000))
    assert few.spec.tokenizer_hash == many.spec.tokenizer_hash
    words = few.extra["tokenizer"]
    assert not (many.train.batch(torch.arange(3000))["input_ids"] == words.unk_token_id).any()


def test_a_tokenizer_of_a_file_is_that_of_all_its_training_rows(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\n" + "".join(f"w{i} w{i % 3}\t{'ab'[i % 2]}\n" for i in range(20)))
    few, many = (labelled_text(path=file, train_size=n, context=8) for n in (4, None))
    assert few.spec.tokenizer_hash == many.spec.tokenizer_hash and len(few.train) == 4
