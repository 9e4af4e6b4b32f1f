"""Networks on nodes against dense algebra in float64."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.graphs.networks import fresh_node_network, normalised, spread, train_on_nodes


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    edges = (torch.rand(7, 7, generator=generator, dtype=torch.float64) < 0.4).double().triu(1)
    return torch.randn(7, 4, generator=generator, dtype=torch.float64), edges + edges.T


def test_normalised_is_the_papers_formula(graph):
    whole = graph[1] + torch.eye(7)
    root = torch.diag(whole.sum(1)).inverse().sqrt()
    assert torch.allclose(normalised(graph[1]), root @ whole @ root)


def test_networks_are_their_formulas(graph):
    x, adjacency = graph[0], normalised(graph[1])
    sgc = fresh_node_network("sgc", 4, 3, 5, 2, "key").double()
    (layer,) = sgc.layers
    assert torch.allclose(sgc(x, adjacency), adjacency @ adjacency @ x @ layer.weight.T + layer.bias)
    gcn = fresh_node_network("gcn", 4, 3, 5, 2, "key").double()
    one, two = gcn.layers
    hidden = (adjacency @ x @ one.weight.T + one.bias).relu()
    assert torch.allclose(gcn(x, adjacency), adjacency @ hidden @ two.weight.T + two.bias)
    assert torch.allclose(gcn(x, adjacency.to_sparse()), gcn(x, adjacency))
    assert torch.allclose(gcn(x, None), gcn(x, torch.eye(7).double()))
    assert torch.equal(spread(x, None, 3), x)


def test_weights_follow_from_the_key_alone():
    state = torch.get_rng_state()
    one, same, other = (fresh_node_network("gcn", 4, 3, 5, 2, key) for key in ("a", "a", "b"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.layers[0].weight, same.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize("kind", ["sgc", "gcn"])
def test_training_learns_the_labelled_nodes_alone(graph, kind):
    x, adjacency = graph[0].float(), normalised(graph[1]).float()
    labels = torch.tensor([0, 1, 2, 0, -100, -100, 1])
    made = [fresh_node_network(kind, 4, 3, 16, 2, "key") for _ in range(2)]
    for network in made:
        train_on_nodes(network, x, None if kind == "gcn" else adjacency, labels, steps=300, lr=0.05)
    known = labels >= 0
    guess = made[0](x, None if kind == "gcn" else adjacency).argmax(1)
    assert (guess[known] == labels[known]).double().mean() >= (1.0 if kind == "gcn" else 0.6)
    assert torch.equal(made[0].layers[0].weight, made[1].layers[0].weight)


def test_the_rate_falls_at_half(graph):
    x, labels = graph[0].float(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    moved = {}
    for halve in (False, True):
        network = fresh_node_network("sgc", 4, 3, 1, 1, "key")
        train_on_nodes(network, x, None, labels, steps=1, lr=0.1)
        first = network.layers[0].bias.detach().clone()
        again = fresh_node_network("sgc", 4, 3, 1, 1, "key")
        train_on_nodes(again, x, None, labels, steps=2, lr=0.1, halve=halve)
        moved[halve] = (again.layers[0].bias.detach() - first).norm()
    assert moved[True] == pytest.approx(0.1 * moved[False].item(), rel=1e-4)
