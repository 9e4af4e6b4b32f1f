"""Judging a condensed graph by what it is for: training networks on it that then classify the real one's nodes."""

from __future__ import annotations

import statistics
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.condensation.graphs.classifiers import GraphKind, fresh_classifier, train_on_graphs
from limbeck.condensation.graphs.networks import Kind, NodeNetwork, fresh_node_network, normalised, train_on_nodes
from limbeck.condensation.graphs.nodes import RealNodes, SyntheticNodes, node_set
from limbeck.condensation.graphs.sets import graph_collection, graphs_of, joined_graphs, tags_of
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


@register(
    "metric",
    task={"classification"},
    better={
        "fresh_accuracy": "higher",
        "fresh_accuracy_std": "lower",
        "fresh_auc": "higher",
        "graphs": "lower",
        "structure_bytes": "lower",
        "label_bytes": "lower",
    },
    labels={
        "fresh_auc": ("Area under the curve of fresh networks", "%"),
        "graphs": ("Graphs", ""),
        "structure_bytes": ("Nodes and edges", "bytes"),
    },
)
def fresh_graph_classifiers(
    evaluation: Evaluation,
    *,
    networks: int = 2,
    kinds: tuple[GraphKind, ...] = ("gcn", "gin", "gat"),
    width: int = 64,
    layers: int = 2,
    dropout: float = 0.2,
    readout: Literal["sum", "mean"] = "mean",
    steps: int = 300,
    lr: float = 3e-3,
    weight_decay: float = 0.1,
    batch_size: int = 64,
) -> Scores:
    """Train fresh networks on the model's graphs and test them on ordinary ones, of which all nodes are read out.

    Args:
        evaluation: the graphs that are judged, and the test split.
        networks: fresh networks of each kind.
        kinds: what is trained.
        width: of what a node knows.
        layers: passings of messages.
        dropout: before the last layer.
        readout: ``sum`` (the paper's) or ``mean`` of what is read out.
        steps: of the optimizer (AdamW).
        lr: learning rate.
        weight_decay: of the optimizer.
        batch_size: graphs a step.

    Raises:
        UserError: the model is no set of graphs or an empty one, or the data has no graphs with labels.
    """
    if networks < 1 or not kinds or evaluation.spec is None or evaluation.spec.classes is None:
        raise UserError("fresh_graph_classifiers needs a data block, 'networks' at least 1, and 'kinds' must name one")
    student = graph_collection(evaluation.model)
    graphs, labels, weights = student()
    if not graphs:
        raise UserError("fresh_graph_classifiers: the set of graphs is empty")
    ordinary, truth = graphs_of(evaluation.test)
    test, device = joined_graphs(ordinary).to(evaluation.device), evaluation.device
    found: dict[str, list[float]] = {}
    areas = []
    for kind in kinds:
        for number in range(networks):
            key = (evaluation.seed, "fresh classifier", kind, number)
            sizes: dict[str, Any] = {"width": width, "layers": layers, "dropout": dropout, "readout": readout}
            network = fresh_classifier(kind, tags_of(evaluation.test), evaluation.spec.classes, key, device, **sizes)
            rates: dict[str, Any] = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "batch_size": batch_size}
            train_on_graphs(network, graphs, labels, weights, **rates, key=key)
            with torch.no_grad():
                shares = network(test).softmax(1).cpu()
            found.setdefault(kind, []).append((shares.argmax(1) == torch.tensor(truth)).double().mean().item())
            areas.append(area(shares, truth))
    scores = [score for each in found.values() for score in each]
    stored = student.bytes()
    values = {"fresh_accuracy": statistics.fmean(scores), "fresh_accuracy_std": statistics.pstdev(scores)}
    values |= {"fresh_auc": statistics.fmean(areas), "graphs": float(len(graphs))}
    values |= {"structure_bytes": float(stored["structure"]), "label_bytes": float(stored["labels"])}
    return Scores(values, {"fresh_accuracies": found})


def area(shares: Tensor, truth: list[int]) -> float:
    """Area under the ROC curve of probabilities [N, K], the mean over the classes, each against the others.

    Raises:
        UserError: the test split has no graph of some class.
    """
    from sklearn.metrics import roc_auc_score

    if len(set(truth)) < shares.shape[1]:
        raise UserError("the area under the curve needs test graphs of all classes")
    if shares.shape[1] == 2:
        return float(roc_auc_score(truth, shares[:, 1].numpy()))
    return statistics.fmean(
        float(roc_auc_score([label == k for label in truth], shares[:, k].numpy())) for k in range(shares.shape[1])
    )


@register(
    "metric",
    task={"classification"},
    better={"cluster_accuracy": "higher", "nmi": "higher", "ari": "higher"},
    labels={
        "cluster_accuracy": ("Accuracy of clusters", "%"),
        "nmi": ("Normalised mutual information with the labels", ""),
        "ari": ("Adjusted Rand index with the labels", ""),
    },
)
def clustering(evaluation: Evaluation, *, split: Literal["train", "test"] = "train") -> Scores:
    """How well clusters agree with classes: a row's cluster is where the model's logits are largest.

    The accuracy is that of the best one-to-one naming of clusters by classes (the Hungarian method); a cluster without
    a class is wrong throughout.

    Args:
        evaluation: the model, and the split.
        split: whose rows are judged. Those of ``train`` are what was clustered, as in papers on clustering.

    Raises:
        UserError: there is no such split, no row of it has a label, or the model gives no logits.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    source = evaluation.train if split == "train" else evaluation.test
    if source is None:
        raise UserError("clustering: there is no training split to judge on")
    found, truth = [], []
    for batch in evaluation.batches(source):
        signals = evaluation.run(batch)
        if "logits" not in signals or "label" not in batch:
            raise UserError("clustering needs a model that gives logits, and data with labels to judge it by")
        known = batch["label"] >= 0
        found.append(signals.logits[known].argmax(1).cpu())
        truth.append(batch["label"][known].cpu())
    clusters, labels = torch.cat(found), torch.cat(truth)
    if not len(labels):
        raise UserError(f"clustering: no row of the {split} split has a label to judge by")
    table = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1, dtype=torch.int64)
    table.index_put_((clusters, labels), torch.ones_like(labels), accumulate=True)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return Scores(
        {
            "cluster_accuracy": float(table[rows, columns].sum()) / len(labels),
            "nmi": float(normalized_mutual_info_score(labels, clusters)),
            "ari": float(adjusted_rand_score(labels, clusters)),
        }
    )
