"""What methods share that train a draft on its target's features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.rollouts import RolloutMethod
from limbeck.language.speculative.models import output_layer
from limbeck.models.forward import Signals


class FeatureMethod(RolloutMethod):
    """Base of the methods whose student reads the target's features, on the data's text or the target's own.

    Text that the target wrote itself is what its draft meets in decoding. The student is a small module without the
    target; see :mod:`limbeck.language.speculative.models`. A subclass repeats ``needs``, ``live`` and ``same_view``.

    Args:
        teacher_share: how often the rows are the target's writing; the rest are the data's.
        new_tokens: how many tokens it writes at most.
        prompt: tokens of a plain row that it continues; by default half of it.
        heat: its sampling temperature.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    same_view = False  # the draft sees the teacher's features, not its input
    student_is: ClassVar[str] = ""
    """The models that can be the student, for messages."""
    speaks: ClassVar[str] = ""
    """What such a model has."""

    def __init__(
        self, *, teacher_share: float = 0.0, new_tokens: int = 64, prompt: int | None = None, heat: float = 1.0
    ) -> None:
        super().__init__(
            student_share=0.0, teacher_share=teacher_share, new_tokens=new_tokens, prompt=prompt, heat=heat
        )

    def setup(self, parts: Parts) -> None:
        """Refuse a student of another kind, and a target without an output layer.

        Raises:
            UserError: either of these, or what every token method refuses.
        """
        super().setup(parts)
        if not hasattr(parts.student, self.speaks):
            raise UserError(f"the student must be {self.student_is}, not {type(parts.student).__name__}")
        output_layer(self.teacher.module)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the draft."""
        rows = self.rows(batch).batch
        yield Update("student", self.losses(rows, self.observed(rows), clock))

    def observed(self, rows: Batch) -> Signals:
        """The target's logits and hidden states."""
        return self.teacher.compute(rows, output_hidden_states=True)

    def losses(self, rows: Batch, target: Signals, clock: Clock) -> dict[str, Term]:
        """The named losses on rows of tokens and what the target gave for them."""
        raise NotImplementedError

    def out(self, features: Tensor) -> Tensor:
        """Logits of features by the target's frozen output layer, through which gradients pass."""
        logits: Tensor = output_layer(self.teacher.module)(features)
        return logits

    def embedded(self, tokens: Tensor) -> Tensor:
        """The target's embedding of tokens, without gradient."""
        with torch.no_grad():
            found: Tensor = self.teacher.module.get_input_embeddings()(tokens)  # type: ignore[operator]
        return found

    @staticmethod
    def ahead(values: Tensor, labels: Tensor, distance: int, weight: float = 1.0) -> Term:
        """The term of values [B, N] for the last N tokens of rows of labels [B, T], counted where there is a label.

        Args:
            values: one for each of the tokens from number ``distance`` on.
            labels: of the rows.
            distance: T - N.
            weight: of the term.
        """
        return Term.of(values, labels[:, distance:] != -100, weight=weight, unit=f"ahead_{distance}")

    def reach(self) -> int:
        """The largest distance that a term has."""
        raise NotImplementedError

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Tokens that have a label, from the first, second, ... place of each row on."""
        labels = self.rows(batch).batch["labels"]
        ahead: dict[str, Any] = {f"ahead_{k}": (labels[:, k:] != -100).sum() for k in range(1, self.reach() + 1)}
        return {**super().count(batch), **ahead}
