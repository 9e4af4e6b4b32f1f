"""Mining: the sets of computation trees that are frequent in one class stand for its graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch

from limbeck.condensation.graphs.sets import GraphBatch, graph_collection, graphs_of
from limbeck.condensation.graphs.trees import Book, Pattern, exclusive, frequent_sets
from limbeck.data.graph_sets import TaggedGraph
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class Mirage(Method):
    """Graph distillation without gradients (Gupta et al., ICLR 2024, arXiv 2310.09486); nothing is trained.

    A network of L passings knows a graph as its nodes' computation trees of L hops. Each set of trees that ``support``
    of a class's graphs share, and that is frequent in no other class, becomes a graph of the student: the disjoint
    union of its trees with edges towards the roots, which alone are read out.

    Args:
        hops: L, of the networks that are to be trained.
        support: share of a class's graphs that have the set, at least.
        least: graphs of a class that a tree must be part of to be looked at.
        largest: trees of a set, at most; any number for 0.
        patterns: sets of a class, at most, those with the largest support first (of equal ones, as the seed decides);
            all for 0.
        weigh: weights of the student's graphs: ``support`` within the class, whose sum is the class's share of the
            graphs; or all the same.
    """

    data_free = True
    fixed = ("support",)
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {"random": {"method": {"name": "real_graphs", "same": True}}}

    def __init__(
        self,
        *,
        hops: int = 2,
        support: float = 0.3,
        least: int = 2,
        largest: int = 0,
        patterns: int = 0,
        weigh: Literal["support", "none"] = "support",
    ) -> None:
        if not 0 < support <= 1 or min(hops, largest, patterns) < 0 or least < 1:
            raise UserError("mirage: support in (0, 1], least of 1 or more, hops, largest, patterns not negative")
        self.hops = hops
        self.support = support
        self.least = least
        self.largest = largest
        self.patterns = patterns
        self.weigh = weigh

    def setup(self, parts: Parts) -> None:
        """Mine the training graphs and put what is found into the student.

        Raises:
            UserError: the student is no set of graphs, the data has none, or a class has no set of its own.
        """
        super().setup(parts)
        student = graph_collection(parts.student)
        source = next(iter(parts.streams.values()), None)
        graphs, labels = graphs_of(source)
        classes = (parts.data.classes if parts.data else None) or max(labels) + 1
        by_class = [[g for g, label in zip(graphs, labels, strict=True) if label == c] for c in range(classes)]
        student.fill_(*self.condensed(by_class, student.seed))

    def condensed(
        self, by_class: list[list[TaggedGraph]], seed: int
    ) -> tuple[list[GraphBatch], torch.Tensor, torch.Tensor]:
        """The student's graphs in an order that the seed decides, their labels and weights, from each class's."""
        book, found = self.mined(by_class, seed)
        whole = sum(len(graphs) for graphs in by_class)
        sets, labels, weights = [], [], []
        for label, patterns in enumerate(found):
            total = sum(patterns.values())
            for pattern, support in patterns.items():
                sets.append(_as_graph(book, pattern))
                labels.append(label)
                share = len(by_class[label]) / whole * support / total
                weights.append(share if self.weigh == "support" else 1.0)
        order = uniform(torch.arange(len(sets)), (1,), (seed, "order"))[:, 0].argsort()
        return [sets[i] for i in order.tolist()], torch.tensor(labels)[order], torch.tensor(weights)[order]

    def mined(self, by_class: list[list[TaggedGraph]], seed: int) -> tuple[Book, list[dict[Pattern, int]]]:
        """The trees, and of each class its own sets of them with their support, the most frequent first.

        Raises:
            UserError: a class has no graph, or no set of its own.
        """
        book, frequent = Book(), []
        for graphs in by_class:
            transactions = [frozenset(book.trees(graph, self.hops)) for graph in graphs]
            least = max(self.least, math.ceil(self.support * len(graphs) - 1e-9))
            frequent.append(frequent_sets(transactions, least, self.largest))
        found = []
        for label, own in enumerate(exclusive(frequent)):
            if not own:
                raise UserError(f"mirage: no set of trees is frequent in class {label} alone: ask for less support")
            chance = uniform(torch.arange(len(own)), (1,), (seed, label, "ties"))[:, 0].tolist()
            ranked = sorted(zip(own.items(), chance, strict=True), key=lambda one: (-one[0][1], one[1]))
            found.append(dict(item for item, _ in ranked[: self.patterns or None]))
        return book, found

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: the set stays as mined."""
        yield from ()


def _as_graph(book: Book, pattern: Pattern) -> GraphBatch:
    tags, edges, roots = book.unfolded(pattern)
    pooled = torch.zeros(len(tags), dtype=torch.bool)
    pooled[roots] = True
    return GraphBatch.alone(torch.tensor(tags), torch.tensor(edges, dtype=torch.int64).view(-1, 2).T, pooled)
