"""A few real graphs: the baseline that a mined set must beat with as many bytes."""

from __future__ import annotations

from typing import Literal

import torch

from limbeck.condensation.graphs.sets import GraphBatch, graph_bytes
from limbeck.condensation.methods.mirage import Mirage
from limbeck.data.graph_sets import TaggedGraph
from limbeck.engine.noise import uniform
from limbeck.registry import register


@register("method")
class RealGraphs(Mirage):
    """Training graphs in place of mined ones; nothing is trained.

    ``random`` takes graphs of each class by turns, in random order, as long as they fit into the bytes that ``mirage``
    with the same arguments would use, and one of each class at least; ``all`` takes the whole training part.

    Args:
        selection: how the graphs are chosen.
        hops, support, least, largest, patterns: of the ``mirage`` whose bytes they may use.
    """

    controls = {}

    def __init__(
        self,
        *,
        selection: Literal["random", "all"] = "random",
        hops: int = 2,
        support: float = 0.3,
        least: int = 2,
        largest: int = 0,
        patterns: int = 0,
    ) -> None:
        super().__init__(hops=hops, support=support, least=least, largest=largest, patterns=patterns)
        self.selection = selection

    def condensed(
        self, by_class: list[list[TaggedGraph]], seed: int
    ) -> tuple[list[GraphBatch], torch.Tensor, torch.Tensor]:
        """The student's graphs, their labels and weights, all 1."""
        ranks = [
            uniform(torch.arange(len(graphs)), (1,), (seed, "graphs"))[:, 0].argsort().tolist() for graphs in by_class
        ]
        turns = range(max(len(graphs) for graphs in by_class))
        order = [by_class[c][rank[turn]] for turn in turns for c, rank in enumerate(ranks) if turn < len(rank)]
        made = [GraphBatch.of(graph) for graph in order]
        if self.selection == "random":
            mined = super().condensed(by_class, seed)[0]
            left = sum(graph_bytes(graph) + 12 for graph in mined)
            made = fitting(made, left, len(by_class))
        labels = torch.tensor([graph.label for graph in order[: len(made)]])
        return made, labels, torch.ones(len(made))


def fitting(graphs: list[GraphBatch], budget: int, least: int) -> list[GraphBatch]:
    """The first graphs that together, with 12 bytes for the label of each, fit into a budget, and ``least`` always."""
    kept: list[GraphBatch] = []
    for graph in graphs:
        budget -= graph_bytes(graph) + 12
        if budget < 0 and len(kept) >= least:
            break
        kept.append(graph)
    return kept
