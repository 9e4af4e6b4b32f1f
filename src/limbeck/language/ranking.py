"""What methods of rankers and text encoders share: the scores of a batch's lists, by student and teachers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.models.forward import Signals, forward

STORED = "teacher_scores"
"""Scores that the data brings with its lists."""


def check_texts(parts: Parts, method: str) -> None:
    """Refuse data that has no texts to encode.

    Raises:
        UserError: the data is made for another task.
    """
    if parts.data is not None and parts.data.task != "embedding":
        raise UserError(f"method '{method}' learns from queries and documents; the data's task is {parts.data.task}")


def check_scores(parts: Parts, method: str) -> None:
    """Refuse a run without any scores to learn from.

    Raises:
        UserError: there is neither a teacher nor scores in the data.
    """
    rows = [source.batch(torch.arange(1)) for source in parts.streams.values()]
    if not parts.teachers and not any(STORED in row for row in rows):
        raise UserError(f"method '{method}' needs a teacher, or data with a teacher's scores (data.scores: FILE)")


def scores_of(module: nn.Module, batch: Batch) -> Tensor:
    """A model's scores of the documents of each list, [B, n].

    Raises:
        UserError: the rows are no lists, or the model gives no scores.
    """
    return list_scores_in(forward(module, batch), "the student")


def list_scores_in(signals: Signals, who: str) -> Tensor:
    """The scores [B, n] in what a model gave.

    Raises:
        UserError: there are none.
    """
    if "logits" not in signals or signals.logits.dim() != 2:
        raise UserError(f"{who} gives no scores of lists: it needs rows of a query and documents (data.rows: lists)")
    found: Tensor = signals.logits
    return found


def vectors_in(signals: Signals, who: str) -> Tensor:
    """The vectors [..., D] of texts in what a model gave.

    Raises:
        UserError: there are none.
    """
    if "embedding" not in signals:
        raise UserError(f"{who} gives no vector of a text; it gives {', '.join(sorted(signals)) or 'nothing'}")
    found: Tensor = signals.embedding
    return found


def taught_scores(teachers: Mapping[str, Teacher], batch: Batch) -> Tensor:
    """The mean of all teachers' scores [B, n], and of those that the data brings."""
    found = [list_scores_in(teacher(batch), name) for name, teacher in teachers.items()]
    found += [batch[STORED]] if STORED in batch else []
    return torch.stack([scores.float() for scores in found]).mean(0)
