"""Medusa: heads beside a language model's own that predict the tokens after the next one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.losses import forward_kl
from limbeck.language.speculative.method import FeatureMethod
from limbeck.losses import cross_entropy, log_softmax
from limbeck.models.forward import Signals, forward
from limbeck.registry import register


@register("method")
class Medusa(FeatureMethod):
    """``head_weight * sum_k decay^k CE(x_{t+k+1}, head_k(h_t))``; h_t is the model's last hidden state.

    Cai et al. 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads" (arXiv
    2401.10774). With the student ``medusa_heads`` the model is frozen (Medusa-1). With ``medusa_lm``, which starts as
    the teacher, it learns along (Medusa-2): beside the heads' loss, for which the paper has ``head_weight`` 0.2, there
    is its cross-entropy with the text, or on text that the teacher wrote (self-distillation) its KL from the teacher.
    The heads' warm-up before is a phase of the recipe (``phases: [{parameters: ["heads.*"]}, ...]``), and so is a
    lower rate for what follows.

    Args:
        decay: weight of a head over that of the one before it.
        head_weight: of all heads.
        learn: the ``tokens`` of the text, or the target's ``distribution`` at their place.
        teacher_share: how often the rows are the target's own writing (self-distillation).
        new_tokens: how many tokens it writes at most.
        prompt: tokens of a plain row that it continues; by default half of it.
        heat: its sampling temperature.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    same_view = False
    controls = {"next": {"method": {"decay": 0.0}}}
    student_is = "medusa_heads or medusa_lm"
    speaks = "heads"

    def __init__(
        self,
        *,
        decay: float = 0.8,
        head_weight: float = 1.0,
        learn: Literal["tokens", "distribution"] = "tokens",
        teacher_share: float = 0.0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
    ) -> None:
        super().__init__(teacher_share=teacher_share, new_tokens=new_tokens, prompt=prompt, heat=heat)
        self.decay = decay
        self.head_weight = head_weight
        self.learn = learn

    def setup(self, parts: Parts) -> None:
        """Start the heads as the target's output layer, and a model of the student's own as the target.

        Raises:
            UserError: the sizes differ, or the rows are too short for the heads.
        """
        super().setup(parts)
        student = parts.student
        student.begin(self.teacher.module)  # type: ignore[operator]
        self._joint = hasattr(student, "target")
        self._count = len((student.heads if self._joint else student).heads)  # type: ignore[arg-type,union-attr]
        if self.context is not None and self._count + 2 > self.context:
            raise UserError(f"medusa: {self._count} heads need rows of {self._count + 2} tokens, not {self.context}")

    def losses(self, rows: Batch, target: Signals, clock: Clock) -> dict[str, Term]:
        """The terms ``head_1`` ... and, for a model that learns along, ``ce`` or ``kd``."""
        labels = rows["labels"]
        if not self._joint:
            return self.of_heads(self.student(target.hidden_states[-1]), target.logits, labels)
        own = forward(self.student, rows, output_hidden_states=True)
        heads = self.student.heads(own.hidden_states[-1])  # type: ignore[operator]
        return {**self.of_heads(heads, target.logits, labels), **self.of_model(own.logits, target.logits, labels)}

    def of_heads(self, heads: Tensor, target: Tensor, labels: Tensor) -> dict[str, Term]:
        """The term of each head, from logits [B, T, K, V] of the heads and [B, T, V] of the target."""
        terms = {}
        for k in range(1, self._count + 1):
            weight = self.head_weight * self.decay**k
            if weight == 0:
                continue
            own = heads[:, : -(k + 1), k - 1]
            if self.learn == "tokens":
                values = cross_entropy(own, labels[:, k + 1 :])
            else:
                values = forward_kl(log_softmax(target[:, k:-1]), log_softmax(own))
            terms[f"head_{k}"] = self.ahead(values, labels, k + 1, weight)
        return terms

    def of_model(self, own: Tensor, target: Tensor, labels: Tensor) -> dict[str, Term]:
        """What keeps a model that learns along: the text, or the teacher where that wrote it."""
        written = self.source(self._clock) == "teacher"
        if written:
            return {"kd": self.ahead(forward_kl(log_softmax(target[:, :-1]), log_softmax(own[:, :-1])), labels, 1)}
        return {"ce": self.ahead(cross_entropy(own[:, :-1], labels[:, 1:]), labels, 1)}

    def reach(self) -> int:
        """The last head's token."""
        return self._count + 1
