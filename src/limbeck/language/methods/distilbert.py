"""DistilBERT: a masked language model of half the layers, begun with every second one of its teacher's."""

from __future__ import annotations

from typing import Literal

from limbeck.engine.method import Batch, Parts, Term
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, cosine_distance, hidden_term, positions_term, sizes
from limbeck.language.initialise import copy_layers, every
from limbeck.language.losses import token_divergence
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class DistilBERT(EncoderMethod):
    """``5 T^2 KL(p_T || q_T) + 2 CE + 1 (1 - cos(h_s, h_t))`` of a masked language model.

    Sanh et al. 2019 (arXiv 1910.01108): the student begins with every second layer of the teacher; the cosine is that
    of the last hidden states, which are equally wide.

    Args:
        soft_weight: of the divergence.
        hard_weight: of the cross-entropy with the hidden tokens.
        cosine_weight: of the last hidden states' distance, at every position.
        temperature: divides both logits.
        soft_on: the divergence is taken at the ``hidden`` tokens, or at ``all`` positions as in the authors' code.
        from_teacher: begin with the teacher's layers.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        soft_weight: float = 5.0,
        hard_weight: float = 2.0,
        cosine_weight: float = 1.0,
        temperature: float = 2.0,
        soft_on: Literal["hidden", "all"] = "hidden",
        from_teacher: bool = True,
    ) -> None:
        self.soft_weight = soft_weight
        self.hard_weight = hard_weight
        self.cosine_weight = cosine_weight
        self.temperature = temperature
        self.soft_on = soft_on
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Begin with the teacher's layers.

        Raises:
            UserError: widths differ where the states are compared or copied, or the data hides no tokens.
        """
        super().setup(parts)
        if parts.data is not None and parts.data.task != "masked_language":
            raise UserError(f"method 'distilbert' fills in hidden tokens (data 'masked_text'), not {parts.data.task}")
        (own, layers, _), (width, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
        if own != width and (self.cosine_weight > 0 or self.from_teacher):
            says = f"the student is {own} wide and the teacher {width}"
            raise UserError(f"distilbert: {says}: make them alike, or set cosine_weight 0 and from_teacher false")
        if self.from_teacher:
            copy_layers(parts.student, self.teacher.module, every(layers, theirs))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``soft``, ``hard`` and ``cosine``; one whose weight is zero is left out."""
        student, teacher = self.both(batch)
        terms = {}
        if self.soft_weight > 0:
            soft = token_divergence(student.logits, teacher.logits, temperature=self.temperature)
            of = hidden_term if self.soft_on == "hidden" else positions_term
            terms["soft"] = of(soft, batch, self.soft_weight)
        if self.hard_weight > 0:
            terms["hard"] = hidden_term(cross_entropy(student.logits, batch["label"]), batch, self.hard_weight)
        if self.cosine_weight > 0:
            apart = cosine_distance(student.hidden_states[-1], teacher.hidden_states[-1])
            terms["cosine"] = positions_term(apart, batch, self.cosine_weight)
        return terms
