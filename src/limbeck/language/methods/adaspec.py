"""AdaSPEC: a small draft spends its capacity on the tokens that a draft of its size can still learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.losses import scored, shift
from limbeck.losses import IGNORE
from limbeck.models.forward import Signals
from limbeck.registry import register


@register("method")
class AdaSPEC(TokenMethod):
    """``D(p || q)`` over the share of the batch's tokens with the largest ``D(p || q) - D(p || r)``.

    Hu et al. 2025, "AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders" (arXiv 2510.19779).
    p is the target (role ``teacher``), q the draft, and r a draft of the same size that was distilled first (role
    ``reference``; with ``method: distillspec`` or ``word_kd`` in its own block). The ranking is by the gap to the
    reference and not by the loss: what the reference could not learn either is left alone. The selection takes no
    gradient. ``alone`` is a draft of the text; the draft distilled on all tokens is the reference itself.

    Args:
        share: k, the share of the tokens that are kept.
        select: keep the largest ``gap``; or, for comparison, the largest ``loss``, or a ``random`` choice.
    """

    needs = {"teacher": {"logits"}, "reference": {"logits"}}
    couples_samples = True
    dial = "share"

    def __init__(self, *, share: float = 0.4, select: Literal["gap", "loss", "random"] = "gap", **rest: Any) -> None:
        super().__init__(**rest)
        self.share = share
        self.select: Any = select

    def setup(self, parts: Parts) -> None:
        """Refuse a share that keeps nothing.

        Raises:
            UserError: it is not in (0, 1].
        """
        super().setup(parts)
        if not 0 < self.share <= 1:
            raise UserError(f"adaspec: share must be in (0, 1], got {self.share}")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the draft."""
        yield Update("student", self.selected(batch, clock))

    def selected(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The term ``kd`` over the kept tokens."""
        target = self.teacher(batch)
        logits, labels = self.next_tokens(batch)
        values = self.divergence(logits, target)
        with torch.no_grad():
            kept = keep_largest(self._ranking(batch, target, values, clock), scored(labels), self.share)
        return {"kd": self.term(values, labels.masked_fill(~kept, IGNORE))}

    def _ranking(self, batch: Batch, target: Signals, values: Tensor, clock: Clock) -> Tensor:
        if self.select == "random":
            return clock.uniform(batch["id"], (values.shape[1],), "selection").to(values)
        if self.select == "loss":
            return values.detach()
        reference, _ = shift(self.teachers["reference"](batch).logits, batch["labels"])
        return values.detach() - self.divergence(reference, target)


def keep_largest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """Of the masked entries of all processes together the ``share`` with the largest values (at least one), bool.

    ``kthvalue`` and not ``quantile``, which refuses more than 16 million entries.

    Args:
        values: any shape.
        mask: bool, the same shape; only these are ranked and kept.
        share: in (0, 1].
    """
    own = values[mask]
    every = Together(len(own), own.device).all(own)
    if not len(every):
        return mask.clone()
    kept = max(round(share * len(every)), 1)
    least = every.kthvalue(len(every) - kept + 1).values
    return mask & (values >= least)
