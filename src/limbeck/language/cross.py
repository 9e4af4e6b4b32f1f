"""What methods share whose teacher may read other tokens than the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from limbeck.engine.health import Alarm, Series, pooled
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.crossing import Bridge, By, Crossing, straight
from limbeck.language.losses import scored, token_term
from limbeck.models.forward import Signals

LITTLE = 0.5
"""Below this share of learnt tokens that a teacher can be compared at, a run warns."""


class CrossMethod(TokenMethod):
    """Base of the methods whose teachers may have other tokenizers. A subclass repeats ``needs`` and ``live``.

    A teacher with the student's tokenizer reads the rows as they are. One with another reads the same text in its own
    tokens, and is compared at the smallest spans that both cover by whole tokens (:mod:`limbeck.language.crossing`).
    """

    needs = {"teacher": {"logits"}}
    live = True
    by: By = "spans"
    """What is compared with what; see :class:`~limbeck.language.crossing.Bridge`."""

    def setup(self, parts: Parts) -> None:
        """Build a bridge to each teacher with another tokenizer.

        Raises:
            UserError: such a teacher does not have its tokenizer with it, or the data does not.
        """
        super().setup(parts)
        words = next((s.tokenizer for s in parts.streams.values() if hasattr(s, "tokenizer")), None)
        self.bridges: dict[str, Bridge] = {}
        for role, teacher in self.teachers.items():
            if self.tokenizers[role] != self.own_tokenizer:
                self.bridges[role] = _bridge(role, teacher, words, self.by)

    def shared(self, own: int, theirs: int, role: str = "teacher") -> int:
        """How many leading entries of both logits mean the same; the student's own where the tokens are others."""
        return super().shared(own, theirs, role) if self._alike(role) else own

    def _alike(self, role: str) -> bool:
        return self.tokenizers[role] is None or self.tokenizers[role] == self.own_tokenizer

    def cross(self, batch: Batch, role: str = "teacher") -> Crossing:
        """A teacher's side of a batch."""
        return self.bridges[role](batch) if role in self.bridges else straight(batch)

    def asked(self, crossing: Crossing, role: str = "teacher", **kwargs: bool) -> Signals:
        """What a teacher says of its side."""
        return self.teachers[role].compute(crossing.batch, **kwargs)

    def fitting(self, logits: Tensor, theirs: Tensor, role: str = "teacher") -> tuple[Tensor, Tensor]:
        """Both logits without the padding of one vocabulary; as they are where the vocabularies are unlike."""
        return self.alike(logits, theirs, role) if self._alike(role) else (logits, theirs)

    def span_term(self, values: Tensor, crossing: Crossing, role: str = "teacher", weight: float = 1.0) -> Term:
        """The term of values per span [B, S]."""
        names = {"unit": _unit("spans", role), "rows": _unit("rows with spans", role)}
        return token_term(values, crossing.mask, reduction=self.reduction, weight=weight, max_len=self.max_len, **names)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the spans that each teacher is compared at, and the rows that have one."""
        counts = super().count(batch)
        for role in self.teachers:
            mask = self.cross(batch, role).mask
            counts |= {_unit("spans", role): mask.sum(), _unit("rows with spans", role): mask.any(1).sum()}
        return counts

    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """The share of learnt tokens that lie in spans which are compared, by teacher."""
        found = {}
        tokens = scored(batch["labels"][:, 1:]).sum()
        for role in self.bridges:
            crossing = self.cross(batch, role)
            inside = (crossing.student[..., 1] - crossing.student[..., 0])[crossing.mask].sum()
            found[_unit("compared", role)] = Term(inside.float(), tokens, unit="tokens")
        return found

    def alarms(self) -> Sequence[Alarm]:
        """A warning where little of the text can be compared."""
        return [partial(_little, name=_unit("compared", role)) for role in self.bridges]


def _little(series: Mapping[str, Series], name: str) -> str | None:
    share = pooled(series[name], len(series[name])) if series.get(name) else 1.0
    if share >= LITTLE:
        return None
    return (
        f"{name}: {share:.0%} of the learnt tokens can be compared with the teacher's; the rest is text beyond what it "
        "reads at once, or that one of the tokenizers cannot say"
    )


def _bridge(role: str, teacher: Teacher, words: object, by: By) -> Bridge:
    if teacher.tokenizer is None:
        raise UserError(
            f"{role} has another tokenizer than the student, and it is not stored with it: give a folder that has "
            "tokenizer.json beside the weights"
        )
    if words is None:
        raise UserError("the data does not say its tokenizer, which a teacher with another one needs to read its rows")
    config = getattr(teacher.module, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    return Bridge(words, teacher.tokenizer, limit=limit, by=by)


def _unit(name: str, role: str) -> str:
    return name if role == "teacher" else f"{name} of {role}"
