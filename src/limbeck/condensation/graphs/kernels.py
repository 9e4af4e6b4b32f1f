"""The tangent kernel of infinitely wide graph networks, and how well ridge regression with it tells a graph's nodes.

Du et al., NeurIPS 2019 (arXiv 1905.13192), between nodes; SFGC (Zheng et al., NeurIPS 2023, arXiv 2306.02664) chooses
condensed nodes by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.graphs.nodes import RealNodes
from limbeck.condensation.kernels import ridge, squared_loss
from limbeck.data.base import Source
from limbeck.errors import UserError

TINY = 1e-12


@dataclass(frozen=True)
class Side:
    """The nodes on one side of a kernel.

    Attributes:
        features: [N, F].
        mean: [N, N], sparse or dense, takes the mean over a node and its neighbours; None where there are no edges.
    """

    features: Tensor
    mean: Tensor | None = None

    def passed(self, kernel: Tensor) -> Tensor:
        """What a node is with another [N, M] becomes what its neighbourhood is with it."""
        return kernel if self.mean is None else self.mean @ kernel


def node_kernel(a: Side, b: Side, *, rounds: int = 2, depth: int = 2, of_a: list[Tensor] | None = None) -> Tensor:
    """Neural tangent kernel of a graph network without biases between nodes [A] and [B] -> [A, B].

    A round is a mean over the neighbourhood and ``depth`` wide layers with ReLU, whose weights have variance 2 /
    inputs: ``S <- M_a S M_b^T`` and the same of T, then of each layer ``T <- T * 2 E[relu' relu'] + S'`` with
    ``S' = 2 E[relu(u) relu(v)]`` for (u, v) of covariance S. It begins with the features' products, S = T.

    Args:
        a, b: the nodes.
        rounds: passings of messages.
        depth: layers after each.
        of_a: the :func:`variances` of ``a``, where they are known.
    """
    covariance = tangent = a.features @ b.features.T
    own = variances(a, rounds=rounds, depth=depth) if of_a is None else of_a
    other = variances(b, rounds=rounds, depth=depth)
    for step in range(rounds):
        covariance, tangent = (b.passed(a.passed(k).T).T for k in (covariance, tangent))
        for _ in range(depth):
            covariance, slope = _layer(covariance, own[step], other[step])
            tangent = tangent * slope + covariance
    return tangent


def variances(side: Side, *, rounds: int, depth: int) -> list[Tensor]:
    """Of each round the variances [N] of what comes in, which its layers with ReLU keep."""
    covariance, found = side.features @ side.features.T, []
    for _ in range(rounds):
        covariance = side.passed(side.passed(covariance).T)
        found.append(covariance.diagonal().clamp_min(TINY))
        for _ in range(depth):
            covariance, _ = _layer(covariance, found[-1], found[-1])
    return found


def _layer(covariance: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """``2 E[relu(u) relu(v)]`` and ``2 E[relu'(u) relu'(v)]`` for u, v of variances [A] and [B]."""
    scale = (own[:, None] * other[None, :]).sqrt()
    cosine = (covariance / scale).clamp(-1, 1)
    angle = cosine.acos()
    after = scale * ((1 - cosine.square()).sqrt() + (math.pi - angle) * cosine) / math.pi
    return after, (math.pi - angle) / math.pi


class KernelScore:
    """How badly ridge regression from condensed nodes tells the held-out ones: half the mean squared error.

    The graph is that between the held-out nodes alone.

    Args:
        real: the graph.
        source: the held-out nodes with their labels.
        strength: of the ridge, beside the mean of the condensed kernel's diagonal.
        rounds, depth: as for :func:`node_kernel`.

    Raises:
        UserError: no held-out node has a label.
    """

    def __init__(
        self, real: RealNodes, source: Source, *, strength: float = 1.0, rounds: int = 2, depth: int = 2
    ) -> None:
        batch = source.batch(torch.arange(len(source)))
        known = batch["label"] >= 0
        if not known.any():
            raise UserError("no held-out node has a label to choose by")
        nodes = batch["input"][known]
        self.wanted = F.one_hot(batch["label"][known], real.classes).double()
        self.side = Side(real.features[nodes].double(), means_between(real.adjacency, nodes))
        self.strength, self.rounds, self.depth = strength, rounds, depth
        self.variances = variances(self.side, rounds=rounds, depth=depth)

    @torch.no_grad()
    def __call__(self, features: Tensor, labels: Tensor) -> float:
        """The score of nodes [M, F] without edges and their labels [M]: the lower, the better."""
        own = Side(features.detach().cpu().double())
        k_ss = node_kernel(own, own, rounds=self.rounds, depth=self.depth)
        k_ts = node_kernel(self.side, own, rounds=self.rounds, depth=self.depth, of_a=self.variances)
        targets = F.one_hot(labels.cpu(), self.wanted.shape[1]).double()
        said = ridge(k_ss, k_ts, targets, self.strength / len(labels))
        return float(squared_loss(said, self.wanted).mean() / self.wanted.shape[1])


def means_between(adjacency: Tensor, nodes: Tensor) -> Tensor:
    """Sparse [V, V] that takes means over a node and its neighbours among ``nodes`` [V], from an adjacency with loops.

    Args:
        adjacency: sparse [N, N], of which only the places count.
        nodes: int64 [V].
    """
    place = torch.full((adjacency.shape[0],), -1)
    place[nodes] = torch.arange(len(nodes))
    rows, columns = place[adjacency.indices().cpu()]
    here = (rows >= 0) & (columns >= 0)
    rows, columns = rows[here], columns[here]
    weights = 1 / torch.bincount(rows, minlength=len(nodes))[rows].double()
    size = (len(nodes), len(nodes))
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), weights, size, check_invariants=False).coalesce()
