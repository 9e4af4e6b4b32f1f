from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.data.commands import INTENTS, SLOTS, commands
from limbeck.data.labelled import labelled_text
from limbeck.errors import UserError
from limbeck.language.metrics.slots import spans, understanding
from limbeck.metrics.base import Evaluation


class Says(nn.Module):
    """A model of fixed answers for the test rows."""

    def __init__(self, intents, slots):
        super().__init__()
        self.intents, self.slots, self.at = intents, slots, 0

    def forward(self, input_ids, attention_mask, **_):
        here = slice(self.at, self.at + len(input_ids))
        self.at += len(input_ids)
        one_hot = torch.nn.functional.one_hot
        return {
            "logits": one_hot(self.intents[here], len(INTENTS)).float(),
            "slot_logits": one_hot(self.slots[here].clamp_min(0), len(SLOTS)).float(),
        }


def judged(data, intents, slots):
    return understanding(Evaluation(Says(intents, slots), data.spec, data.test)).values


def test_spans_are_whole_slots():
    assert spans(["O", "B-a", "I-a", "B-a", "O", "I-b", "I-b", "I-a"]) == [
        (1, 3, "a"),
        (3, 4, "a"),
        (5, 7, "b"),
        (7, 8, "a"),
    ]
    assert spans([]) == []


def test_errors_are_counted_by_hand():
    data = commands(train_size=5, test_size=40)
    rows = data.test.batch(torch.arange(40))
    assert judged(data, rows["label"], rows["slots"]) == {"intent_error": 0.0, "slot_error": 0.0}
    intents, slots = rows["label"].clone(), rows["slots"].clone()
    intents[:10] = (intents[:10] + 1) % len(INTENTS)
    slots[:20] = 0  # nothing is found in the first half
    total = sum(len(spans([SLOTS[n] for n in row[row >= 0]])) for row in rows["slots"])
    found = sum(len(spans([SLOTS[n] for n in row[row >= 0]])) for row in rows["slots"][20:])
    expected = {"intent_error": 0.25, "slot_error": 1 - 2 * found / (total + found)}
    assert judged(data, intents, slots) == pytest.approx(expected)


def test_data_without_slots_is_refused():
    texts = labelled_text(corpus="topics", train_size=8, test_size=4, context=20)
    given = SimpleNamespace(batches=lambda: [texts.test.batch(torch.arange(4))], test=texts.test, run=lambda b: {})
    with pytest.raises(UserError, match="needs data with slots"):
        understanding(given)
