"""MiniLM: the student's last layer attends, and relates positions, as one layer of its teacher does."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Parts, Term
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, positions_term
from limbeck.language.losses.relations import relation_kl, relations
from limbeck.models.attention import AttentionTaps, scores, split_heads
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class MiniLM(EncoderMethod):
    """MiniLM (Wang et al. 2020, arXiv 2002.10957) and MiniLMv2 (2012.15828): relations of the student's last layer.

    ``v1``: KL of the attention maps, and of the value relations ``softmax(V V^T / sqrt(d))``, head by head. ``v2``: KL
    of ``softmax(X X^T / sqrt(d_r))`` for queries, keys and values, whose heads are put side by side and split anew into
    relation heads, so that the numbers of heads may differ. Means over heads and over the positions that are there; no
    labels, and no map between widths. What no such relation sees (the last layer's feed-forward part, the head) learns
    in a later phase.

    Args:
        version: which of the two.
        teacher_layer: counted from 0, negative ones from the end; of 24 layers 18 to 20 are good, says the paper.
        relation_heads: of ``v2``; by default the teacher's heads.
    """

    needs = {"teacher": {"hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        version: Literal["v1", "v2"] = "v2",
        teacher_layer: int = -1,
        relation_heads: int | None = None,
    ) -> None:
        self.version = version
        self.teacher_layer = teacher_layer
        self.relation_heads = relation_heads

    def setup(self, parts: Parts) -> None:
        """Tap both attentions.

        Raises:
            UserError: a layer that the teacher lacks, or heads that do not fit.
        """
        super().setup(parts)
        self._own = AttentionTaps(parts.student, [-1])
        self._theirs = AttentionTaps(self.teacher.module, [self.teacher_layer], detach=True)
        heads, others = self._own.heads, self._theirs.heads
        if self.version == "v1" and (heads, self._own.groups) != (others, self._theirs.groups):
            raise UserError(f"minilm v1 compares head by head; the student has {heads}, the teacher {others}: take v2")
        self._heads = self.relation_heads or others

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``attention`` and ``values`` of v1, ``queries``, ``keys`` and ``values`` of v2."""
        forward(self.student, batch)
        self.teacher.compute(batch)
        (own,), (theirs,) = self._own.pop(), self._theirs.pop()
        mask = batch["attention_mask"]
        if self.version == "v1":
            pairs = {"attention": (self._scores(own), self._scores(theirs)), "values": self._pair(own[2], theirs[2])}
        else:
            parts = zip(("queries", "keys", "values"), own, theirs, strict=True)
            pairs = {name: self._pair(s, t) for name, s, t in parts}
        return {name: positions_term(relation_kl(s, t, mask), batch) for name, (s, t) in pairs.items()}

    def _scores(self, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return scores(split_heads(qkv[0], self._own.heads), split_heads(qkv[1], self._own.groups))

    def _pair(self, own: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        heads = self._heads if self.version == "v2" else self._own.groups
        for whose, values in (("student", own), ("teacher", theirs)):
            if values.shape[-1] % heads:
                says = f"queries, keys or values {values.shape[-1]} wide"
                raise UserError(f"minilm: {heads} relation_heads do not share the {whose}'s {says} evenly")
        return relations(own, heads), relations(theirs, heads)
