"""Contrastive representation distillation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.engine.method import Clock, Parts, Term
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.losses import IGNORE, wide
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen
from limbeck.vision.losses.embeddings import nce
from limbeck.vision.shapes import as_vector

PIECE = 1024
"""How many rows are asked of the data at once when their labels are read."""


@register("method")
class CRD(FeatureTaught):
    """Contrastive Representation Distillation (Tian et al. 2020, arXiv 1910.10699).

    ``L = CE + beta (NCE_s + NCE_t)``: linear maps take both embeddings to vectors of length 1, and the student's vector
    must tell the teacher's vector of the same sample from those of ``negatives`` other samples, and the other way
    round, by ``exp(s . t / tau) / Z``. The other samples' vectors come from two memory banks with a row for each sample
    of the data; Z is N times the mean of the first batch. Each step scores its batch against whole banks.

    Args:
        beta: weight of both directions.
        negatives: how many are drawn for each sample, with replacement.
        contrast: draw negatives among the samples of other ``classes`` (the paper's default, which reads the labels of
            the data once before it starts), or among all other ``samples``. A sample without a label has every other
            as a negative.
        dim: length of the vectors.
        tau: temperature of the similarity.
        momentum: share of a bank's row that stays when its sample is seen again.
    """

    look = "embedding"
    couples_samples = True

    def __init__(
        self,
        *,
        beta: float = 0.8,
        negatives: int = 16384,
        contrast: Literal["classes", "samples"] = "classes",
        dim: int = 128,
        tau: float = 0.07,
        momentum: float = 0.5,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.negatives = negatives
        self.contrast: Literal["classes", "samples"] = contrast
        self.dim = dim
        self.tau = tau
        self.momentum = momentum

    def setup(self, parts: Parts) -> None:
        """The maps, and banks that start at random."""
        super().setup(parts)
        self.noise = Noise(next(iter(parts.streams.values())), by_class=self.contrast == "classes")
        side = math.sqrt(3 / self.dim)
        self.banks = (2 * torch.rand(2, len(self.noise), self.dim) - 1) * side
        self.log_z: Tensor | None = None
        self._fresh: tuple[Tensor, Tensor] | None = None

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The maps of both sides to vectors of one length."""
        widths = {"student": as_vector(s[-1]).shape[1], "teacher": as_vector(t[-1]).shape[1]}
        return {"embeddings": Projectors({side: Embedding(width, self.dim) for side, width in widths.items()})}

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"student", "teacher"}``: the term of either side's vectors against the other side's bank."""
        features = {"student": as_vector(seen.s[-1]), "teacher": as_vector(seen.t[-1])}
        vectors = torch.stack(list(self.learners["embeddings"](features).values()))
        self._to(vectors.device)
        own = self.noise.rows(seen.batch["id"])
        drawn = torch.cat([own[:, None], self.noise.draw(own, seen.clock, self.negatives)], 1)
        # Against the other side's bank: a product with all rows and a look-up hold less than the rows that were drawn.
        products = vectors @ self.banks.flip(0).transpose(1, 2)
        scores = products.gather(2, drawn.expand(2, -1, -1)) / self.tau
        self._note(seen, own, vectors.detach(), scores.detach())
        logs = scores - self.log_z[:, None, None]  # type: ignore[index]
        values = [nce(side[:, 0], side[:, 1:], rows=len(self.noise)) for side in logs]
        return {name: Term.of(v, weight=self.beta) for name, v in zip(features, values, strict=True)}

    def _note(self, seen: Seen, own: Tensor, vectors: Tensor, scores: Tensor) -> None:
        """Keep this step's vectors of all processes for the banks, and fix Z at the first step."""
        rows = seen.together()
        self._fresh = rows.all(own), rows.all(vectors.transpose(0, 1).contiguous())
        if self.log_z is None:
            first = rows.all(scores.transpose(0, 1).contiguous()).transpose(0, 1).flatten(1)
            self.log_z = first.logsumexp(1) + math.log(len(self.noise) / first.shape[1])

    def after_step(self, clock: Clock) -> None:
        """Move the rows of the samples that were seen."""
        super().after_step(clock)
        if self._fresh is None:
            return
        (own, vectors), self._fresh = self._fresh, None
        moved = self.momentum * self.banks[:, own] + (1 - self.momentum) * vectors.transpose(0, 1)
        self.banks[:, own] = F.normalize(moved, dim=-1)

    def _to(self, device: torch.device) -> None:
        self.banks = self.banks.to(device)
        self.noise.to(device)
        self.log_z = self.log_z.to(device) if self.log_z is not None else None

    def state_dict(self) -> dict[str, Any]:
        """The banks, and Z where it is known."""
        return {**super().state_dict(), "banks": self.banks, "log_z": self.log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.banks, self.log_z = state["banks"], state["log_z"]


class Embedding(nn.Linear):
    """A linear map to vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, dim]."""
        return F.normalize(wide(super().forward(x)), dim=1)


class Noise:
    """Draws other samples of the data for each sample, uniformly, as rows 0 to N - 1.

    Args:
        source: the data; its ids and labels are read once.
        by_class: leave out all samples of the sample's own class, and not only itself.

    Raises:
        UserError: some sample has no other that could be drawn.
    """

    def __init__(self, source: Source, *, by_class: bool) -> None:
        pieces = [source.batch(rows) for rows in torch.arange(len(source)).split(PIECE)]
        self.ids, by_id = torch.cat([piece["id"] for piece in pieces]).sort()
        labels = torch.full_like(self.ids, IGNORE)
        if by_class and "label" in pieces[0]:
            labels = torch.cat([piece["label"] for piece in pieces])[by_id]
        # Rows in the order of their labels: what must not be drawn is one stretch of them.
        sorted_labels, self.order = labels.sort(stable=True)
        self.first = torch.searchsorted(sorted_labels, labels)
        self.count = torch.searchsorted(sorted_labels, labels, right=True) - self.first
        alone = labels == IGNORE
        self.first[alone] = self.order.argsort()[alone]
        self.count[alone] = 1
        if (self.count == len(self)).any():
            raise UserError("a sample has no negatives: the data has a single sample or class; try contrast: samples")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of samples by their ids, int64 [B]."""
        return torch.searchsorted(self.ids, ids)

    def draw(self, rows: Tensor, clock: Clock, count: int) -> Tensor:
        """So many other rows for each of ``rows``, with replacement, [B] -> int64 [B, count]."""
        others = (len(self) - self.count[rows])[:, None]
        draws = clock.uniform(self.ids[rows], (count,), "negatives")
        # A product with a number just below 1 may be rounded up.
        place = torch.minimum((draws * others).long(), others - 1)
        place = place + torch.where(place >= self.first[rows][:, None], self.count[rows][:, None], 0)
        return self.order[place]

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        self.ids, self.order = self.ids.to(device), self.order.to(device)
        self.first, self.count = self.first.to(device), self.count.to(device)
