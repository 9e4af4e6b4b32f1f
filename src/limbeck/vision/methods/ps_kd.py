"""Progressive self-distillation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import IGNORE, cross_entropy, label_loss, log_softmax
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.losses.logits import soft_cross_entropy


@register("method")
class PSKD(Method):
    """Self-Knowledge Distillation with Progressive Refinement of Targets (Kim et al. 2021, arXiv 2006.12000).

    Cross-entropy against ``(1 - a_e) y + a_e P``, where ``P`` is what the student said of that sample in the epoch
    before and ``a_e = alpha e / epochs`` grows with the epoch e = 1, 2, ... There is no teacher. What has not been seen
    in the epoch before (in the first one, nothing has) keeps its label. Two epochs' predictions are kept beside the
    student, by sample id.

    Args:
        alpha: weight of the student's own predictions in the last epoch.
    """

    def __init__(self, *, alpha: float = 0.8) -> None:
        self.alpha = alpha

    def setup(self, parts: Parts) -> None:
        """The student learns; nothing is remembered yet."""
        super().setup(parts)
        self.memory = Predictions()

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "self"}``: the label's part of the target and the student's own."""
        logits, labels, share = forward(self.student, batch).logits, batch["label"], self.share(clock)
        own = cross_entropy(logits, labels)
        self.memory.begin(clock.epoch)
        if len(self.memory):
            before, known = self.memory.of(batch["id"])
            own = torch.where(known, soft_cross_entropy(logits, before), own)
        self.memory.add(batch["id"], log_softmax(logits.detach()).exp())
        return {
            "ce": label_loss(logits, batch, weight=1 - share),
            "self": Term.of(own, labels != IGNORE, weight=share, unit="labelled"),
        }

    def share(self, clock: Clock) -> float:
        """``a_e``, the weight of the student's own predictions."""
        epochs = math.ceil(clock.total / max(clock.steps_per_epoch, 1))
        return self.alpha * (clock.epoch + 1) / max(epochs, 1)

    def state_dict(self) -> dict[str, Any]:
        """The remembered predictions."""
        return self.memory.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.memory.load(state)


class Predictions:
    """Probabilities by sample id: those of the epoch before, and those that this one is giving."""

    def __init__(self) -> None:
        self.epoch = 0
        self.before: tuple[Tensor, Tensor] | None = None
        self.now: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return 0 if self.before is None else len(self.before[0])

    def begin(self, epoch: int) -> None:
        """What this epoch gave becomes the epoch before, when another one begins."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self.before, self.now = _sorted(self.now), []

    def add(self, ids: Tensor, probabilities: Tensor) -> None:
        """Note what was said of these samples in all processes, [B] and [B, K]."""
        rows = Together(len(ids), probabilities.device)
        self.now.append((rows.all(ids), rows.all(probabilities)))

    def of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What was said of these samples in the epoch before, [B, K], and of which of them anything was, bool [B]."""
        assert self.before is not None
        found, probabilities = (values.to(ids.device) for values in self.before)
        self.before = found, probabilities
        places = torch.searchsorted(found, ids).clamp(max=len(found) - 1)
        return probabilities[places], found[places] == ids

    def state(self) -> dict[str, Any]:
        """The epoch and both tables; one without rows is None."""
        return {"epoch": self.epoch, "before": self.before, "now": _sorted(self.now)}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.epoch, self.before, now = state["epoch"], state["before"], state["now"]
        self.now = [] if now is None else [now]


def _sorted(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """One table [n] and [n, K] in the order of the ids."""
    if not parts:
        return None
    device = parts[-1][0].device  # what a checkpoint gave lies on the CPU
    ids, order = torch.cat([i.to(device) for i, _ in parts]).sort(stable=True)
    return ids, torch.cat([p.to(device) for _, p in parts])[order]
