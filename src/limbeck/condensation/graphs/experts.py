"""What trainings on a whole graph go through: the experts of structure-free condensation.

Zheng et al., NeurIPS 2023 (arXiv 2306.02664), section 3.2.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.experts import Buffer
from limbeck.condensation.graphs.networks import NodeNetwork, fresh_node_network
from limbeck.condensation.graphs.nodes import RealNodes
from limbeck.condensation.unroll import Flat
from limbeck.engine.checkpoint import tensor_hash


@dataclass(frozen=True)
class NodeCourse:
    """How an expert is trained on the labelled nodes of a graph: full batch.

    Attributes:
        states: that are kept after the first weights.
        every: steps of the optimizer from one to the next.
        optimizer: plain descent or Adam.
        lr: learning rate.
        weight_decay: added to the gradient.
    """

    states: int = 250
    every: int = 10
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.4
    weight_decay: float = 0.0


class NodeExperts:
    """Networks ``gcn`` that are trained on a whole graph.

    Args:
        real: the graph.
        hidden: width of the networks.
        layers: their passings of messages.
        course: how they are trained.
        count: how many.
        seed: of the run.
        keep, quiet: as for :class:`~limbeck.condensation.experts.Buffer`.
    """

    def __init__(
        self,
        real: RealNodes,
        hidden: int,
        layers: int,
        course: NodeCourse,
        count: int,
        seed: int,
        *,
        keep: str | None = "10GB",
        quiet: bool = False,
    ) -> None:
        self.real, self.hidden, self.layers, self.course, self.seed = real, hidden, layers, course, seed
        self.net = Flat(self.fresh("layers"))
        self._buffer = Buffer(self._walks, self._facts, count, course.states + 1, keep=keep, quiet=quiet)

    def fresh(self, key: Hashable) -> NodeNetwork:
        """A network with random weights."""
        return fresh_node_network(
            "gcn", self.real.features.shape[1], self.real.classes, self.hidden, self.layers, key=(self.seed, key)
        )

    def at(self, expert: int, states: list[int], device: torch.device) -> list[Tensor]:
        """Weights [P] of an expert in its states with these numbers; 0 is that before the training."""
        self.real.to(device)
        self.net.network.to(device)
        return self._buffer.at(expert, states, device)

    def _facts(self) -> dict[str, Any]:
        graph = {"features": self.real.features, "labels": self.real.labels}
        graph |= {"edges": self.real.adjacency.indices(), "weights": self.real.adjacency.values()}
        facts = {"graph": tensor_hash(graph), "seed": self.seed, "course": asdict(self.course)}
        return {**facts, "net": {"name": "gcn", "hidden": self.hidden, "layers": self.layers}}

    def _walks(self, numbers: list[int], until: int, device: torch.device) -> Tensor:
        return torch.stack([self._walk(self.fresh(("expert", n)).to(device), until) for n in numbers])

    def _walk(self, network: NodeNetwork, until: int) -> Tensor:
        """Weights [until + 1, P] of a network at each state that is kept."""
        course, real = self.course, self.real
        kind = torch.optim.SGD if course.optimizer == "sgd" else torch.optim.Adam
        optimizer = kind(network.parameters(), lr=course.lr, weight_decay=course.weight_decay)
        rows = (real.labels >= 0).nonzero()[:, 0]
        found = [self.net.weights(network)]
        with torch.enable_grad():
            for epoch in range(1, until * course.every + 1):
                optimizer.zero_grad()
                F.cross_entropy(network(real.features, real.adjacency)[rows], real.labels[rows]).backward()
                optimizer.step()
                if epoch % course.every == 0:
                    found.append(self.net.weights(network))
        return torch.stack(found)
