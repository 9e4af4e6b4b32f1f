"""Alexa Teacher Model: a teacher pre-trained in two stages is distilled on a mix of text, its student then tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from limbeck.engine.devices import device_of
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, hidden_term, positions_term, sizes
from limbeck.language.layers import layer_map
from limbeck.losses import IGNORE, cross_entropy, log_softmax, same_shape, wide
from limbeck.models.forward import forward, unwrapped
from limbeck.registry import register


@register("method")
class AlexaTeacher(EncoderMethod):
    """``mlm CE + soft H(p_T, q_T) + hidden MSE`` on text, ``joint (CE_intent + slot CE_slot)`` on labelled commands.

    FitzGerald et al. 2022 (arXiv 2206.07808). One class serves every stage of their pipeline; the data says what is
    learnt: a stream of text with hidden words (``commands`` with ``part: mix``) from a masked language model as
    teacher, a stream with slots from its labels. A teacher's first stage is ``supervised`` on general text; its second
    has that one as teacher, ``from_teacher`` and no ``soft_weight``, on text of the domain. A student has a phase that
    distils and one that tunes. The paper does not say how its terms are weighted.

    Args:
        mlm_weight: of the hidden words themselves.
        soft_weight: of the cross-entropy with the teacher's distribution at the hidden words.
        temperature: T, divides both logits there.
        hidden_weight: of the squared distance of hidden states at every position, through a linear map where widths
            differ.
        layers: which layers' states are compared, as in ``distiller``.
        joint_weight: of the labelled commands.
        slot_weight: of the slots' cross-entropy beside the intents'.
        from_teacher: begin with the teacher's weights, which must be of the student's shape.
    """

    needs = {"teacher": {"hidden_states"}}
    live = True
    streams = True
    fixed = ("hidden_weight",)
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {"alone": {"method": {"soft_weight": 0.0, "hidden_weight": 0.0}}}

    def __init__(
        self,
        *,
        mlm_weight: float = 1.0,
        soft_weight: float = 1.0,
        temperature: float = 1.0,
        hidden_weight: float = 0.0,
        layers: Literal["skip", "last", "emb_last"] = "skip",
        joint_weight: float = 1.0,
        slot_weight: float = 1.0,
        from_teacher: bool = False,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"alexa_teacher: temperature must be above 0, not {temperature}")
        self.mlm_weight = mlm_weight
        self.soft_weight = soft_weight
        self.temperature = temperature
        self.hidden_weight = hidden_weight
        self.layers: Literal["skip", "last", "emb_last"] = layers
        self.joint_weight = joint_weight
        self.slot_weight = slot_weight
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Map the layers, and begin with the teacher's weights where that is asked for.

        Raises:
            UserError: the teacher is of another shape, or what it says is not compared though there is text.
        """
        super().setup(parts)
        (own, count, _), (width, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
        self.pairs: list[tuple[int, int]] = []
        if self.hidden_weight:
            self.pairs = layer_map(self.layers, count, theirs)
            if own != width:
                maps = Projectors({str(n): nn.Linear(own, width) for n in range(len(self.pairs))})
                self.learners["projectors"] = maps.to(device_of(parts.student))
        if self.from_teacher:
            _begin(parts.student, self.teacher.module)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of everything that learns."""
        yield Update(tuple(self.learners), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``mlm``, ``soft`` and ``hidden`` of a stream of text, ``intent`` and ``slots`` of one of commands."""
        found: dict[str, Term] = {}
        for stream in _streams(batch):
            found |= self.commands(stream) if "slots" in stream else self.text(stream)
        return found

    def text(self, batch: Batch) -> dict[str, Term]:
        """The terms of hidden words; one whose weight is zero is left out."""
        taught = self.soft_weight or self.hidden_weight
        if not (taught or self.mlm_weight):
            return {}
        asked: dict[str, Any] = {"output_hidden_states": bool(self.hidden_weight)}
        student = forward(self.student, batch, **asked, **_words(self.student))
        terms = {}
        if self.mlm_weight:
            terms["mlm"] = hidden_term(cross_entropy(student.logits, batch["label"]), batch, self.mlm_weight)
        if not taught:
            return terms
        teacher = self.teacher(batch, **asked, **_words(self.teacher.module))
        if self.soft_weight:
            soft = soft_cross_entropy(student.logits, teacher.logits, self.temperature)
            terms["soft"] = hidden_term(soft, batch, self.soft_weight)
        if self.hidden_weight:
            states = {str(n): student.hidden_states[i] for n, (i, _) in enumerate(self.pairs)}
            if "projectors" in self.learners:
                states = self.learners["projectors"](states)
            apart = [
                (wide(states[str(n)]) - wide(teacher.hidden_states[j])).square().mean(-1)
                for n, (_, j) in enumerate(self.pairs)
            ]
            terms["hidden"] = positions_term(sum(apart[1:], start=apart[0]), batch, self.hidden_weight)
        return terms

    def commands(self, batch: Batch) -> dict[str, Term]:
        """The terms ``intent``, of each command, and ``slots``, of each of its words."""
        if not self.joint_weight:
            return {}
        signals = forward(self.student, batch)
        if "slot_logits" not in signals:
            raise UserError("alexa_teacher: the student marks no slots; take model 'tagger'")
        intent = cross_entropy(signals.logits, batch["label"])
        terms = {"intent": Term.of(intent, batch["label"] != IGNORE, weight=self.joint_weight, unit="commands")}
        if self.slot_weight:
            values, weight = cross_entropy(signals.slot_logits, batch["slots"]), self.joint_weight * self.slot_weight
            terms["slots"] = Term.of(values, batch["slots"] != IGNORE, weight=weight, unit="slots")
        return terms

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Items of all streams: hidden words (``labelled``) and places of text, ``commands`` and their ``slots``."""
        counts: dict[str, int | Tensor] = {}
        for stream in _streams(batch):
            known = (stream["label"] != IGNORE).sum()
            if "slots" in stream:
                counts |= {"commands": known, "slots": (stream["slots"] != IGNORE).sum()}
            else:
                counts |= {"labelled": known, "positions": stream["attention_mask"].sum()}
        return {"samples": sum(len(stream["id"]) for stream in _streams(batch)), **counts}


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``-T^2 sum_v p_v log q_v`` of tempered distributions, logits [..., V] twice -> [...]."""
    same_shape(student=student, teacher=teacher)
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return -(temperature**2) * (log_p.exp() * log_q).sum(-1)


def _streams(batch: Batch) -> list[Batch]:
    return [batch] if "id" in batch else list(batch.values())


def _words(module: nn.Module) -> dict[str, bool]:
    """What a model is told so that it gives the logits of words: one with other heads too must be told."""
    return {"words": True} if _language_model(module) is not unwrapped(module) else {}


def _language_model(module: nn.Module) -> nn.Module:
    """The masked language model inside a tagger, or the module itself."""
    inner = unwrapped(module)
    within = getattr(inner, "encoder", None)
    return within if isinstance(within, nn.Module) and hasattr(inner, "slot") else inner


def _begin(student: nn.Module, teacher: nn.Module) -> None:
    """Give the student the weights of the teacher's masked language model."""
    own, theirs = sizes(student), sizes(teacher)
    weights, given = _language_model(student).state_dict(), _language_model(teacher).state_dict()
    shapes = [{name: value.shape for name, value in state.items()} for state in (weights, given)]
    if own != theirs or shapes[0] != shapes[1]:
        says = f"width, layers, heads {own} and {theirs}" if own != theirs else "other weights"
        raise UserError(f"alexa_teacher: from_teacher needs a student of the teacher's shape, these have {says}")
    _language_model(student).load_state_dict(given)
