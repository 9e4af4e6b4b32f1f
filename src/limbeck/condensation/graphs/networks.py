"""Networks on the nodes of any graph: what matches gradients on it, and what judges a condensed one."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.noise import key_of

Kind = Literal["sgc", "gcn"]


class NodeNetwork(nn.Module):
    """Logits of nodes from their features and the graph.

    ``sgc`` is ``A^L X W`` (Wu et al. 2019, arXiv 1902.07153); ``gcn`` is ``A relu(A X W_1) W_2`` with L such layers
    (Kipf and Welling 2017, arXiv 1609.02907).

    Args:
        kind: of the network.
        features: of a node.
        classes: number of classes.
        hidden: width of the inner layers of ``gcn``.
        layers: passings of messages.
    """

    def __init__(self, kind: Kind, features: int, classes: int, hidden: int, layers: int) -> None:
        super().__init__()
        inner = [hidden] * (layers - 1) if kind == "gcn" else []
        sizes = [features, *inner, classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.kind, self.passings = kind, layers

    def forward(self, features: Tensor, adjacency: Tensor | None = None) -> Tensor:
        """Features [N, F] and a normalised adjacency [N, N], dense or sparse (None: no edges) -> logits [N, K]."""
        if self.kind == "sgc":
            return self.head(spread(features, adjacency, self.passings))
        hidden = features
        for number, layer in enumerate(self.layers):
            hidden = hidden if number == 0 else F.relu(hidden)
            assert isinstance(layer, nn.Linear)
            hidden = spread(hidden @ layer.weight.T, adjacency, 1) + layer.bias
        return hidden

    def head(self, spread_features: Tensor) -> Tensor:
        """The logits of ``sgc`` from features [N, F] that were passed on already."""
        logits: Tensor = self.layers[-1](spread_features)
        return logits


def fresh_node_network(
    kind: Kind, features: int, classes: int, hidden: int, layers: int, key: Hashable, device: torch.device | None = None
) -> NodeNetwork:
    """A network with random weights that depend on ``key`` alone. No generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_of(key) % 2**63)
        return NodeNetwork(kind, features, classes, hidden, layers).to(device)


def spread(values: Tensor, adjacency: Tensor | None, times: int) -> Tensor:
    """``A^times`` applied to values [N, F]; without an adjacency the values."""
    if adjacency is not None:
        for _ in range(times):
            values = adjacency @ values
    return values


def normalised(adjacency: Tensor) -> Tensor:
    """``D^(-1/2) (A + I) D^(-1/2)`` of a dense adjacency [N, N] without loops, differentiable."""
    whole = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype, device=adjacency.device)
    scale = whole.sum(1).rsqrt()
    return scale[:, None] * whole * scale


def train_on_nodes(
    network: NodeNetwork,
    features: Tensor,
    adjacency: Tensor | None,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    halve: bool = False,
) -> NodeNetwork:
    """Adam on the cross-entropy of the labelled nodes (label >= 0), in place; full batch.

    Args:
        network: what is trained.
        features: [N, F].
        adjacency: [N, N], normalised; None for no edges.
        labels: int64 [N].
        steps: of the optimizer.
        lr: learning rate.
        weight_decay: added to the gradient.
        halve: divide the rate by 10 at half of the steps, as GCond's evaluation does.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
    fixed = network.kind == "sgc"
    inputs = spread(features, adjacency, network.passings) if fixed else features
    rows = (labels >= 0).nonzero()[:, 0]
    with torch.enable_grad():
        for step in range(steps):
            if halve and step == (steps + 1) // 2:
                optimizer.param_groups[0]["lr"] = 0.1 * lr
            logits = network.head(inputs) if fixed else network(inputs, adjacency)
            optimizer.zero_grad()
            F.cross_entropy(logits[rows], labels[rows]).backward()
            optimizer.step()
    return network
