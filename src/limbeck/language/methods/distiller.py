"""Distiller: a text classifier taught by labels, soft targets, and any of several distances between layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.devices import device_of
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, cosine_distance, positions_term, sizes
from limbeck.language.information import Critic, Critics, interpolated_bound
from limbeck.language.layers import layer_map
from limbeck.language.methods.pkd import patience
from limbeck.language.mixup import mixed, mixing_share, partners
from limbeck.losses import IGNORE, cross_entropy, kl, log_softmax, soft_kl, wide
from limbeck.models.forward import Signals
from limbeck.registry import register


@register("method")
class Distiller(EncoderMethod):
    """``CE + a T^2 KL(p_T || q_T) + b sum over pairs of layers of L_int(h_i, g_j)`` of a text classifier.

    He et al. 2021 (arXiv 2109.11105), who compare the choices of each part. ``L_int`` is a distance of states at every
    position (``mse``, ``cosine``, or ``ce``: T^2 times the cross-entropy of the softmaxed states, less the teacher's
    entropy), one of the first token's states (``pkd``: of the normalised ones), or minus a bound of the mutual
    information of the texts' mean states, *MI-alpha* (``mi``), whose critic learns with the student; see
    :func:`limbeck.language.information.interpolated_bound`. A linear map takes the student's states to the teacher's
    width where it differs. Rewording of the texts belongs to the data (``augment``), mixing of embeddings is here.

    Args:
        ce_weight: of the labels.
        kd_weight: a, of the soft targets.
        temperature: T, divides both logits, and both states of ``ce``.
        internal: L_int.
        internal_weight: b.
        layers: who learns from which: every k-th (``skip``), the ``last``, embedding and last alone (``emb_last``), or
            pairs ``{student: teacher}`` where 0 is the embedding.
        alpha: of ``mi``: 1 is InfoNCE (low variance, at most log of the batch size), 0 NWJ (low bias).
        baseline: of ``mi``, what the bound is taken against: 1, or what a second small network ``learned``.
        critic_width: neurons of the critic.
        mixup: the largest share of another text's embeddings in a text's own, drawn evenly from 0; labels are mixed
            alike, and the teacher reads the same mixture.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    fixed = ("internal_weight", "mixup")

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 2.0,
        internal: Literal["mse", "cosine", "pkd", "ce", "mi"] = "mi",
        internal_weight: float = 0.1,
        layers: Literal["skip", "last", "emb_last"] | dict[int, int] = "skip",
        alpha: float = 0.5,
        baseline: Literal["constant", "learned"] = "constant",
        critic_width: int = 128,
        mixup: float = 0.0,
    ) -> None:
        if not 0 <= alpha <= 1 or not 0 <= mixup <= 1:
            raise UserError(f"distiller: alpha and mixup must be in [0, 1], not {alpha} and {mixup}")
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.internal = internal
        self.internal_weight = internal_weight
        self.layers: Any = layers
        self.alpha = alpha
        self.baseline = baseline
        self.critic_width = critic_width
        self.mixup = mixup
        self.couples_samples = mixup > 0 or (internal == "mi" and internal_weight != 0)  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """Map the layers; make projectors where widths differ, or the critics.

        Raises:
            UserError: the data has no classes, or a layer is not there.
        """
        super().setup(parts)
        if parts.data is not None and parts.data.task != "classification":
            raise UserError(
                f"method 'distiller' teaches classes of texts (data 'labelled_text'), not {parts.data.task}"
            )
        (own, count, _), (width, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
        kind = {int(a): int(b) for a, b in self.layers.items()} if isinstance(self.layers, Mapping) else self.layers
        self.pairs = layer_map(kind, count, theirs)
        helpers: dict[str, nn.Module] = {}
        if self.internal_weight and self.internal == "mi":
            learned = self.baseline == "learned"
            helpers["critics"] = Critics([Critic(own, width, self.critic_width, learned=learned) for _ in self.pairs])
        elif self.internal_weight and own != width:
            helpers["projectors"] = Projectors({str(n): nn.Linear(own, width) for n in range(len(self.pairs))})
        self.learners |= {role: helper.to(device_of(parts.student)) for role, helper in helpers.items()}

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of everything that learns."""
        yield Update(tuple(self.learners), self.terms(self.mixture(batch, clock)))

    def mixture(self, batch: Batch, clock: Clock) -> Batch:
        """The batch with what is mixed into it, if anything: ``share`` [B] of each text is its own, and ``other``."""
        if not self.mixup:
            return batch
        other = partners(batch, clock)
        seen = batch["attention_mask"] | other["attention_mask"]
        return {**batch, "attention_mask": seen, "share": mixing_share(batch, clock, self.mixup), "other": other}

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce``, ``kd`` and ``internal``; one whose weight is zero is left out."""
        student, teacher = self.both(batch)
        terms = {}
        if self.ce_weight:
            values, known = cross_entropy(student.logits, batch["label"]), batch["label"] != IGNORE
            if "other" in batch:
                share, label = batch["share"], batch["other"]["label"]
                values = share * values + (1 - share) * cross_entropy(student.logits, label)
                known = known & (label != IGNORE)
            terms["ce"] = Term.of(values, known, weight=self.ce_weight, unit="labelled")
        if self.kd_weight:
            soft = soft_kl(student.logits, teacher.logits, temperature=self.temperature)
            terms["kd"] = Term.of(soft, weight=self.kd_weight)
        if self.internal_weight:
            states = [(student.hidden_states[i], teacher.hidden_states[j]) for i, j in self.pairs]
            terms["internal"] = self.between(states, batch)
        return terms

    def both(self, batch: Batch) -> tuple[Signals, Signals]:
        """Signals of student and teacher, with ``hidden_states``, on texts as they are or mixed."""
        if "other" not in batch:
            return super().both(batch)
        other = batch["other"]["input_ids"], batch["share"]
        with mixed(self.student, *other), mixed(self.teacher.module, *other):
            return super().both(batch)

    def between(self, states: list[tuple[Tensor, Tensor]], batch: Batch) -> Term:
        """The term of the pairs of states [B, T, H_s] and [B, T, H_t], their sum over the pairs."""
        own, theirs = [s for s, _ in states], [t for _, t in states]
        if self.internal == "mi":
            bound = self.information(*([averaged(h, batch["attention_mask"]) for h in side] for side in (own, theirs)))
            return Term.of(-bound, weight=self.internal_weight)
        if "projectors" in self.learners:
            own = list(self.learners["projectors"]({str(n): h for n, h in enumerate(own)}).values())
        apart = [distance(self.internal, h, g, self.temperature) for h, g in zip(own, theirs, strict=True)]
        total = sum(apart[1:], start=apart[0])
        if self.internal == "pkd":
            return Term.of(total, weight=self.internal_weight)
        return positions_term(total, batch, self.internal_weight)

    def information(self, own: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """The bound in nats, summed over pairs of layers, of each of this process's texts: [B, H] each -> [B]."""
        rows = Together(len(own[0]), own[0].device)
        scored = self.learners["critics"]([rows.all(h) for h in own], [rows.all(g) for g in theirs])
        bounds = [interpolated_bound(scores, baseline, self.alpha) for scores, baseline in scored]
        return rows.own(sum(bounds[1:], start=bounds[0]))


def averaged(states: Tensor, mask: Tensor) -> Tensor:
    """The mean state of each text, [B, T, H] and a mask [B, T] -> [B, H]."""
    kept = mask.to(wide(states).dtype)[..., None]
    return (wide(states) * kept).sum(1) / kept.sum(1)


def distance(kind: str, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """One of the distances between states [B, T, H]: at each position [B, T], for ``pkd`` of the first [B].

    ``mse`` is the mean over the width, ``pkd`` the squared distance of the states divided by their lengths.
    """
    student, teacher = wide(student), wide(teacher)
    if kind == "mse":
        return (student - teacher).square().mean(-1)
    if kind == "cosine":
        return cosine_distance(student, teacher)
    if kind == "pkd":
        return patience(student, teacher)
    return temperature**2 * kl(log_softmax(teacher, temperature), log_softmax(student, temperature))
