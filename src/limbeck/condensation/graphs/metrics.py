"""Judging a condensed graph by what it is for: training networks on it that then classify the real one's nodes."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from limbeck.condensation.graphs.networks import Kind, NodeNetwork, fresh_node_network, normalised, train_on_nodes
from limbeck.condensation.graphs.nodes import RealNodes, SyntheticNodes, node_set
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import register


@register(
    "metric",
    task={"classification"},
    better={
        "fresh_accuracy": "higher",
        "fresh_accuracy_std": "lower",
        "whole_accuracy": "higher",
        "nodes": "lower",
        "feature_bytes": "lower",
        "adjacency_bytes": "lower",
        "label_bytes": "lower",
    },
    labels={
        "whole_accuracy": ("Accuracy after training on the whole graph", "%"),
        "nodes": ("Nodes", ""),
        "feature_bytes": ("Features", "bytes"),
        "adjacency_bytes": ("Adjacency", "bytes"),
    },
)
def fresh_graph_networks(
    evaluation: Evaluation,
    *,
    networks: int = 5,
    kinds: tuple[Kind, ...] = ("gcn",),
    hidden: int = 64,
    layers: int = 2,
    steps: int = 200,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    whole: bool = False,
) -> Scores:
    """Train fresh networks on the model's nodes and test them on the real graph: mean and spread of their accuracy.

    The protocol of GCond (Jin et al., arXiv 2110.07580): random weights, Adam on the full batch, the rate divided by 10
    at half of the steps (600 in the paper, width 256), tested on the test nodes with the edges of the whole graph.

    Args:
        evaluation: the nodes that are judged, the training split and the test split.
        networks: fresh networks of each kind.
        kinds: what is trained.
        hidden: width of ``gcn``.
        layers: passings of messages.
        steps: of the optimizer.
        lr: learning rate of the first half.
        weight_decay: of the optimizer.
        whole: also train such networks on the whole graph with its labelled nodes (``whole_accuracy``).

    Raises:
        UserError: the model is no set of nodes, the data has no graph, or no test node has a label.
    """
    if networks < 1 or not kinds:
        raise UserError("fresh_graph_networks: 'networks' must be at least 1, and 'kinds' name one")
    student = node_set(evaluation.model)
    if evaluation.train is None:
        raise UserError("fresh_graph_networks needs the training split, which has the graph")
    real = RealNodes.of(evaluation.train).to(evaluation.device)
    nodes, truth = _test_nodes(evaluation)
    with torch.no_grad():
        features, edges, labels = student()
    condensed = (features.detach().clone(), None if edges is None else normalised(edges), labels)
    sets = {"fresh": condensed} | ({"whole": (real.features, real.adjacency, real.labels)} if whole else {})
    found: dict[str, dict[str, list[float]]] = {}
    for name, (x, a, y) in sets.items():
        for kind in kinds:
            for number in range(networks):
                key = (evaluation.seed, "fresh network", kind, number)
                network = fresh_node_network(
                    kind, x.shape[1], real.classes, hidden, layers, key=key, device=evaluation.device
                )
                train_on_nodes(network, x, a, y, steps=steps, lr=lr, weight_decay=weight_decay, halve=True)
                found.setdefault(name, {}).setdefault(kind, []).append(_accuracy(network, real, nodes, truth))
    scores = {name: [s for each in by_kind.values() for s in each] for name, by_kind in found.items()}
    values = {
        "fresh_accuracy": statistics.fmean(scores["fresh"]),
        "fresh_accuracy_std": statistics.pstdev(scores["fresh"]),
    }
    if whole:
        values["whole_accuracy"] = statistics.fmean(scores["whole"])
    return Scores({**values, **_sizes(student)}, {"fresh_accuracies": found["fresh"]})


def _test_nodes(evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    batches = list(evaluation.batches())
    nodes, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input", "label"))
    if not (labels >= 0).any():
        raise UserError("fresh_graph_networks tests networks on labelled nodes, and no test node has a label")
    return nodes[labels >= 0], labels[labels >= 0]


@torch.no_grad()
def _accuracy(network: NodeNetwork, real: RealNodes, nodes: Tensor, truth: Tensor) -> float:
    logits = network(real.features, real.adjacency)[nodes]
    return (logits.argmax(1) == truth).double().mean().item()


def _sizes(student: SyntheticNodes) -> dict[str, float]:
    """What a user of the condensed graph stores: features, the adjacency as a matrix if there is one, labels."""
    features, labels = student.features, student.labels
    edges = 0 if student.structure is None else len(labels) ** 2
    return {
        "nodes": float(len(labels)),
        "feature_bytes": float(features.numel() * features.element_size()),
        "adjacency_bytes": float(edges * features.element_size()),
        "label_bytes": float(labels.numel() * labels.element_size()),
    }
