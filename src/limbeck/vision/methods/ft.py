"""Factor transfer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Term, Update
from limbeck.losses import mse
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen
from limbeck.vision.losses.factors import factor
from limbeck.vision.paraphrase import Paraphraser, Translator
from limbeck.vision.shapes import as_map, same_cells


@register("method")
class FT(FeatureTaught):
    """Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim et al. 2018, arXiv 1802.04977).

    First a paraphraser, an autoencoder of the teacher's last map, learns to give that map back; it does so alone, in
    the first steps of the run, while the student waits. From then on it is frozen, and the student and its translator
    learn ``L = CE + beta mean |F_s / |F_s| - F_t / |F_t||^p``, where the factor ``F_t`` is what lies in the middle of
    the paraphraser and ``F_s`` is the translator's. Schedules run over the whole run: the student starts where they
    are when the paraphraser is done.

    Args:
        beta: weight of the factors.
        p: power of their difference.
        rate: channels of a factor over those of the teacher's map (the paraphrase rate k).
        paraphraser_share: share of the run's steps that train the paraphraser (5 of 168 epochs in the authors' code).
    """

    look = "last"
    fixed = ("rate",)

    def __init__(
        self,
        *,
        beta: float = 500.0,
        p: float = 1.0,
        rate: float = 0.5,
        paraphraser_share: float = 0.03,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.p = p
        self.rate = rate
        self.paraphraser_share = paraphraser_share

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The student's translator and the teacher's paraphraser."""
        own, other = as_map(s[-1]).shape[1], as_map(t[-1]).shape[1]
        factors = max(round(self.rate * other), 1)
        return {"translator": Translator(own, factors), "paraphraser": Paraphraser(other, factors)}

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update: of the paraphraser while it is its time, then of the student and its translator."""
        if clock.progress < self.paraphraser_share:
            yield Update("paraphraser", self.reconstruct(batch))
        else:
            yield Update(("student", "translator"), self.terms(batch, clock))

    def reconstruct(self, batch: Batch) -> dict[str, Term]:
        """``{"reconstruction"}``: the squared error of the teacher's map as it comes out of the paraphraser."""
        self.teacher.compute(batch)
        feature = as_map(self._other.pop()[-1])
        return {"reconstruction": Term.of(mse(self.learners["paraphraser"](feature)[1], feature))}

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"factor"}``; factors of unlike grids are compared on the coarser."""
        with torch.no_grad():
            wanted, _ = self.learners["paraphraser"](as_map(seen.t[-1]))
        own, other = same_cells(self.learners["translator"](as_map(seen.s[-1])), wanted)
        return {"factor": Term.of(factor(own, other, p=self.p), weight=self.beta)}
