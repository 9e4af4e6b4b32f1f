import pytest
import torch

from limbeck.data.topics import topics
from limbeck.errors import UserError


def texts(source):
    batch = source.batch(torch.arange(len(source)))
    return [
        source.tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_a_row_is_a_text_a_question_and_the_topic_that_alone_is_learnt():
    data = topics(train_size=50, val_size=10, test_size=10, length=5)
    batch = data.train.batch(torch.arange(50))
    assert data.spec.task == "language"
    assert batch["input_ids"].shape == (50, data.spec.shape[0])
    for row, labels in zip(texts(data.train), batch["labels"], strict=True):
        learnt = data.train.tokenizer.decode(labels[labels != -100])
        assert learnt.startswith("topic_")
        assert row.split()[5:9] == ["so", "it", "is", "about"]
        assert row.split()[9] == learnt.split()[0].removesuffix("<eos>")


def test_noise_is_in_the_training_part_alone_and_as_large_as_said():
    data = topics(train_size=600, val_size=300, test_size=300, clarity=1.0, confusion=0.0, noise=0.3, length=3)

    def wrong(source):
        rows = [text.replace("<eos>", "").split() for text in texts(source)]
        return sum(row[0].split("_")[0][1:] != row[-1].removeprefix("topic_") for row in rows) / len(rows)

    assert wrong(data.train) == pytest.approx(0.3, abs=0.06)
    assert wrong(data.val) == wrong(data.test) == 0.0


def test_the_same_seed_is_the_same_text_and_numbers_out_of_range_are_refused():
    sizes = {"train_size": 5, "val_size": 5, "test_size": 5}
    assert topics(**sizes).train.fingerprint == topics(**sizes).train.fingerprint
    assert topics(**sizes).train.fingerprint != topics(**sizes, seed=1).train.fingerprint
    with pytest.raises(UserError, match="shares"):
        topics(clarity=0.8, confusion=0.3)
    with pytest.raises(UserError, match="two topics"):
        topics(topics=1)
