"""Block contrastive clustering: its start, its terms in float64, what it never reads, and its going on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.graphs.contrast import influence, nearest_edges
from limbeck.condensation.graphs.encoder import NodeEncoder
from limbeck.condensation.graphs.models import node_encoder
from limbeck.condensation.methods.pamc import PAMC
from limbeck.data.graph_nodes import graph_nodes
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError

SMALL = {"hidden": 8, "top": 12, "embedding": 4}


@pytest.fixture
def nodes():
    return graph_nodes(nodes=90, classes=3, per_class=6, test_size=40, words=6, degree=5.0, clarity=0.6)


def encoder(data, **args) -> NodeEncoder:
    torch.manual_seed(4)
    return node_encoder(in_features=64, classes=3, data=data, seed=2, **{**SMALL, **args})


def ready(data, **args) -> PAMC:
    method = PAMC(**{"pretrain_steps": 30, "pretrain_batch": 16, "hops": 2, "starts": 2, **args})
    method.setup(Parts(encoder(data), data=data.spec, streams={"data": data.train}))
    return method


def terms(method: PAMC, step: int = 0):
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, Clock(step, 10))
    assert update.roles == ("student",)
    return update.evaluate()


def loss(method: PAMC, step: int = 0) -> torch.Tensor:
    return sum(term.weight * term.sum for term in terms(method, step).values())


def learn(method: PAMC, steps: range) -> torch.Tensor:
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss(method, step).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in method.student.parameters()])


@pytest.mark.parametrize("negatives", ["blocks", "all"])
def test_loss_and_gradient_are_the_papers_in_float64(data, negatives):
    method = ready(data, negatives=negatives, alpha=1.5, beta=0.7, tau=0.8)
    found = terms(method)
    assert {name: (t.count, t.weight) for name, t in found.items()} == {"contrast": (1, 1.5), "clusters": (1, 0.7)}
    loss(method).backward()
    student = copy.deepcopy(method.student).double()
    student.zero_grad()
    x = data.train.images.flatten(1)
    z = student.encoder(x.double())
    q = 1 / (1 + torch.cdist(z, student.centres).square())
    q = q / q.sum(1, keepdim=True)
    p = (q**2 / q.sum(0)).detach()
    p = p / p.sum(1, keepdim=True)
    places, weights = influence(nearest_edges(x, 3), 45, 2)
    a = torch.zeros(45, 45).double()
    a[places[0], places[1]] = weights.double()
    near = (a * (0.8 * F.cosine_similarity(z[:, None], z[None], dim=2)).exp()).sum(1)
    rows = list(z) if negatives == "all" else [z[q.argmax(1) == k].sum(0) for k in range(3)]
    far = [
        torch.stack([(0.8 * F.cosine_similarity(u, v, dim=0) * (i != j)).exp() for j, v in enumerate(rows)]).sum()
        for i, u in enumerate(rows)
    ]
    contrast = -near.log().mean() + torch.stack(far).log().mean()
    divergence = (p * (p.log() - q.log())).sum() / 45
    (1.5 * contrast + 0.7 * divergence).backward()
    assert found["contrast"].sum.item() == pytest.approx(contrast.item(), rel=1e-4, abs=1e-5)
    assert found["clusters"].sum.item() == pytest.approx(divergence.item(), rel=1e-3, abs=1e-6)
    for one, other in zip(method.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(one.grad.double(), other.grad, rtol=1e-3, atol=1e-5)


def test_without_weights_the_student_stays_k_means(data):
    method = ready(data, alpha=0.0, beta=0.0)
    before = torch.cat([p.detach().flatten().clone() for p in method.student.parameters()])
    assert torch.equal(learn(method, range(3)), before)
    other = ready(data)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in other.student.parameters()]))
    assert not torch.equal(learn(other, range(3)), before)


def test_no_label_is_read(data):
    found = learn(ready(data), range(3))
    data.train.labels = None
    assert torch.equal(learn(ready(data), range(3)), found)


def test_a_graph_of_the_data_is_taken_with_all_its_nodes_and_no_label(nodes):
    def trained():
        method = PAMC(pretrain_steps=5, hops=2, starts=1)
        student = node_encoder(classes=3, data=nodes, seed=2, **SMALL)
        method.setup(Parts(student, data=nodes.spec, streams={"data": nodes.train}))
        return method, learn(method, range(2))

    torch.manual_seed(0)
    method, found = trained()
    places, weights = influence(nodes.extra["graph"].edges, 90, 2)
    assert torch.equal(method.places, places) and torch.equal(method.weights, weights) and len(method.inputs) == 90
    nodes.train.label.fill_(-100)
    torch.manual_seed(0)
    assert torch.equal(trained()[1], found)


def test_targets_stay_for_the_refresh_steps_and_survive_an_interruption(data):
    whole, one, other = (ready(data, refresh=3) for _ in range(3))
    wanted = learn(whole, range(5))
    learn(one, range(2))
    first = one.targets.clone()
    other.student.load_state_dict(one.student.state_dict())
    other.load_state_dict(one.state_dict())
    terms(other, 2)
    assert torch.equal(other.targets, first)
    assert torch.equal(learn(other, range(2, 5)), wanted)
    assert not torch.equal(other.targets, first)
    forgot = ready(data, refresh=3)
    forgot.student.load_state_dict(one.student.state_dict())
    terms(forgot, 2)
    assert not torch.equal(forgot.targets, first)


@pytest.mark.parametrize(
    "wrong", [{"hops": 0}, {"neighbours": 0}, {"refresh": 0}, {"pretrain_steps": -1}, {"starts": 0}]
)
def test_numbers_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="pamc:"):
        PAMC(**wrong)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="node_encoder, not Linear"):
        PAMC().setup(Parts(torch.nn.Linear(2, 2), streams={"data": data.train}))
    with pytest.raises(UserError, match="one stream"):
        PAMC().setup(Parts(encoder(data), streams={}))
    with pytest.raises(UserError, match="too few"):
        ready(data, neighbours=45)
