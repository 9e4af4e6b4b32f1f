import pytest
import torch

from limbeck.data.text_pairs import text_pairs
from limbeck.errors import UserError


def test_made_pairs_have_scores_and_classes():
    data = text_pairs(corpus="catalogue", train_size=40, test_size=20, context=16)
    batch = data.train.batch(torch.arange(40))
    assert batch["input_ids"].shape == (40, 2, 16) and data.spec.classes == 3
    named = {"the same": 1.0, "one differs": 0.75, "three differ": 0.25}
    assert [named[data.spec.class_names[i]] for i in batch["label"]] == batch["score"].tolist()
    assert data.test.pairs and len(data.test) == 20
    assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("one\ttwo\tlike\n" + "".join(f"a cat {i}\ta dog {i}\t{i % 5}\n" for i in range(10)))
    data = text_pairs(path=file, first="one", second="two", score="like", scale=4, context=8)
    assert data.train.batch(torch.arange(8))["score"].tolist() == [i % 5 / 4 for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert data.test.batch(torch.arange(2))["score"].tolist() == [1.0, 1.0]
    assert data.spec.classes is None
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"a": "x y", "b": "z", "kind": "no"}\n' * 4 + '{"a": "x", "b": "x", "kind": "yes"}\n' * 6)
    classes = text_pairs(path=lines, score=None, label="kind", context=8)
    assert classes.spec.class_names == ("no", "yes") and not classes.test.pairs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tb\nx\ty\n", "no column 'score'"),
        ("a\tb\tscore\nx\ty\tmuch\n", "score is a number"),
        ("a\tb\tscore\nx\ty\t7\n", "not from 0 to 1"),
        ("a\tb\tscore\n", "no pairs"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, says):
    file = tmp_path / "pairs.tsv"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        text_pairs(path=file, context=8)
