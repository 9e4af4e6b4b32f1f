"""Supervised training: the student alone, and how teachers are made."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Term, Update
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class Supervised(Method):
    """Cross-entropy on the labels, with no teacher: the control that every distillation has to beat.

    Of several streams of data it learns from the first, which is the one that the run is judged on.

    Args:
        label_smoothing: mass taken from the label and spread over all classes (Szegedy et al. 2016).
    """

    controls = {}
    streams = True

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(_first(batch)))

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Items of the first stream."""
        return super().count(_first(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce": cross-entropy}``."""
        logits = forward(self.student, batch).logits
        return {"ce": label_loss(logits, batch, label_smoothing=self.label_smoothing)}


def _first(batch: Batch) -> Batch:
    return batch if "id" in batch else next(iter(batch.values()))
