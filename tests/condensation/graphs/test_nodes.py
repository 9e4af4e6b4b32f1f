"""The learnable set of nodes and the real graph beside it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from limbeck.condensation.graphs.networks import normalised
from limbeck.condensation.graphs.nodes import RealNodes, Structure, SyntheticNodes, node_set, shares_of
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.models.building import build_model
from limbeck.registry import Block


def offers(data):
    return {**data.spec.offers(), "data": data}


def test_edges_are_the_papers_formula_pair_by_pair():
    torch.manual_seed(0)
    structure, x = Structure(4, 6).double(), torch.randn(5, 4, dtype=torch.float64)
    first = nn.Linear(8, 6).double()
    first.weight.data = torch.cat([structure.own.weight, structure.other.weight], 1).data
    first.bias.data = structure.own.bias.data
    mlp = nn.Sequential(first, nn.ReLU(), structure.middle, nn.ReLU(), structure.last)
    found = structure(x)
    for i, j in itertools.product(range(5), repeat=2):
        wanted = torch.sigmoid((mlp(torch.cat([x[i], x[j]])) + mlp(torch.cat([x[j], x[i]]))) / 2)
        assert found[i, j].item() == pytest.approx(0.0 if i == j else wanted.item(), abs=1e-12)


def test_weak_edges_are_not_delivered_but_matched():
    torch.manual_seed(0)
    student = SyntheticNodes(torch.randn(6, 4), torch.arange(6) % 3, Structure(4, 8), delta=0.5)
    soft = student.structure(student.features)
    delta = soft[soft > 0].median().item()
    student.delta = delta
    _, edges, _ = student()
    assert torch.equal(edges, torch.where(soft >= delta, soft, 0.0))
    assert 0 < (edges > 0).sum() < 30
    assert torch.equal(student.matched()[1], normalised(soft))


def test_the_real_graph_is_its_arrays(nodes):
    real, graph = RealNodes.of(nodes.train), nodes.extra["graph"]
    dense = torch.zeros(len(graph), len(graph))
    for a, b in graph.edges.T.tolist():
        dense[a, b] = dense[b, a] = 1
    assert torch.allclose(real.adjacency.to_dense(), normalised(dense), atol=1e-6)
    assert torch.allclose(real.features.sum(1), torch.ones(len(graph)))
    assert set(real.features[5].nonzero()[:, 0].tolist()) == set(graph.texts[5])
    assert real.counts == [6, 6, 6]
    assert (real.labels[nodes.test.nodes] == -100).all()
    for c in range(3):
        assert (graph.label[real.of_class(c)] == c).all()


def test_draws_are_of_their_class_and_of_the_key(nodes):
    real = RealNodes.of(nodes.train)
    rows = real.draw([2, 1, 8], "a")
    assert real.labels[rows].tolist() == [0] * 2 + [1] + [2] * 8
    assert len(set(rows[3:9].tolist())) == 6
    assert torch.equal(rows, real.draw([2, 1, 8], "a"))
    assert not torch.equal(rows, real.draw([2, 1, 8], "b"))


def test_shares_keep_the_ratio():
    assert shares_of([40, 20, 3], None, 0.1) == [4, 2, 1]
    assert shares_of([40, 20, 3], 2, None) == [2, 2, 2]
    assert shares_of([40, 20], None, None) == [1, 1]


@pytest.mark.parametrize("structure", ["learned", "none"])
def test_a_set_comes_back_from_its_folder(nodes, tmp_path, structure):
    block = Block("synthetic_nodes", {"ratio": 0.5, "structure": structure, "hidden": 4, "delta": 0.4})
    stored = build_model(block, offers=offers(nodes), seed=3)
    assert stored.module.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    store.save(tmp_path / "set", stored)
    back = store.load(tmp_path / "set").module
    for a, b in zip(stored.module(), back(), strict=True):
        assert (a is b is None) or torch.equal(a, b)


def test_first_nodes_are_real_or_noise(nodes):
    real = RealNodes.of(nodes.train)
    made = {
        i: build_model(Block("synthetic_nodes", {"init": i}), offers=offers(nodes), seed=1) for i in ("real", "noise")
    }
    for row, label in zip(made["real"].module.features, made["real"].module.labels, strict=True):
        assert (real.features[real.of_class(label)] == row).all(1).any()
    assert made["noise"].module.features.std() > 0.5


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"ratio": 1.5}, {"ratio": 0.1, "per_class": 1}, {"hidden": 0}])
def test_wrong_sizes_are_refused(nodes, wrong):
    with pytest.raises(UserError, match="synthetic_nodes"):
        build_model(Block("synthetic_nodes", wrong), offers=offers(nodes), seed=0)


def test_other_students_and_data_are_refused(data):
    with pytest.raises(UserError, match="not Linear"):
        node_set(nn.Linear(2, 2))
    with pytest.raises(UserError, match="graph_nodes"):
        RealNodes.of(data.train)
