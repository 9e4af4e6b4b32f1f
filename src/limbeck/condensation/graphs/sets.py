"""A small set of graphs, which need not be graphs of the data: trees whose roots alone are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.data.graph_sets import TaggedGraph
from limbeck.errors import UserError
from limbeck.registry import Block


@dataclass(frozen=True)
class GraphBatch:
    """Graphs side by side.

    Attributes:
        tags: int64 [N], of each node.
        edges: int64 [2, E], messages go from the first to the second.
        owner: int64 [N], the graph of each node, in ascending order.
        pooled: bool [N], whether the node is read out.
        count: how many graphs.
    """

    tags: Tensor
    edges: Tensor
    owner: Tensor
    pooled: Tensor
    count: int

    @classmethod
    def of(cls, graph: TaggedGraph) -> GraphBatch:
        """One ordinary graph: messages go both ways, and all nodes are read out."""
        pairs = [(b, a) for a, some in enumerate(graph.neighbours) for b in some]
        edges = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        return cls.alone(torch.tensor(graph.tags), edges, torch.ones(len(graph.tags), dtype=torch.bool))

    @classmethod
    def alone(cls, tags: Tensor, edges: Tensor, pooled: Tensor) -> GraphBatch:
        """One graph of its tensors."""
        return cls(tags, edges, torch.zeros_like(tags), pooled, 1)

    @classmethod
    def joined(cls, batches: Sequence[GraphBatch]) -> GraphBatch:
        """All graphs of several batches, in their order."""
        nodes = graphs = 0
        edges, owners = [], []
        for batch in batches:
            edges.append(batch.edges + nodes)
            owners.append(batch.owner + graphs)
            nodes, graphs = nodes + len(batch.tags), graphs + batch.count
        tags, pooled = (torch.cat([getattr(b, name) for b in batches]) for name in ("tags", "pooled"))
        return cls(tags, torch.cat(edges, 1), torch.cat(owners), pooled, graphs)

    def to(self, device: torch.device) -> GraphBatch:
        """The same graphs on a device."""
        tags, edges, owner, pooled = (t.to(device) for t in (self.tags, self.edges, self.owner, self.pooled))
        return GraphBatch(tags, edges, owner, pooled, self.count)


class GraphCollection(nn.Module):
    """The student of condensation into graphs: a few of them with a class and a weight each; nothing in it learns.

    Calling it gives what a network is trained on: a list of graphs, labels int64 [S] and weights float32 [S].
    It is made empty and filled by a method, or made as large as the state that it is loaded from.

    Args:
        seed: of a random choice among graphs.
        nodes, edges, graphs: how many there are.
    """

    tags: Tensor
    edges: Tensor
    pooled: Tensor
    owner: Tensor
    labels: Tensor
    weights: Tensor

    def __init__(self, seed: int = 0, nodes: int = 0, edges: int = 0, graphs: int = 0) -> None:
        super().__init__()
        self.seed = seed
        for name in ("tags", "owner"):
            self.register_buffer(name, torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("edges", torch.zeros(2, edges, dtype=torch.int64))
        self.register_buffer("pooled", torch.zeros(nodes, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(graphs, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(graphs))
        # The block is asked for before the set is filled, so it holds the sizes themselves and not a copy.
        self.sizes = {"nodes": nodes, "edges": edges, "graphs": graphs}
        self.portable = Block("graph_collection", self.sizes)

    def fill_(self, graphs: Sequence[GraphBatch], labels: Tensor, weights: Tensor) -> None:
        """Store these graphs instead, [S] of each."""
        whole = GraphBatch.joined(graphs)
        device = self.labels.device
        self.tags, self.edges, self.owner = whole.tags.to(device), whole.edges.to(device), whole.owner.to(device)
        self.pooled = whole.pooled.to(device, torch.uint8)
        self.labels, self.weights = labels.to(device), weights.to(device)
        self._measure()

    def _measure(self) -> None:
        self.sizes.update(nodes=len(self.tags), edges=self.edges.shape[1], graphs=len(self.labels))

    def forward(self) -> tuple[list[GraphBatch], Tensor, Tensor]:
        """The graphs one by one, their labels and their weights."""
        found = []
        starts = torch.bincount(self.owner, minlength=len(self.labels)).cumsum(0).tolist()
        place = self.owner[self.edges[1]]
        for number, (first, last) in enumerate(zip([0, *starts][:-1], starts, strict=True)):
            own = self.edges[:, place == number] - first
            found.append(GraphBatch.alone(self.tags[first:last], own, self.pooled[first:last].bool()))
        return found, self.labels, self.weights

    def bytes(self) -> dict[str, int]:
        """What storing it takes: 8 for a tag, 16 for an edge, 8 for a root, 12 for a graph's label and weight.

        An edge that goes both ways counts once, and where all nodes of a graph are read out no root is stored.
        """
        graphs, _, _ = self()
        return {"structure": sum(graph_bytes(graph) for graph in graphs), "labels": 12 * len(graphs)}

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in self._buffers:
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=self.labels.device))
        self._measure()
        super()._load_from_state_dict(state, prefix, *rest)


def graph_bytes(graph: GraphBatch) -> int:
    """Bytes of one graph without its label, as :meth:`GraphCollection.bytes` counts them."""
    ordinary = bool(graph.pooled.all())
    edges = graph.edges.shape[1] // 2 if ordinary else graph.edges.shape[1]
    roots = 0 if ordinary else int(graph.pooled.sum())
    return 8 * len(graph.tags) + 16 * edges + 8 * roots


def graph_collection(student: nn.Module) -> GraphCollection:
    """The student as a set of graphs.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(student, GraphCollection):
        name = type(student).__name__
        raise UserError(f"trees stand for graphs: the student must be a set like graph_collection, not {name}")
    return student


def graphs_of(source: Source | None) -> tuple[list[TaggedGraph], list[int]]:
    """The graphs of a source (data ``graph_sets``) with their labels; those without are left out.

    Raises:
        UserError: the source has no graphs, or none has a label.
    """
    rows = getattr(source, "graphs", None)
    if source is None or not isinstance(rows, list) or not all(isinstance(row, TaggedGraph) for row in rows):
        raise UserError("this needs data of many graphs (data graph_sets)")
    labels = source.batch(torch.arange(len(source)))["label"].tolist()
    known = [(graph, label) for graph, label in zip(rows, labels, strict=True) if label >= 0]
    if not known:
        raise UserError("this works class by class: its graphs need a label each, and none has")
    return [graph for graph, _ in known], [label for _, label in known]


def tags_of(source: Source) -> int:
    """How many tags the whole set has, of which a source is a part."""
    return int(getattr(source, "tags"))  # noqa: B009


def joined_graphs(graphs: Iterable[TaggedGraph]) -> GraphBatch:
    """Ordinary graphs side by side."""
    return GraphBatch.joined([GraphBatch.of(graph) for graph in graphs])
