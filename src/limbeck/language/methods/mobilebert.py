"""MobileBERT: a thin network learns block by block what the states and the attention of an equally deep one are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, hidden_term, positions_term, sizes
from limbeck.language.initialise import copy_around
from limbeck.language.losses.relations import relation_kl, state_mse
from limbeck.losses import label_loss, same_shape, soft_kl, wide
from limbeck.models.attention import AttentionTaps, projections, scores, split_heads
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class MobileBERT(EncoderMethod):
    """MobileBERT (Sun et al. 2020, arXiv 2004.02984): knowledge transfer by blocks, then pre-training distillation.

    Stage ``transfer``: ``MSE(H_l, G_l) + mean_h KL(a_lh || b_lh)`` between the states of block l, equally wide in both
    networks, and between the attention of each head. Progressively, only block l is trained while the time is l's, and
    the learning rate's schedule begins anew with each; jointly, all blocks are, all the time. What lies around the
    blocks is the teacher's and stays so. Stage ``distil``: ``alpha CE + (1 - alpha) KL`` of the hidden tokens, the
    whole student being trained. Next-sentence prediction, a term of the paper's, is left out: no data here has pairs
    of sentences that follow each other.

    Args:
        stage: which of the two; a recipe runs them one after the other with ``phases``.
        schedule: how the blocks take turns in the first.
        states: compared as they are (``plain``), or ``decomposed``: normalised over the width, beside the distance of
            means and of variances, which the paper finds more stable.
        attention_weight: of the attention's divergence beside the states' distance.
        alpha: weight of the true tokens in the second; the rest is the teacher's.
        from_teacher: the first begins with the teacher's embedding and head.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        stage: Literal["transfer", "distil"] = "transfer",
        schedule: Literal["progressive", "joint"] = "progressive",
        states: Literal["plain", "decomposed"] = "plain",
        attention_weight: float = 1.0,
        alpha: float = 0.5,
        from_teacher: bool = True,
    ) -> None:
        self.stage = stage
        self.schedule = schedule
        self.states = states
        self.attention_weight = attention_weight
        self.alpha = alpha
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Find the blocks, tap the attention, and begin with what is around the teacher's blocks.

        Raises:
            UserError: student and teacher are not equally wide and deep, with equally many heads.
        """
        super().setup(parts)
        if self.stage == "distil":
            return
        own, theirs = sizes(parts.student), sizes(self.teacher.module)
        if own != theirs:
            says = "width, layers and heads of the student are {}, {}, {}, of the teacher {}, {}, {}"
            raise UserError(f"mobilebert: {says.format(*own, *theirs)}: make them alike (the width inside may differ)")
        # The first number in a path is the block's; one of stacked feed-forward layers has a second.
        found = [re.match(r".*?\.\d+(?=\.)", place.q) for place in projections(parts.student)]
        self.blocks = [match[0] for match in found if match]
        self._own = AttentionTaps(parts.student, range(own[1]))
        self._theirs = AttentionTaps(self.teacher.module, range(own[1]), detach=True)
        if self.from_teacher:
            copy_around(parts.student, self.teacher.module)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the blocks whose time it is, or of the whole student."""
        if self.stage == "distil":
            yield Update("student", self.distil(batch))
        else:
            yield Update("student", self.transfer(batch, self.due(clock)))

    def due(self, clock: Clock) -> list[int]:
        """The blocks that are trained now: one after the other for equally long, or all."""
        count = len(self.blocks)
        return [clock.step * count // max(clock.total, 1)] if self.schedule == "progressive" else list(range(count))

    def pace(self, clock: Clock) -> float:
        """The schedules of the learning rate begin anew with each block."""
        if self.stage == "distil" or self.schedule == "joint":
            return clock.progress
        return clock.progress * len(self.blocks) % 1

    def transfer(self, batch: Batch, due: list[int]) -> dict[str, Term]:
        """The terms ``states`` and ``attention``, sums over the blocks ``due``, which alone take a gradient."""
        with frozen(self._others(due)):
            own = forward(self.student, batch, output_hidden_states=True).hidden_states
        theirs = self.teacher(batch, output_hidden_states=True).hidden_states
        apart = decomposed_mse if self.states == "decomposed" else state_mse
        states = torch.stack([apart(own[i + 1], theirs[i + 1]) for i in due]).sum(0)
        terms = {"states": positions_term(states, batch)}
        ours, others = self._own.pop(), self._theirs.pop()
        if self.attention_weight > 0:
            mask = batch["attention_mask"]
            kls = [relation_kl(self._scores(ours[i]), self._scores(others[i]), mask) for i in due]
            terms["attention"] = positions_term(torch.stack(kls).sum(0), batch, self.attention_weight)
        return terms

    def distil(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce`` and ``kd``, of hidden tokens or of labelled texts; one whose weight is zero is left out."""
        logits, terms = forward(self.student, batch).logits, {}
        if self.alpha > 0:
            terms["ce"] = label_loss(logits, batch, weight=self.alpha)
        if self.alpha < 1:
            soft = soft_kl(logits, self.teacher.compute(batch).logits, temperature=1.0)
            weight = 1 - self.alpha
            terms["kd"] = Term.of(soft, weight=weight) if soft.dim() == 1 else hidden_term(soft, batch, weight)
        return terms

    def _others(self, due: list[int]) -> nn.ParameterList:
        """What must not move: lower blocks, whose gradient would flow from those due, and what is around the blocks."""
        moving = tuple(f".{self.blocks[i]}." for i in due)
        named = self.student.named_parameters()
        return nn.ParameterList([p for name, p in named if not any(block in f".{name}" for block in moving)])

    def _scores(self, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return scores(split_heads(qkv[0], self._own.heads), split_heads(qkv[1], self._own.groups))


def decomposed_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """``MSE(LN(s), LN(t)) + |mean s - mean t| + |var s - var t|`` over the width, [..., H] -> [...].

    Sun et al. 2020 (arXiv 2004.02984, appendix): the discrepancy of normalised feature maps and of their statistics.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    own, theirs = wide(student), wide(teacher)
    normal = state_mse(*(F.layer_norm(x, x.shape[-1:]) for x in (own, theirs)))
    means = (own.mean(-1) - theirs.mean(-1)).abs()
    return normal + means + (own.var(-1, correction=0) - theirs.var(-1, correction=0)).abs()
