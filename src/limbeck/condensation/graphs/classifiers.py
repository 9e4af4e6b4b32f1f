"""Small networks that classify whole graphs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.graphs.sets import GraphBatch
from limbeck.engine.noise import key_of, uniform

GraphKind = Literal["gcn", "gin", "gat"]


class MessagePassing(nn.Module):
    """One passing of messages along directed edges, so that a node knows its senders alone.

    ``gcn`` is the mean over a node and its senders (Kipf and Welling 2017, with ``D^-1 (A + I)``: the symmetric form
    asks for the degree of a sender, which a leaf of a tree does not have); ``gin`` a small network on the sum (Xu et
    al. 2019, arXiv 1810.00826); ``gat`` a mean with attention of one head (Velickovic et al. 2018, arXiv 1710.10903).

    Args:
        kind: of the messages.
        width: of what a node knows.
    """

    def __init__(self, kind: GraphKind, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(width, width)
        self.second = nn.Linear(width, width) if kind == "gin" else None
        self.score = nn.Linear(2 * width, 1, bias=False) if kind == "gat" else None

    def forward(self, hidden: Tensor, edges: Tensor) -> Tensor:
        """Nodes [N, D] and edges int64 [2, E] (from, to) -> [N, D]."""
        sender, receiver = edges
        if self.score is not None:
            return self._attend(self.linear(hidden), sender, receiver)
        total = hidden.index_add(0, receiver, hidden[sender])
        if self.second is not None:
            return self.second(self.linear(total).relu()).relu()
        count = torch.bincount(receiver, minlength=len(hidden)) + 1
        return self.linear(total / count[:, None]).relu()

    def _attend(self, hidden: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        assert self.score is not None
        own = torch.arange(len(hidden), device=hidden.device)
        sender, receiver = torch.cat([sender, own]), torch.cat([receiver, own])
        score = F.leaky_relu(self.score(torch.cat([hidden[receiver], hidden[sender]], 1))[:, 0], 0.2)
        highest = torch.full_like(hidden[:, 0], -torch.inf).scatter_reduce(0, receiver, score.detach(), "amax")
        share = (score - highest[receiver]).exp()
        total = torch.zeros_like(hidden[:, 0]).index_add(0, receiver, share)
        weighted = hidden[sender] * (share / total[receiver])[:, None]
        return torch.zeros_like(hidden).index_add(0, receiver, weighted).relu()


class GraphClassifier(nn.Module):
    """Logits of graphs: an embedding of the tags, passings of messages, and a readout of the pooled nodes.

    Args:
        kind: of the messages.
        tags: how many there are.
        classes: number of classes.
        width: of what a node knows.
        layers: passings of messages.
        dropout: before the last layer.
        readout: ``sum`` or ``mean`` of the pooled nodes.
    """

    def __init__(
        self,
        kind: GraphKind,
        tags: int,
        classes: int,
        width: int = 64,
        layers: int = 2,
        dropout: float = 0.0,
        readout: Literal["sum", "mean"] = "mean",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tags, width)
        self.layers = nn.ModuleList(MessagePassing(kind, width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.readout = readout

    def nodes(self, graphs: GraphBatch) -> Tensor:
        """What each node knows in the end, [N, D]."""
        hidden = self.embedding(graphs.tags)
        for layer in self.layers:
            hidden = layer(hidden, graphs.edges)
        return hidden

    def forward(self, graphs: GraphBatch) -> Tensor:
        """Graphs -> logits [B, K]."""
        hidden, owner = self.nodes(graphs)[graphs.pooled], graphs.owner[graphs.pooled]
        total = hidden.new_zeros(graphs.count, hidden.shape[1]).index_add(0, owner, hidden)
        if self.readout == "mean":
            total = total / torch.bincount(owner, minlength=graphs.count).clamp(min=1)[:, None]
        logits: Tensor = self.head(self.dropout(total))
        return logits


def train_on_graphs(
    network: GraphClassifier,
    graphs: Sequence[GraphBatch],
    labels: Tensor,
    weights: Tensor,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    key: Hashable,
) -> GraphClassifier:
    """AdamW on the weighted cross-entropy, in place; order and dropout follow from ``key``. In evaluation mode after.

    Args:
        network: what is trained.
        graphs: S of them.
        labels: int64 [S].
        weights: float32 [S], of the losses.
        steps: of the optimizer.
        lr: learning rate.
        weight_decay: of the weights themselves.
        batch_size: graphs a step.
        key: of all randomness.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    weights, order, whole = weights / weights.mean(), list[Tensor](), None
    if len(graphs) <= batch_size:
        whole = GraphBatch.joined(graphs)
    network.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(key_of(key) % 2**63)
        for step in range(steps):
            if not order:
                ranks = uniform(torch.arange(len(graphs)), (1,), (key, step))[:, 0].argsort()
                order = list(ranks.split(batch_size))
            rows = order.pop().to(labels.device)
            batch = GraphBatch.joined([graphs[i] for i in rows.tolist()]) if whole is None else whole
            rows = rows if whole is None else torch.arange(len(graphs), device=labels.device)
            losses = F.cross_entropy(network(batch), labels[rows], reduction="none")
            optimizer.zero_grad()
            (losses * weights[rows]).mean().backward()
            optimizer.step()
    return network.eval()


def fresh_classifier(
    kind: GraphKind,
    tags: int,
    classes: int,
    key: Hashable,
    device: torch.device | None = None,
    **sizes: Any,
) -> GraphClassifier:
    """A network with random weights that depend on ``key`` alone. No generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_of(key) % 2**63)
        return GraphClassifier(kind, tags, classes, **sizes).to(device)
