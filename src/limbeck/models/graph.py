"""Graph convolutional networks in plain PyTorch, and one that knows the graph whose nodes it classifies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.registry import Block, register


class Convolutions(nn.Module):
    """``h_0 = relu(X W + b)`` and ``h_l = relu(A h_{l-1} W_l + b_l)``, after Kipf and Welling 2017 (arXiv 1609.02907).

    Theirs begins with a convolution; here a layer without one comes first, so that ``h_l`` is what a node knows after l
    passings of messages.

    Args:
        features: of a node.
        hidden: of every layer.
        layers: passings of messages.
        dropout: before every layer but the first.
    """

    def __init__(self, features: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, adjacency: Tensor) -> list[Tensor]:
        """``[h_0, ..., h_L]``, [N, hidden] each.

        Args:
            features: X [N, F], dense or sparse.
            adjacency: A [N, N], dense or sparse, normalised as :func:`normalised_weights` does.
        """
        found = [F.relu(features @ self.first.weight.T + self.first.bias)]
        for layer in self.layers:
            found.append(F.relu(layer(adjacency @ self.dropout(found[-1]))))
        return found


def normalised_weights(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Entries of ``D^(-1/2) (A + I) D^(-1/2)``: their places int64 [2, 2 E + N] in ascending order, and values.

    Args:
        edges: int64 [2, E], each pair once, without loops.
        nodes: N.
    """
    loops = torch.arange(nodes, device=edges.device).expand(2, -1)
    places = torch.cat([edges, edges.flip(0), loops], 1)
    places = places[:, (places[0] * nodes + places[1]).argsort()]
    degree = torch.bincount(places[0], minlength=nodes).float()
    return places, (degree[places[0]] * degree[places[1]]).rsqrt()


@register("model", name="gcn", gives={"logits", "hidden_states"})
class GraphConvolutionalNetwork(nn.Module):
    """A network that has a graph, and gives nodes of it a class by their numbers.

    The features of a node are its words, each with the same weight, together 1. Every call goes over the whole graph.
    The graph is stored with the weights.

    Args:
        hidden: width of every layer.
        layers: passings of messages.
        dropout: before every layer but the first, and before the last.
        classes: number of classes.
        data: the built data, which has the graph (data ``graph_nodes``).
        nodes, features, edges, entries: how many nodes, words and edges the graph has, and words of nodes in all; only
            to be said where there is no data, as when the network is read from a folder.

    Raises:
        UserError: there is no graph, or a number is out of range.
    """

    bags: Tensor
    edges: Tensor

    def __init__(
        self,
        *,
        hidden: int,
        classes: int,
        layers: int = 2,
        dropout: float = 0.0,
        data: Any = None,
        nodes: int | None = None,
        features: int | None = None,
        edges: int | None = None,
        entries: int | None = None,
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 0 or not 0 <= dropout < 1:
            raise UserError(f"graph network: no hidden {hidden}, layers {layers} and dropout {dropout}")
        graph = getattr(data, "extra", {}).get("graph")
        if graph is not None:
            (rows, words), pairs = graph.bags, graph.edges
            nodes, features, edges, entries = len(graph), len(graph.words), pairs.shape[1], len(words)
        elif nodes and features and edges is not None and entries is not None:
            rows, words, pairs = (torch.zeros(n, dtype=torch.int64) for n in (entries, entries, 2 * edges))
        else:
            raise UserError("a graph network needs data with a graph (data graph_nodes)")
        self.nodes, self.features = nodes, features
        self.register_buffer("bags", torch.stack([rows, words]))
        self.register_buffer("edges", pairs.reshape(2, -1))
        self.convolutions = Convolutions(features, hidden, layers, dropout)
        self.head = nn.Linear(hidden, classes)
        sizes = {"nodes": nodes, "features": features, "edges": edges, "entries": entries}
        own = {"hidden": hidden, "classes": classes, "layers": layers, "dropout": dropout}
        self.portable = Block("gcn", {**own, **sizes})

    def forward(self, nodes: Tensor) -> dict[str, Any]:
        """Numbers of nodes, int64 [B] -> ``logits`` [B, K] and ``hidden_states``, h_0 to h_L, [B, H] each."""
        hidden = tuple(h[nodes] for h in self.convolutions(self._features(), self._adjacency()))
        return {"logits": self.head(self.convolutions.dropout(hidden[-1])), "hidden_states": hidden}

    def _features(self) -> Tensor:
        counts = torch.bincount(self.bags[0], minlength=self.nodes).to(self.head.weight.dtype)
        return _sparse(self.bags, 1 / counts[self.bags[0]], (self.nodes, self.features))

    def _adjacency(self) -> Tensor:
        places, weights = normalised_weights(self.edges, self.nodes)
        return _sparse(places, weights.to(self.head.weight.dtype), (self.nodes, self.nodes))


def _sparse(places: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)
