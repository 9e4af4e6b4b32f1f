"""Universal logit distillation: a teacher of any vocabulary, compared by its sorted probabilities."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Term
from limbeck.language.cross import CrossMethod
from limbeck.language.crossing import Crossing, at
from limbeck.language.losses import uld
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class ULD(CrossMethod):
    """``CE(y, q) + weight sum_i |sort(p)_i - sort(q)_i|``.

    Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs" (arXiv
    2402.12030), equations 4 and 5. It is blind to which token is which, so the text has to say that. The paper compares
    the i-th token with the i-th, wherever both are in the text; here both have read the same text by default.

    Args:
        weight: of the sorted distance; lambda in the paper.
        temperature: divides both logits.
        align: compare at the beginnings of ``spans`` of the same text, or by ``position`` as in the paper.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    same_view = False
    live = True
    dial = "weight"

    def __init__(
        self,
        *,
        weight: float = 1.5,
        temperature: float = 1.0,
        align: Literal["spans", "position"] = "spans",
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, reduction=reduction, max_len=max_len)
        self.weight = weight
        self.align = self.by = align

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce`` and ``uld``."""
        logits, labels = self.next_tokens(batch)
        crossing = self.cross(batch)
        terms = {"ce": self.term(cross_entropy(logits, labels), labels)}
        return terms | {"uld": self.span_term(self.distance(logits, crossing), crossing, weight=self.weight)}

    def distance(self, logits: Tensor, crossing: Crossing, role: str = "teacher") -> Tensor:
        """The sorted distance at the first token of each span [B, S], from shifted logits [B, T-1, V]."""
        theirs = self.asked(crossing, role).logits[:, :-1]
        ours, theirs = self.fitting(logits, theirs, role)
        first = at(ours, crossing.student[..., 0]), at(theirs, crossing.teacher[..., 0])
        return uld(*first, temperature=self.temperature)
