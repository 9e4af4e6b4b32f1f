"""Dual-space distillation: both models' hidden states under one head, in the student's space and in the teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.cross import CrossMethod
from limbeck.language.crossing import Crossing
from limbeck.language.losses import scored, token_divergence, token_term
from limbeck.losses import cross_entropy
from limbeck.models.forward import forward, unwrapped
from limbeck.registry import register


@register("method")
class DSKD(CrossMethod):
    """``(1 - rate) CE(y, q) + rate (D(sg[p_ts], q) + CE(y, p_ts) + D(p, q_st))``.

    Zhang et al. 2024, "Dual-Space Knowledge Distillation for Large Language Models" (arXiv 2406.17328). ``p_ts`` are
    the teacher's hidden states, projected to the student's width, under the student's head (held still); ``q_st`` the
    student's under the teacher's. The projectors are learners of their own and are not delivered.

    With unlike tokenizers an attention brings the hidden states of one model to the positions of the other. The paper's
    may look ahead, and its values hold the token to be predicted; this one sees what has been read by then, because a
    target that knows the answer is no more than a label.

    Args:
        rate: of the distillation; the rest is cross-entropy with the text.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    same_view = False
    live = True
    dial = "rate"

    def __init__(self, *, rate: float = 0.5, **rest: Any) -> None:
        super().__init__(**rest)
        self.rate = rate

    def setup(self, parts: Parts) -> None:
        """Make the projectors.

        Raises:
            UserError: a model does not say which layer gives its logits.
        """
        super().setup(parts)
        ours, theirs = head_of(parts.student).weight.shape[1], head_of(self.teacher.module).weight.shape[1]
        maps: dict[str, nn.Module] = {"to_student": nn.Linear(theirs, ours), "to_teacher": nn.Linear(ours, theirs)}
        if self.bridges:
            # What asks knows the token that was read as well as what was made of it.
            maps["query"] = nn.Linear(2 * ours, theirs)
        self.learners["projectors"] = Maps(maps)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of student and projectors."""
        yield Update(("student", "projectors"), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce``, ``student_space``, ``projected`` and ``teacher_space``."""
        crossing = self.cross(batch)
        ours = forward(self.student, batch, output_hidden_states=True)
        theirs = self.asked(crossing, output_hidden_states=True)
        own, other = ours.hidden_states[-1], theirs.hidden_states[-1].to(ours.logits.dtype)
        to_student, to_teacher = self.moved(batch, crossing, own, other)
        logits, labels = ours.logits[:, :-1], batch["labels"][:, 1:]
        p_ts = under(head_of(self.student), to_student)[:, :-1]
        q_st = under(head_of(self.teacher.module), to_teacher)[:, :-1]
        terms = {"ce": self.term(cross_entropy(logits, labels), labels, 1 - self.rate)} if self.rate < 1 else {}
        if self.rate > 0:
            values = self.apart(logits, p_ts.detach())
            terms["student_space"] = self.term(values, labels, self.rate)
            terms["projected"] = self.term(cross_entropy(p_ts, labels), labels, self.rate)
            terms["teacher_space"] = self._there(q_st, theirs.logits[:, :-1], crossing)
        return terms

    def apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence per token."""
        return token_divergence(
            student,
            teacher,
            direction=self.direction,
            temperature=self.temperature,
            beta=self.beta,
            skew=self.skew,
            alpha=self.order,
        )

    def moved(self, batch: Batch, crossing: Crossing, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's hidden states at the student's positions and width, and the student's at the teacher's."""
        maps: Any = self.learners["projectors"]
        if not self.bridges:
            return maps("to_student", other), maps("to_teacher", own)
        embedded = unwrapped(self.student).get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
        scores = maps("query", torch.cat([embedded, own], -1).detach()) @ other.transpose(1, 2)
        scores = scores / math.sqrt(other.shape[-1])
        to_own = attention(scores, batch, crossing.batch, crossing.student_read, crossing.teacher_read)
        back = scores.transpose(1, 2)
        to_other = attention(back, crossing.batch, batch, crossing.teacher_read, crossing.student_read)
        return maps("to_student", to_own @ other), maps("to_teacher", to_other @ own)

    def _there(self, q_st: Tensor, theirs: Tensor, crossing: Crossing) -> Term:
        """The divergence in the teacher's space, at the tokens that the teacher's rows learn."""
        mask = scored(crossing.batch["labels"][:, 1:])
        names = {"unit": "teacher tokens", "rows": "teacher rows"}
        return token_term(
            self.apart(q_st, theirs), mask, reduction=self.reduction, weight=self.rate, max_len=self.max_len, **names
        )

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the tokens that the teacher's rows learn, and its rows that have one."""
        mask = scored(self.cross(batch).batch["labels"][:, 1:])
        return {**super().count(batch), "teacher tokens": mask.sum(), "teacher rows": mask.any(1).sum()}


class Maps(nn.ModuleDict):
    """Layers called by name: a strategy's wrapper passes on calls, and not what is looked up."""

    def forward(self, name: str, values: Tensor) -> Tensor:
        """What the layer of that name makes of the values."""
        found: Tensor = self[name](values)
        return found


def attention(scores: Tensor, asking: Batch, asked: Batch, read: Tensor, their_read: Tensor) -> Tensor:
    """Weights [B, T, U] over the tokens that end where the asking one does, or before; 0 for one that has none."""
    seen = (their_read[:, None, :] <= read[:, :, None]) & asked["attention_mask"].bool()[:, None, :]
    seen = seen & asking["attention_mask"].bool()[:, :, None]
    weights = scores.masked_fill(~seen, -1e9).softmax(-1)
    return weights.masked_fill(~seen, 0.0)


def head_of(module: nn.Module) -> nn.Linear:
    """The layer that gives a language model's logits.

    Raises:
        UserError: the model does not say.
    """
    found = getattr(unwrapped(module), "get_output_embeddings", lambda: None)()
    if not isinstance(found, nn.Linear):
        name = type(unwrapped(module)).__name__
        raise UserError(f"{name} does not say which layer gives its logits: dskd needs get_output_embeddings()")
    return found


def under(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits of hidden states under a head that is held still."""
    bias = None if head.bias is None else head.bias.detach()
    return F.linear(hidden, head.weight.detach(), bias)
