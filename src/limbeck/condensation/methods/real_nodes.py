"""A few real nodes: the baselines that a condensed graph must beat with as many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.condensation.graphs.networks import spread
from limbeck.condensation.graphs.nodes import RealNodes, node_set
from limbeck.condensation.selection import herding, k_center
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method", name="real_nodes")
class NodeSubset(Method):
    """Labelled nodes of the graph in place of learned ones, without edges; nothing is trained.

    The student is the same set of nodes as a condensation method's, with ``structure: none``. ``random`` with the
    student's ``init: real`` keeps its first nodes. ``herding`` (Welling 2009) and ``k_center`` (Sener and Savarese
    2018) compare what nodes know after ``hops`` passings of messages.

    Args:
        selection: how the nodes are chosen.
        hops: passings of messages before nodes are compared.
        keep: what of a chosen node is kept: its own features, or those that it knows after the passings (``passed``),
            which are then means over its neighbourhood.
    """

    data_free = True
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(
        self,
        *,
        selection: Literal["random", "herding", "k_center"] = "random",
        hops: int = 2,
        keep: Literal["own", "passed"] = "own",
    ) -> None:
        if hops < 0:
            raise UserError(f"real_nodes: hops must be 0 or more, not {hops}")
        self.selection = selection
        self.hops = hops
        self.keep = keep

    def setup(self, parts: Parts) -> None:
        """Choose the nodes and put their features into the student.

        Raises:
            UserError: the student is no set of nodes or has edges, a class is too small, or there is no graph.
        """
        super().setup(parts)
        student = node_set(parts.student)
        if student.structure is not None:
            raise UserError("real_nodes: chosen nodes have no edges: say student.structure: none")
        real = RealNodes.of_streams(parts.streams)
        passed = spread(real.features, real.adjacency, self.hops)
        shares = torch.bincount(student.labels, minlength=real.classes).tolist()
        rows = self.rows(real, passed, shares, student.seed)
        kept = passed if self.keep == "passed" else real.features
        with torch.no_grad():
            student.features.copy_(kept[rows])

    def rows(self, real: RealNodes, passed: Tensor, shares: list[int], seed: int) -> Tensor:
        """The chosen nodes, int64, sorted by class.

        Raises:
            UserError: a class has fewer labelled nodes than are to be chosen.
        """
        if self.selection == "random":
            return real.draw(shares, (seed, "first nodes"))
        select = herding if self.selection == "herding" else k_center
        chosen = []
        for label, share in enumerate(shares):
            nodes = real.of_class(label)
            if share > len(nodes):
                raise UserError(f"real_nodes: {share} nodes of class {label} are asked for, it has {len(nodes)}")
            chosen.append(nodes[select(passed[nodes], share)])
        return torch.cat(chosen)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: the nodes stay as chosen."""
        yield from ()
