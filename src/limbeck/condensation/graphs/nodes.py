"""A learnable set of nodes, and the real graph that it is made from and compared with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

from limbeck.condensation.graphs.networks import normalised
from limbeck.data.base import Source
from limbeck.data.graphs import Graph
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.models.graph import normalised_weights


class Structure(nn.Module):
    """Edges from features: ``A_ij = sigmoid((MLP([x_i; x_j]) + MLP([x_j; x_i])) / 2)``, without loops.

    Jin et al., ICLR 2022 (arXiv 2110.07580), equation 8.

    Args:
        features: of a node.
        hidden: width of the MLP's two inner layers.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(features, hidden), nn.Linear(features, hidden, bias=False)
        self.middle, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, F] -> symmetric adjacency [N, N] in (0, 1), zero on the diagonal."""
        # A linear layer on [x_i; x_j] is the sum of one on x_i and one on x_j.
        pairs = (self.own(features)[:, None] + self.other(features)[None]).relu()
        scores = self.last(self.middle(pairs).relu())[..., 0]
        edges = ((scores + scores.T) / 2).sigmoid()
        return edges * (1 - torch.eye(len(features), dtype=edges.dtype, device=edges.device))


class SyntheticNodes(nn.Module):
    """The student of graph condensation: a few nodes with features, labels and, if asked for, edges.

    Calling it gives what a network is trained on: ``(features [M, F], adjacency [M, M] or None, labels [M])``, where
    edges weaker than ``delta`` are dropped and None is a graph without edges.

    Args:
        features: first values, [M, F].
        labels: int64 [M].
        structure: gives the edges; None for nodes without.
        delta: weakest edge that is delivered.
        seed: what random first features were drawn with.
    """

    labels: Tensor

    def __init__(
        self, features: Tensor, labels: Tensor, structure: Structure | None = None, delta: float = 0.5, seed: int = 0
    ) -> None:
        super().__init__()
        self.features = nn.Parameter(features.clone())
        self.register_buffer("labels", labels.clone())
        self.structure, self.delta, self.seed = structure, delta, seed

    def forward(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features, adjacency (0 to 1, not normalised) and labels to train on."""
        if self.structure is None:
            return self.features, None, self.labels
        edges = self.structure(self.features)
        return self.features, edges * (edges >= self.delta), self.labels

    def matched(self) -> tuple[Tensor, Tensor | None]:
        """Features, and the normalised adjacency with all its edges: what is differentiable."""
        return self.features, None if self.structure is None else normalised(self.structure(self.features))


def node_set(student: nn.Module) -> SyntheticNodes:
    """The student as a set of nodes.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(student, SyntheticNodes):
        name = type(student).__name__
        raise UserError(f"graph condensation learns nodes: the student must be a set like synthetic_nodes, not {name}")
    return student


class RealNodes:
    """A graph in memory, and which of its nodes have a label to learn from.

    Attributes:
        features: [N, F], the words of a node with the same weight, together 1.
        adjacency: sparse [N, N], normalised with loops.
        labels: int64 [N], -100 where it is not to be known.
        classes: how many.
    """

    def __init__(self, graph: Graph, labels: Tensor) -> None:
        count = len(graph)
        rows, words = graph.bags
        self.features = torch.zeros(count, len(graph.words))
        self.features[rows, words] = 1 / torch.bincount(rows, minlength=count)[rows].float()
        places, weights = normalised_weights(graph.edges, count)
        self.adjacency = torch.sparse_coo_tensor(
            places, weights, (count, count), is_coalesced=True, check_invariants=False
        )
        self.labels, self.classes = labels, len(graph.classes)

    @classmethod
    def of(cls, source: Source) -> RealNodes:
        """The graph of a source (data ``graph_nodes``) with the labels of its rows.

        Raises:
            UserError: the source has no graph, or a class has no labelled node.
        """
        graph = getattr(source, "graph", None)
        if not isinstance(graph, Graph):
            raise UserError("graph condensation needs data with a graph (data graph_nodes)")
        batch = source.batch(torch.arange(len(source)))
        labels = torch.full((len(graph),), -100)
        labels[batch["input"]] = batch["label"]
        found = cls(graph, labels)
        if (missing := [k for k, count in enumerate(found.counts) if count == 0]) != []:
            raise UserError(f"graph condensation works class by class: class {missing[0]} has no labelled node")
        return found

    @classmethod
    def of_streams(cls, streams: Mapping[str, Source]) -> RealNodes:
        """The graph of a run's training data: its only stream.

        Raises:
            UserError: there are more, or it has no graph.
        """
        if len(streams) != 1:
            raise UserError("graph condensation needs one stream of training data")
        return cls.of(next(iter(streams.values())))

    def to(self, device: torch.device) -> RealNodes:
        """Move the tensors, in place."""
        self.features, self.adjacency = self.features.to(device), self.adjacency.to(device)
        self.labels = self.labels.to(device)
        return self

    @property
    def counts(self) -> list[int]:
        """Labelled nodes of each class."""
        return torch.bincount(self.labels[self.labels >= 0], minlength=self.classes).tolist()

    def of_class(self, label: int) -> Tensor:
        """The labelled nodes of a class, int64, in ascending order."""
        return (self.labels == label).nonzero()[:, 0]

    def draw(self, shares: list[int], key: Hashable) -> Tensor:
        """That many random labelled nodes of each class, sorted by class; where it has fewer, some are taken again."""
        picked = []
        for label, share in enumerate(shares):
            nodes = self.of_class(label)
            order = uniform(torch.arange(len(nodes)), (1,), (key, label))[:, 0].argsort().to(nodes.device)
            picked.append(nodes[order.repeat(-(-share // len(nodes)))[:share]])
        return torch.cat(picked)


def shares_of(counts: list[int], per_class: int | None, ratio: float | None) -> list[int]:
    """Nodes of each class of a condensed graph: ``per_class``, or that share of the labelled ones, one at least."""
    return [max(1, round(count * ratio)) if ratio is not None else per_class or 1 for count in counts]
