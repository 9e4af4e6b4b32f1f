"""Gradient matching on a graph: its loss in float64, whose turn it is, and its loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.graphs.networks import fresh_node_network, normalised
from limbeck.condensation.graphs.nodes import RealNodes, Structure, SyntheticNodes
from limbeck.condensation.methods.gcond import GCond
from limbeck.data.graph_nodes import graph_nodes
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError


@pytest.fixture
def nodes():
    return graph_nodes(nodes=90, classes=3, per_class=6, test_size=40, words=6, degree=5.0, clarity=0.6)


def ready(data, edges=True, **args) -> GCond:
    torch.manual_seed(5)
    student = SyntheticNodes(
        torch.rand(6, 18), torch.arange(3).repeat_interleave(2), Structure(18, 8) if edges else None
    )
    method = GCond(**{"hidden": 5, **args})
    method.setup(Parts(student, data=data.spec, streams={"data": data.train}))
    return method


def loss(method: GCond, clock: Clock) -> torch.Tensor:
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student",), 1, 1.0)
    return term.sum


def unequal(data):
    """The data with some labels hidden, so that classes have 6, 4 and 2."""
    known = (data.train.label >= 0).nonzero()[:, 0]
    for label, hidden in ((1, 2), (2, 4)):
        data.train.label[known[data.train.label[known] == label][:hidden]] = -100
    return data


@pytest.mark.parametrize("net", ["sgc", "gcn"])
@pytest.mark.parametrize("edges", [True, False])
def test_loss_and_gradient_are_the_papers_in_float64(nodes, net, edges):
    method = ready(unequal(nodes), edges, net=net)
    found = loss(method, Clock(0, 10, seed=3))
    found.backward()
    network = fresh_node_network(net, 18, 3, 5, 2, (3, 0, "network")).double()
    weights = [p for p in network.parameters() if p.dim() > 1]
    real, student = RealNodes.of(nodes.train), copy.deepcopy(method.student).double()
    assert real.counts == [6, 4, 2]
    whole = network(real.features.double(), real.adjacency.to_dense().double())
    features = method.student.features.detach().double().requires_grad_()
    own = network(features, normalised(student.structure(features)) if edges else torch.eye(6).double())
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        a = torch.autograd.grad(
            F.cross_entropy(whole[real.labels == c], torch.full((6 - 2 * c,), c)), weights, retain_graph=True
        )
        b = torch.autograd.grad(
            F.cross_entropy(own[2 * c : 2 * c + 2], torch.full((2,), c)), weights, create_graph=True
        )
        for x, y in zip(a, b, strict=True):
            for one, other in zip(x, y, strict=True):
                total = total + (1 - one.dot(other) / (one.norm() * other.norm() + 1e-6)) * (1 - c / 3)
    (gradient,) = torch.autograd.grad(total, features)
    assert found.item() == pytest.approx(total.item(), rel=1e-4)
    assert torch.allclose(method.student.features.grad.double(), gradient, rtol=1e-3, atol=1e-4)


def moves(method: GCond, step: int) -> tuple[bool, bool]:
    for p in method.student.parameters():
        p.grad = None
    loss(method, Clock(step, 10)).backward()
    edges = [p.grad is not None for p in method.student.structure.parameters()]
    assert len(set(edges)) == 1
    return method.student.features.grad is not None, edges[0]


def test_features_and_edges_learn_by_turns(nodes):
    method = ready(nodes, feature_steps=2, structure_steps=1)
    assert [moves(method, step) for step in range(4)] == [(True, False), (True, False), (False, True), (True, False)]
    assert all(p.requires_grad for p in method.student.parameters())


def weights(method: GCond) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in method.network.parameters()])


def test_a_network_lasts_for_the_outer_steps_and_learns_between(nodes):
    method = ready(nodes, outer=3, inner=2)
    seen = []
    for step in range(5):
        loss(method, Clock(step, 5))
        before = weights(method)
        method.after_step(Clock(step, 5))
        seen.append((before, weights(method)))
    assert [not torch.equal(a, b) for a, b in seen] == [True, True, False, True, True]
    assert torch.equal(seen[0][1], seen[1][0])
    assert not torch.equal(seen[3][0], seen[0][0])


def test_a_resumed_run_goes_on_with_the_network_that_it_had(nodes):
    one, other = (ready(nodes, outer=4) for _ in range(2))
    for step in range(2):
        loss(one, Clock(step, 4))
        one.after_step(Clock(step, 4))
    other.load_state_dict(one.state_dict())
    assert other.state_dict().keys() == one.state_dict().keys()
    assert loss(other, Clock(2, 4)).item() == loss(one, Clock(2, 4)).item()
    assert loss(ready(nodes, outer=4), Clock(2, 4)).item() != loss(one, Clock(2, 4)).item()


@pytest.mark.parametrize("wrong", [{"outer": 0}, {"inner": -1}, {"feature_steps": 0}, {"layers": 0}])
def test_loops_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="gcond:"):
        GCond(**wrong)
