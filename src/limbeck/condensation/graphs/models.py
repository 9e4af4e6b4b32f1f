"""Students of graph condensation."""

from __future__ import annotations

from typing import Any, Literal

import torch

from limbeck.condensation.graphs.encoder import NodeEncoder
from limbeck.condensation.graphs.nodes import RealNodes, Structure, SyntheticNodes, shares_of
from limbeck.condensation.graphs.sets import GraphCollection
from limbeck.engine.noise import normal
from limbeck.errors import UserError
from limbeck.registry import Block, register


@register("model", gives={"nodes"}, data_is_student=True)
def synthetic_nodes(
    *,
    per_class: int | None = None,
    ratio: float | None = None,
    structure: Literal["learned", "none"] = "learned",
    hidden: int = 128,
    delta: float = 0.5,
    init: Literal["real", "noise"] = "real",
    data: Any = None,
    seed: int | None = None,
    features: int | None = None,
    counts: list[int] | None = None,
) -> SyntheticNodes:
    """A few nodes that learn, in place of a graph: the student of graph condensation.

    Args:
        per_class: nodes of each class; 1 where ``ratio`` is not given either.
        ratio: share of the labelled training nodes, class by class, so that the classes keep their share.
        structure: ``learned`` has edges, which an MLP finds in the features; ``none`` has no edges (GCondX).
        hidden: width of that MLP.
        delta: weakest edge that is delivered, in [0, 1].
        init: ``real`` features of random labelled nodes of the class, or ``noise``.
        data: the built data, whose graph is condensed (data ``graph_nodes``).
        seed: of the first features; by default from torch's generator, which the run seeds.
        features, counts: words of the graph, and nodes of each class; only to be said where there is no data, as when
            the set is read from a folder.

    Raises:
        UserError: a number is out of range, or there is no graph.
    """
    few = per_class is not None and (per_class < 1 or ratio is not None)
    if few or (ratio is not None and not 0 < ratio <= 1):
        raise UserError("synthetic_nodes: per_class of 1 or more, or a ratio above 0 and up to 1, and not both")
    if hidden < 1 or not 0 <= delta <= 1:
        raise UserError(f"synthetic_nodes: hidden {hidden} must be 1 or more, delta {delta:g} between 0 and 1")
    if data is None and features and counts:
        first, seed = torch.zeros(sum(counts), features), 0
    elif data is None or data.train is None:
        raise UserError("synthetic_nodes needs training data with a graph (data graph_nodes)")
    else:
        real = RealNodes.of(data.train)
        seed = int(torch.randint(2**31, (1,))) if seed is None else seed
        counts, features = shares_of(real.counts, per_class, ratio), real.features.shape[1]
        first = _first(real, counts, init, seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    edges = Structure(features, hidden) if structure == "learned" else None
    student = SyntheticNodes(first, labels, edges, delta, seed)
    own = {"structure": structure, "hidden": hidden, "delta": delta, "features": features, "counts": counts}
    student.portable = Block("synthetic_nodes", own)  # type: ignore[assignment]
    return student


def _first(real: RealNodes, counts: list[int], init: str, seed: int) -> torch.Tensor:
    if init == "real":
        return real.features[real.draw(counts, (seed, "first nodes"))]
    return normal(torch.arange(sum(counts)), (real.features.shape[1],), (seed, "first nodes"))


@register("model", name="graph_collection", gives={"graphs"}, data_is_student=True)
def graph_collection(*, seed: int | None = None, nodes: int = 0, edges: int = 0, graphs: int = 0) -> GraphCollection:
    """A few graphs in place of many, which a method such as ``mirage`` finds; nothing in them learns.

    Args:
        seed: of a random choice among graphs; by default from torch's generator, which the run seeds.
        nodes, edges, graphs: how many there are; only to be said where no method fills the set, as when it is read
            from a folder.

    Raises:
        UserError: a number is negative.
    """
    if min(nodes, edges, graphs) < 0:
        raise UserError(f"graph_collection: no {nodes} nodes, {edges} edges and {graphs} graphs")
    return GraphCollection(int(torch.randint(2**31, (1,))) if seed is None else seed, nodes, edges, graphs)


@register("model", gives={"embedding", "logits"})
def node_encoder(
    *,
    in_features: int | None = None,
    classes: int | None = None,
    clusters: int | None = None,
    hidden: int = 500,
    top: int = 2000,
    embedding: int = 10,
    data: Any = None,
    seed: int | None = None,
    nodes: int = 0,
    entries: int = 0,
) -> NodeEncoder:
    """An MLP that embeds rows and sorts them into clusters: the student of clustering such as ``pamc``.

    Its layers are ``hidden``, ``hidden``, ``top`` and ``embedding`` wide. Where the data has a graph, it keeps the
    words of all nodes and is called by their numbers.

    Args:
        in_features: size of a row.
        classes: of the data.
        clusters: how many; by default as many as the data has classes.
        hidden: width of the first two layers.
        top: width of the third.
        embedding: size of the embedding.
        data: the built data.
        seed: of what is drawn before the training; by default from torch's generator, which the run seeds.
        nodes, entries: how many nodes a graph has, and words of nodes in all; only to be said where there is no data,
            as when the encoder is read from a folder.

    Raises:
        UserError: a number is out of range, or it is not known how large a row is or how many clusters there are.
    """
    graph, clusters = getattr(data, "extra", {}).get("graph"), clusters or classes
    words = torch.zeros(2, entries, dtype=torch.int64) if nodes else None
    if graph is not None:
        words = torch.stack(list(graph.bags))
        nodes, entries, in_features = len(graph), words.shape[1], len(graph.words)
    if not in_features or not clusters:
        raise UserError("node_encoder: say how large a row is (in_features) and how many clusters there are (clusters)")
    if min(hidden, top, embedding, clusters) < 1:
        raise UserError("node_encoder: hidden, top, embedding and clusters must be 1 or more")
    drawn = int(torch.randint(2**31, (1,))) if seed is None else seed
    student = NodeEncoder((in_features, hidden, hidden, top, embedding), clusters, nodes, words, drawn)
    own = {"in_features": in_features, "clusters": clusters, "hidden": hidden, "top": top, "embedding": embedding}
    student.portable = Block("node_encoder", {**own, "nodes": nodes, "entries": entries})  # type: ignore[assignment]
    return student
