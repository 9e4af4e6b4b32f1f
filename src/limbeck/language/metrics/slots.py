"""How well a model understands commands: what is asked for, and which words say of what."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import register

Span = tuple[int, int, str]
"""First token, one after the last, and the slot's name."""


@register(
    "metric",
    task={"classification"},
    better={"intent_error": "lower", "slot_error": "lower"},
    labels={"intent_error": ("Wrong intents", "%"), "slot_error": ("Slot error (1 - F1)", "%")},
)
def understanding(evaluation: Evaluation) -> Scores:
    """Share of commands whose intent is wrong, and one minus the F1 of whole slots over all commands.

    A slot is found where its first word, its last and its name are right. Words without a mark do not count.

    Raises:
        UserError: the data has no slots, or the model marks none.
    """
    wrong = texts = there = said = right = 0
    names: Sequence[str] = getattr(evaluation.test, "slot_names", ())
    for batch in evaluation.batches():
        signals = evaluation.run(batch)
        if "slots" not in batch or "slot_logits" not in signals or not names:
            raise UserError("metric 'understanding' needs data with slots (commands) and a model of them (tagger)")
        labelled = batch["label"] != IGNORE
        wrong += int((signals.logits.argmax(-1) != batch["label"])[labelled].sum())
        texts += int(labelled.sum())
        for truth, marks in zip(batch["slots"].cpu(), signals.slot_logits.argmax(-1).cpu(), strict=True):
            kept = truth != IGNORE
            own, found = (set(spans([names[int(i)] for i in row[kept]])) for row in (truth, marks))
            there, said, right = there + len(own), said + len(found), right + len(own & found)
    if not texts or not there:
        raise UserError("the test split has no labelled command, so nothing can be judged")
    return Scores({"intent_error": wrong / texts, "slot_error": 1 - 2 * right / (there + said)}, {"slots": there})


def spans(marks: Sequence[str]) -> list[Span]:
    """The slots that marks ``B-name``, ``I-name`` and ``O`` say; an I that continues nothing begins a slot."""
    found: list[Span] = []
    for place, mark in enumerate(marks):
        kind, _, name = mark.partition("-")
        if kind == "I" and found and found[-1][1:] == (place, name):
            found[-1] = (found[-1][0], place + 1, name)
        elif kind in ("B", "I"):
            found.append((place, place + 1, name))
    return found
