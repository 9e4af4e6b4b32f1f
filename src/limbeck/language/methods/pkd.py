"""Patient knowledge distillation: intermediate layers teach, too, by what they make of the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Batch, Parts, Term
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, sizes
from limbeck.language.initialise import copy_layers
from limbeck.language.layers import layer_map
from limbeck.losses import label_loss, soft_kl
from limbeck.registry import register


@register("method")
class PatientKD(EncoderMethod):
    """``(1 - alpha) CE + alpha T^2 KL + beta sum_i || h_i / |h_i| - g_i / |g_i| ||^2`` on the first token's states.

    Sun et al. 2019 (arXiv 1908.09355), equations 3 to 7: all layers but the last, whose logits teach. The paper's
    student begins with the first layers of the model that its teacher was before fine-tuning.

    Args:
        alpha: weight of the soft targets, the rest is cross-entropy with the labels.
        temperature: divides both logits.
        beta: of the states' distance; the paper's grid is 10 to 1000.
        layers: the teacher's layers that teach: every k-th (``skip``, better in the paper), the ``last`` ones, or pairs
            ``{student: teacher}`` counted from 1.
        from_teacher: begin with the first layers of the teacher as it is.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        temperature: float = 5.0,
        beta: float = 10.0,
        layers: Literal["skip", "last"] | dict[int, int] = "skip",
        from_teacher: bool = True,
    ) -> None:
        self.alpha = alpha
        self.temperature = temperature
        self.beta = beta
        self.layers: Any = layers
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Map the layers, and begin with the teacher's.

        Raises:
            UserError: the networks are not equally wide, or a layer is not there.
        """
        super().setup(parts)
        (own, count, _), (width, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
        if own != width:
            raise UserError(f"pkd: the student is {own} wide and the teacher {width}: make them alike")
        kind = {int(a): int(b) for a, b in self.layers.items()} if isinstance(self.layers, Mapping) else self.layers
        self.pairs = layer_map(kind, count, theirs, last=False)
        if self.from_teacher:
            copy_layers(parts.student, self.teacher.module, range(count))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce``, ``kd`` and ``patient``; one whose weight is zero is left out."""
        student, teacher = self.both(batch)
        terms = {}
        if self.alpha < 1:
            terms["ce"] = label_loss(student.logits, batch, weight=1 - self.alpha)
        if self.alpha > 0:
            soft = soft_kl(student.logits, teacher.logits, temperature=self.temperature)
            terms["kd"] = Term.of(soft, weight=self.alpha)
        if self.beta > 0 and self.pairs:
            apart = [patience(student.hidden_states[i], teacher.hidden_states[j]) for i, j in self.pairs]
            terms["patient"] = Term.of(sum(apart[1:], start=apart[0]), weight=self.beta)
        return terms


def patience(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the first token's normalised states, [B, T, H] twice -> [B]."""
    own, theirs = (F.normalize(h[:, 0].float(), dim=-1) for h in (student, teacher))
    return (own - theirs).square().sum(-1)
