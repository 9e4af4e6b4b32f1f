"""Networks on graphs: a tree lets them know what the graph does, and nodes see their senders alone."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.graphs.classifiers import fresh_classifier, train_on_graphs
from limbeck.condensation.graphs.sets import GraphBatch
from limbeck.condensation.graphs.trees import Book
from limbeck.data.graph_sets import graph_sets

KINDS = ("gcn", "gin", "gat")


@pytest.fixture
def graphs():
    return graph_sets(count=8, tree=4, test_size=2).train.graphs


def tree_of(book, codes):
    tags, edges, roots = book.unfolded(tuple(codes))
    pooled = torch.zeros(len(tags), dtype=torch.bool)
    pooled[roots] = True
    return GraphBatch.alone(torch.tensor(tags), torch.tensor(edges, dtype=torch.int64).view(-1, 2).T, pooled)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_root_knows_what_its_node_in_the_graph_knows(graphs, kind, layers):
    network, book = fresh_classifier(kind, 21, 2, "key", width=6, layers=layers).double(), Book()
    for graph in graphs[:2]:
        tree = tree_of(book, book.trees(graph, layers))
        whole = GraphBatch.of(graph)
        assert torch.allclose(network.nodes(tree)[tree.pooled], network.nodes(whole), atol=1e-12)
        assert torch.allclose(network(tree), network(whole))
        short = tree_of(book, book.trees(graph, layers - 1))
        assert not torch.allclose(network.nodes(short)[short.pooled], network.nodes(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_its_formula(kind):
    network = fresh_classifier(kind, 4, 2, "key", width=3, layers=1).double()
    (layer,), hidden = network.layers, torch.randn(3, 3, dtype=torch.float64)
    found = layer(hidden, torch.tensor([[1, 2], [0, 0]]))
    if kind == "gcn":
        wanted = layer.linear(hidden.mean(0)).relu()
    elif kind == "gin":
        wanted = layer.second(layer.linear(hidden.sum(0)).relu()).relu()
    else:
        made = layer.linear(hidden)
        scores = [layer.score(torch.cat([made[0], made[j]])) for j in range(3)]
        shares = torch.nn.functional.leaky_relu(torch.cat(scores), 0.2).softmax(0)
        wanted = (shares[:, None] * made).sum(0).relu()
    assert torch.allclose(found[0], wanted)


@pytest.mark.parametrize("readout", ["sum", "mean"])
def test_only_pooled_nodes_are_read_out_graph_by_graph(graphs, readout):
    network = fresh_classifier("gin", 21, 2, "key", width=6, layers=1, readout=readout).eval()
    pieces = [GraphBatch.of(graph) for graph in graphs[:3]]
    assert torch.allclose(network(GraphBatch.joined(pieces)), torch.cat([network(p) for p in pieces]), atol=1e-5)
    part = torch.arange(len(pieces[0].tags)) < 2
    hidden = network.nodes(pieces[0])[:2]
    wanted = network.head(hidden.sum(0) if readout == "sum" else hidden.mean(0))
    found = network(GraphBatch.alone(pieces[0].tags, pieces[0].edges, part))[0]
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_training_follows_from_the_key_and_learns(graphs, batch_size):
    state = torch.get_rng_state()
    pieces, labels = [GraphBatch.of(g) for g in graphs], torch.tensor([g.label for g in graphs])
    made = []
    for key in ("a", "a", "b"):
        network = fresh_classifier("gin", 21, 2, "key", width=16, dropout=0.2)
        rates = {"steps": 120, "lr": 0.01, "weight_decay": 0.0, "batch_size": batch_size}
        made.append(train_on_graphs(network, pieces, labels, torch.ones(len(labels)), **rates, key=key))
    assert torch.equal(made[0].head.weight, made[1].head.weight)
    assert not torch.equal(made[0].head.weight, made[2].head.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert (made[0](GraphBatch.joined(pieces)).argmax(1) == labels).all()


def test_weights_say_which_graph_counts(graphs):
    piece = GraphBatch.of(graphs[0])
    for heavy in (0, 1):
        network = fresh_classifier("gcn", 21, 2, "key", width=8)
        weights = torch.tensor([9.0, 1.0] if heavy == 0 else [1.0, 9.0])
        rates = {"steps": 200, "lr": 0.02, "weight_decay": 0.0, "batch_size": 8}
        train_on_graphs(network, [piece, piece], torch.tensor([0, 1]), weights, **rates, key="key")
        assert network(piece).softmax(1)[0, heavy].item() == pytest.approx(0.9, abs=0.03)
