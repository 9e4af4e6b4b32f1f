"""Judging condensed nodes by the networks that they train."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn

from limbeck.condensation.graphs.metrics import clustering, fresh_graph_networks
from limbeck.condensation.graphs.networks import spread
from limbeck.condensation.graphs.nodes import RealNodes, Structure, SyntheticNodes
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import find

SMALL = {"networks": 2, "steps": 60, "hidden": 8, "lr": 0.05, "weight_decay": 0.0}


def judge(data, features, labels, structure=None, **args):
    student = SyntheticNodes(features, labels, structure)
    evaluation = Evaluation(student, spec=data.spec, source=data.test, train=data.train)
    return fresh_graph_networks(evaluation, **{**SMALL, **args})


def means(data):
    real = RealNodes.of(data.train)
    passed = spread(real.features, real.adjacency, 2)
    return torch.stack([passed[real.of_class(c)].mean(0) for c in range(3)])


def test_means_teach_and_wrong_labels_do_not(nodes):
    good = judge(nodes, means(nodes), torch.arange(3), whole=True)
    assert good.values["fresh_accuracy"] > 0.7
    assert good.values["whole_accuracy"] > 0.7
    assert judge(nodes, means(nodes)[[1, 2, 0]], torch.arange(3)).values["fresh_accuracy"] < 0.3
    each = good.details["fresh_accuracies"]["gcn"]
    assert good.values["fresh_accuracy"] == pytest.approx(sum(each) / 2)


def test_sizes_are_what_is_stored(nodes):
    values = judge(nodes, torch.zeros(6, 18), torch.arange(6) % 3, Structure(18, 4), steps=1).values
    assert (values["nodes"], values["feature_bytes"], values["label_bytes"]) == (6, 6 * 18 * 4, 6 * 8)
    assert values["adjacency_bytes"] == 36 * 4
    assert judge(nodes, torch.zeros(6, 18), torch.arange(6) % 3, steps=1).values["adjacency_bytes"] == 0


def test_kinds_are_trained_and_the_student_is_left_alone(nodes):
    torch.manual_seed(1)
    features, state = torch.randn(3, 18), torch.get_rng_state()
    student = SyntheticNodes(features, torch.arange(3))
    evaluation = Evaluation(student, spec=nodes.spec, source=nodes.test, train=nodes.train)
    found = [fresh_graph_networks(evaluation, **SMALL, kinds=("sgc", "gcn")) for _ in range(2)]
    assert found[0] == found[1]
    assert set(found[0].details["fresh_accuracies"]) == {"sgc", "gcn"}
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(student.features, features)


def test_every_value_has_a_direction(nodes):
    values = judge(nodes, torch.zeros(3, 18), torch.arange(3), steps=1, whole=True).values
    assert set(values) == set(find("metric", "fresh_graph_networks").facts["better"])


def test_mistakes_are_told(nodes):
    with pytest.raises(UserError, match="not Linear"):
        fresh_graph_networks(Evaluation(nn.Linear(2, 2), spec=nodes.spec, source=nodes.test, train=nodes.train))
    with pytest.raises(UserError, match="at least 1"):
        judge(nodes, torch.zeros(3, 18), torch.arange(3), networks=0)
    with pytest.raises(UserError, match="training split"):
        student = SyntheticNodes(torch.zeros(3, 18), torch.arange(3))
        fresh_graph_networks(Evaluation(student, spec=nodes.spec, source=nodes.test))


class Names(nn.Module):
    """Gives each row the cluster that a table names."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, rows):
        return torch.eye(int(self.table.max()) + 1)[self.table[rows]]


class Labelled:
    """Rows that are their numbers, with labels."""

    def __init__(self, labels):
        self.labels = torch.tensor(labels)

    def __len__(self):
        return len(self.labels)

    def batch(self, indices, view=0):
        return {"input": indices, "label": self.labels[indices], "id": indices, "view": view}


def clusters(table, labels, **args):
    return clustering(Evaluation(Names(table), train=Labelled(labels), batch_size=4), **args).values


def entropy(counts):
    return -sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts if c)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_clusters_are_judged_by_their_best_names(count):
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(3, (30,), generator=generator).tolist()
    table = [
        (a + b) % count for a, b in zip(labels, torch.randint(2, (30,), generator=generator).tolist(), strict=True)
    ]
    found = clusters(table, labels)
    best = 0
    for names in itertools.permutations(range(max(count, 3)), count):
        best = max(best, sum(names[c] == y for c, y in zip(table, labels, strict=True)))
    assert found["cluster_accuracy"] == pytest.approx(best / 30)
    of_both = entropy([*Counter(zip(table, labels, strict=True)).values()])
    one, other = entropy([*Counter(table).values()]), entropy([*Counter(labels).values()])
    assert found["nmi"] == pytest.approx(2 * (one + other - of_both) / (one + other))
    pairs = [(table[i] == table[j], labels[i] == labels[j]) for i, j in itertools.combinations(range(30), 2)]
    together, same = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    chance = together * same / len(pairs)
    index = (sum(a and b for a, b in pairs) - chance) / ((together + same) / 2 - chance)
    assert found["ari"] == pytest.approx(index)


def test_names_of_clusters_do_not_matter_and_rows_without_a_label_do_not_count():
    assert clusters([2, 2, 0, 0, 1], [0, 0, 1, 1, 2]) == {"cluster_accuracy": 1.0, "nmi": 1.0, "ari": 1.0}
    assert clusters([2, 2, 0, 1, 1], [0, 0, 1, -100, -100])["cluster_accuracy"] == 1.0
    assert set(clusters([0, 1], [1, 0])) == set(find("metric", "clustering").facts["better"])


def test_the_split_is_as_asked_and_mistakes_are_told():
    evaluation = Evaluation(Names([0, 1, 1]), source=Labelled([0, 1, 1]), train=Labelled([0, 0, 1]))
    assert clustering(evaluation, split="test").values["cluster_accuracy"] == 1.0
    assert clustering(evaluation).values["cluster_accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="no training split"):
        clustering(Evaluation(Names([0, 1]), source=Labelled([0, 1])))
    with pytest.raises(UserError, match="no row of the train split"):
        clusters([0, 1], [-100, -100])
