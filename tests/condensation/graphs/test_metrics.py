"""Judging condensed nodes by the networks that they train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.condensation.graphs.metrics import fresh_graph_networks
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
