"""The baselines of real nodes."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.graphs.networks import spread
from limbeck.condensation.graphs.nodes import RealNodes
from limbeck.condensation.methods.real_nodes import NodeSubset
from limbeck.condensation.selection import herding, k_center
from limbeck.data.graph_nodes import graph_nodes
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import Block, build


@pytest.fixture
def nodes():
    return graph_nodes(nodes=90, classes=3, per_class=6, test_size=40, words=6, degree=5.0, clarity=0.6)


def start(data, per_class=2, structure="none", init="real"):
    torch.manual_seed(4)
    args = {"per_class": per_class, "structure": structure, "init": init}
    return build("model", Block("synthetic_nodes", args), offers={**data.spec.offers(), "data": data})


def chosen(data, student=None, **args) -> torch.Tensor:
    student = student or start(data)
    method = NodeSubset(**args)
    method.setup(Parts(student, data=data.spec, streams={"data": data.train}))
    assert list(method.updates({"id": torch.arange(1)}, Clock(0, 1))) == []
    return student.features.detach()


def test_random_is_where_a_condensation_arm_of_the_same_seed_starts(nodes):
    assert torch.equal(chosen(nodes), start(nodes).features)
    assert torch.equal(chosen(nodes, start(nodes, init="noise")), start(nodes).features)


@pytest.mark.parametrize(("name", "select"), [("herding", herding), ("k_center", k_center)])
@pytest.mark.parametrize("hops", [0, 2])
def test_selection_compares_what_nodes_know(nodes, name, select, hops):
    real = RealNodes.of(nodes.train)
    passed, own = spread(real.features, real.adjacency, hops), real.of_class(1)
    rows = own[select(passed[own], 3)]
    student = start(nodes, 3)
    assert torch.equal(chosen(nodes, student, selection=name, hops=hops)[3:6], real.features[rows])
    assert torch.equal(chosen(nodes, student, selection=name, hops=hops, keep="passed")[3:6], passed[rows])


def test_what_cannot_be_chosen_is_refused(nodes):
    with pytest.raises(UserError, match="structure: none"):
        chosen(nodes, start(nodes, structure="learned"))
    with pytest.raises(UserError, match="9 nodes of class 0"):
        chosen(nodes, start(nodes, 9), selection="herding")
    with pytest.raises(UserError, match="hops"):
        NodeSubset(hops=-1)
