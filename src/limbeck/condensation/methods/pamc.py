"""Block contrastive clustering: neighbours agree, and clusters as a whole keep apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.graphs.contrast import (
    influence,
    meta_nodes,
    nearest_edges,
    negative_part,
    positive_part,
    sharpened,
)
from limbeck.condensation.graphs.encoder import cluster_encoder, place_centres, pretrain
from limbeck.data.graphs import Graph
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class PAMC(Method):
    """Block contrastive clustering with meta-nodes (arXiv 2209.14067, 2022), without labels.

    ``alpha L + beta KL(p || q)``. The student first learns as half of an autoencoder, and its centres become those of
    k-means. L then draws every row to those that a walk of some steps on the graph leads to,
    ``-mean_i log sum_j A_ij exp(tau cos(z_i, z_j))``, and clusters apart,
    ``mean_k log sum_l exp(tau cos(m_k, m_l))``, where m_k is the sum of the embeddings of a cluster's rows: K^2
    negatives in place of N^2. q are the shares of a row in the clusters, p sharpened ones that stay for ``refresh``
    steps. Every step takes all rows. Data without a graph gets that of nearest neighbours. The defaults are the
    paper's for USPS, with Adam at 1e-3 and 200 steps.

    Args:
        alpha: weight of the contrast. With ``beta: 0`` too the student stays k-means on the autoencoder's embedding.
        beta: weight of the divergence of the shares from the sharpened ones.
        tau: what cosines are multiplied by.
        hops: steps of the walk.
        neighbours: of a row, where the data has no graph.
        negatives: ``blocks`` are the sums of clusters; ``all`` are all rows, what the blocks stand for.
        refresh: steps that the sharpened shares stay for; a step is an epoch here.
        pretrain_steps: of the autoencoder.
        pretrain_lr: of these, with Adam.
        pretrain_batch: rows in one of these.
        starts: of k-means.
    """

    couples_samples = True
    data_free = True
    fixed = ("pretrain_lr",)
    controls = {"kmeans": {"method": {"alpha": 0.0, "beta": 0.0}}}

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 2.0,
        tau: float = 0.5,
        hops: int = 4,
        neighbours: int = 3,
        negatives: Literal["blocks", "all"] = "blocks",
        refresh: int = 1,
        pretrain_steps: int = 1000,
        pretrain_lr: float = 1e-3,
        pretrain_batch: int = 256,
        starts: int = 20,
    ) -> None:
        if min(hops, neighbours, refresh, pretrain_batch, starts) < 1 or pretrain_steps < 0:
            raise UserError(
                "pamc: hops, neighbours, refresh, pretrain_batch and starts must be 1 or more, pretrain_steps 0"
            )
        self.alpha = alpha
        self.beta = beta
        self.tau = tau
        self.hops = hops
        self.neighbours = neighbours
        self.negatives = negatives
        self.refresh = refresh
        self.pretrain_steps = pretrain_steps
        self.pretrain_lr = pretrain_lr
        self.pretrain_batch = pretrain_batch
        self.starts = starts

    def setup(self, parts: Parts) -> None:
        """Take the rows and their graph into memory, train the autoencoder and place the centres.

        Raises:
            UserError: the student is no encoder with clusters, there is more than one stream, or there are too few
                rows.
        """
        super().setup(parts)
        student = cluster_encoder(parts.student)
        if len(parts.streams) != 1:
            raise UserError("pamc needs one stream of training data")
        source = next(iter(parts.streams.values()))
        graph = getattr(source, "graph", None)
        if isinstance(graph, Graph):
            self.inputs, edges = torch.arange(len(graph)), graph.edges
        else:
            self.inputs = source.batch(torch.arange(len(source)))["input"]
        device = student.centres.device
        rows = student.rows(self.inputs.to(device))
        if len(rows) <= max(self.neighbours, len(student.centres)):
            raise UserError(f"pamc: {len(rows)} rows are too few for so many clusters or neighbours")
        edges = edges if isinstance(graph, Graph) else nearest_edges(rows, self.neighbours)
        self.places, self.weights = influence(edges, len(rows), self.hops)
        batch, key = self.pretrain_batch, (student.seed, "autoencoder")
        pretrain(student, rows, steps=self.pretrain_steps, lr=self.pretrain_lr, batch_size=batch, key=key)
        place_centres(student, rows, self.starts)
        self.targets: Tensor | None = None

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student from all rows; the batch is not used."""
        yield Update("student", partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms of a step; each is a mean already."""
        device = next(self.student.parameters()).device
        self._to(device)
        found = self.student(self.inputs)
        embedding, logs = found["embedding"], found["logits"]
        if self.targets is None or clock.step % self.refresh == 0:
            self.targets = sharpened(logs.detach().exp())
        return {
            "contrast": Term(self.contrast(embedding, logs), 1, self.alpha, "sets"),
            "clusters": Term(F.kl_div(logs, self.targets, reduction="batchmean"), 1, self.beta, "sets"),
        }

    def contrast(self, embedding: Tensor, shares: Tensor) -> Tensor:
        """L of the embedding [N, D], with the clusters of the largest shares [N, K] (or their logarithms)."""
        others = embedding
        if self.negatives == "blocks":
            others = meta_nodes(embedding, shares.argmax(1), shares.shape[1])
        return positive_part(embedding, self.places, self.weights, self.tau) + negative_part(others, self.tau)

    def _to(self, device: torch.device) -> None:
        self.inputs, self.places, self.weights = (x.to(device) for x in (self.inputs, self.places, self.weights))
        self.targets = None if self.targets is None else self.targets.to(device)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step looks at one set of rows."""
        return {**super().count(batch), "sets": 1}

    def state_dict(self) -> dict[str, Any]:
        """The sharpened shares, which later steps still learn."""
        return {} if self.targets is None else {"targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.targets = state.get("targets")
