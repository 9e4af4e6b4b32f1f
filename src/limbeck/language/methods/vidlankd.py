"""VidLanKD: a teacher that learnt from films hands on what it sees to a student that reads text alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.devices import device_of
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, hidden_term, positions_term, sizes
from limbeck.language.grounding import (
    PIECE,
    Head,
    Memory,
    hinge,
    mean_state,
    neuron_selectivity,
    normalised_cross_entropy,
)
from limbeck.losses import cross_entropy, soft_kl, wide
from limbeck.registry import register


@register("method")
class VidLanKD(EncoderMethod):
    """``MLM + a NST + b CRD`` on last hidden states, of plain text with hidden words.

    Tang et al. 2021 (arXiv 2107.02681): the teacher is the text encoder of method ``video_text``; student and teacher
    read the same text. NST compares how neurons are distributed over the positions of a text, the student's behind a
    head. CRD brings together both states of one text and keeps those of others apart, by vectors of length 1 behind a
    head on either side. ``soft_weight`` and ``l2_weight`` are the paper's other two objectives.

    Args:
        mlm_weight: of the hidden words.
        nst_weight: a, of the neurons' selectivity.
        degree: of its polynomial kernel.
        contrast_weight: b.
        contrast: with a ``memory`` of negatives, as in the paper, on mean states of texts; or within the batch at each
            position, by a ``hinge`` or by the cross-entropy ``xent`` of the released code (tau 0.5).
        margin: of the hinge.
        tau: temperature of ``xent`` and of ``memory``.
        negatives: of the memory, drawn for each text.
        momentum: share of the memory's row that stays when its text is read again.
        soft_weight: of KL(teacher || student) at the hidden words.
        temperature: divides both logits there.
        l2_weight: of the squared distance of states at every position, the student's behind a head.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    fixed = ("nst_weight", "contrast_weight", "l2_weight")

    def __init__(
        self,
        *,
        mlm_weight: float = 1.0,
        nst_weight: float = 50.0,
        degree: int = 2,
        contrast_weight: float = 10.0,
        contrast: Literal["memory", "hinge", "xent"] = "hinge",
        margin: float = 0.5,
        tau: float = 0.1,
        negatives: int = 256,
        momentum: float = 0.5,
        soft_weight: float = 0.0,
        temperature: float = 1.0,
        l2_weight: float = 0.0,
    ) -> None:
        if min(margin, tau, temperature) <= 0 or min(degree, negatives) < 1 or not 0 <= momentum <= 1:
            raise UserError("vidlankd: margin, tau, temperature, degree and negatives are above 0, momentum in [0, 1]")
        weights = (mlm_weight, nst_weight, contrast_weight, soft_weight, l2_weight)
        if min(weights) < 0 or not any(weights):
            raise UserError("vidlankd: no weight may be below 0, and one must be above")
        self.mlm_weight = mlm_weight
        self.nst_weight = nst_weight
        self.degree = degree
        self.contrast_weight = contrast_weight
        self.contrast = contrast
        self.margin = margin
        self.tau = tau
        self.negatives = negatives
        self.momentum = momentum
        self.soft_weight = soft_weight
        self.temperature = temperature
        self.l2_weight = l2_weight
        self.couples_samples = contrast_weight != 0  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """Make the heads, and the memory.

        Raises:
            UserError: the data hides no words, or has a single row where there is to be a memory.
        """
        super().setup(parts)
        if parts.data is not None and parts.data.task != "masked_language":
            raise UserError(f"method 'vidlankd' fills in hidden words (data 'masked_text'), not {parts.data.task}")
        own, width = sizes(parts.student)[0], sizes(self.teacher.module)[0]
        heads = {name: Head(own, width) for name in ("nst", "l2") if getattr(self, f"{name}_weight")}
        if self.contrast_weight:
            heads |= {"student": Head(own, width), "teacher": Head(width, width)}
        if heads:
            self.learners["heads"] = Projectors(heads).to(device_of(parts.student))
        self.memory: Memory | None = None
        self._fresh: tuple[Tensor, Tensor] | None = None
        if self.contrast_weight and self.contrast == "memory":
            source = next(iter(parts.streams.values()))
            ids = torch.cat([source.batch(rows)["id"] for rows in torch.arange(len(source)).split(PIECE)])
            self.memory = Memory(ids, width)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of everything that learns."""
        yield Update(tuple(self.learners), self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:  # type: ignore[override]
        """The terms ``mlm``, ``nst``, ``contrast``, ``soft`` and ``l2``; one whose weight is zero is left out."""
        student, teacher = self.both(batch)
        kept, terms = batch["attention_mask"].bool(), {}
        if self.mlm_weight:
            terms["mlm"] = hidden_term(cross_entropy(student.logits, batch["label"]), batch, self.mlm_weight)
        if self.soft_weight:
            soft = soft_kl(student.logits, teacher.logits, temperature=self.temperature)
            terms["soft"] = hidden_term(soft, batch, self.soft_weight)
        if "heads" in self.learners:
            terms |= self.states(student.hidden_states[-1], teacher.hidden_states[-1], kept, batch, clock)
        return terms

    def states(self, own: Tensor, theirs: Tensor, kept: Tensor, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The terms of the last hidden states [B, T, H] of both."""
        contrasted = [mean_state(s, kept) if self.memory is not None else s for s in (own, theirs)]
        seen = self.learners["heads"]({"nst": own, "l2": own, "student": contrasted[0], "teacher": contrasted[1]})
        terms = {}
        if self.nst_weight:
            values = neuron_selectivity(seen["nst"], theirs, kept, degree=self.degree)
            terms["nst"] = Term.of(values, weight=self.nst_weight)
        if self.contrast_weight:
            vectors = torch.stack([F.normalize(wide(seen[side]), dim=-1) for side in ("student", "teacher")])
            if self.memory is not None:
                values = self.remembered(self.memory, vectors, batch["id"], clock)
                terms["contrast"] = Term.of(values, weight=self.contrast_weight)
            else:
                terms["contrast"] = positions_term(self.within(vectors, kept), batch, self.contrast_weight)
        if self.l2_weight:
            apart = (wide(seen["l2"]) - wide(theirs)).square().mean(-1)
            terms["l2"] = positions_term(apart, batch, self.l2_weight)
        return terms

    def within(self, vectors: Tensor, kept: Tensor) -> Tensor:
        """The contrast within the batch at each position: vectors of both sides [2, B, T, D] -> [B, T]."""
        together = Together(len(kept), kept.device)
        (student, teacher), there = (together.all(side) for side in vectors), together.all(kept)
        if self.contrast == "xent":
            return together.own(normalised_cross_entropy(student, teacher, there, self.tau))
        scores = torch.einsum("itd,jtd->ijt", student, teacher)
        return together.own(hinge(scores, there, there, self.margin))

    def remembered(self, memory: Memory, vectors: Tensor, ids: Tensor, clock: Clock) -> Tensor:
        """The contrast with the memory: vectors of both sides [2, B, D] -> [B]; the memory moves after the step."""
        memory.to(vectors.device)
        scores = memory.scores(vectors, memory.draw(ids, clock, self.negatives), self.tau)
        together = Together(len(ids), ids.device)
        read, now = (together.all(x.detach().transpose(0, 1).contiguous()).transpose(0, 1) for x in (scores, vectors))
        memory.fix(read)
        self._fresh = together.all(ids), now
        return memory.contrast(scores)

    def after_step(self, clock: Clock) -> None:
        """Move the memory's rows of the texts that were read."""
        super().after_step(clock)
        if self.memory is not None and self._fresh is not None:
            self.memory.move(*self._fresh, self.momentum)
            self._fresh = None

    def state_dict(self) -> dict[str, Any]:
        """The memory, where there is one."""
        if self.memory is None:
            return super().state_dict()
        return {**super().state_dict(), "banks": self.memory.banks, "log_z": self.memory.log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if self.memory is not None:
            self.memory.banks, self.memory.log_z = state["banks"], state["log_z"]
