import pytest
import torch

from limbeck.data.graph_nodes import graph_nodes
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.models.graph import Convolutions, GraphConvolutionalNetwork, normalised_weights
from limbeck.registry import Block


@pytest.fixture(scope="module")
def data():
    return graph_nodes(per_class=2, nodes=40, test_size=10, classes=3, words=4, degree=3.0)


def dense(edges, nodes):
    """The normalised adjacency, by its definition."""
    whole = torch.eye(nodes, dtype=torch.float64)
    for a, b in edges.T.tolist():
        whole[a, b] = whole[b, a] = 1
    scale = torch.diag(whole.sum(1) ** -0.5)
    return scale @ whole @ scale


def test_the_adjacency_is_normalised_on_both_sides(data):
    edges = data.extra["graph"].edges
    places, weights = normalised_weights(edges, 40)
    found = torch.zeros(40, 40, dtype=torch.float64)
    found[places[0], places[1]] = weights.double()
    assert torch.allclose(found, dense(edges, 40), atol=1e-6)
    assert ((places[0] * 40 + places[1]).diff() > 0).all()


def test_the_network_is_the_formula(data):
    torch.manual_seed(0)
    graph = data.extra["graph"]
    net = GraphConvolutionalNetwork(hidden=6, classes=3, layers=2, data=data).double()
    found = net(torch.tensor([3, 0, 7]))
    x = torch.zeros(40, 12, dtype=torch.float64)
    for node, text in enumerate(graph.texts):
        for word in set(text):
            x[node, word] = 1 / len(set(text))
    a, h = dense(graph.edges, 40), [torch.relu(net.convolutions.first(x))]
    for layer in net.convolutions.layers:
        h.append(torch.relu(a @ h[-1] @ layer.weight.T + layer.bias))
    for own, defined in zip(found["hidden_states"], h, strict=True):
        assert torch.allclose(own, defined[[3, 0, 7]], atol=1e-6)
    assert torch.allclose(found["logits"], net.head(h[-1])[[3, 0, 7]], atol=1e-6)


def test_dense_and_sparse_graphs_give_the_same():
    torch.manual_seed(0)
    net, x, a = Convolutions(5, 4, 2), torch.rand(6, 5), torch.rand(6, 6)
    for own, other in zip(net(x, a), net(x.to_sparse(), a.to_sparse()), strict=True):
        assert torch.allclose(own, other, atol=1e-6)


def test_what_a_node_knows_is_as_far_as_messages_went(data):
    torch.manual_seed(0)
    graph, net = data.extra["graph"], GraphConvolutionalNetwork(hidden=6, classes=3, layers=1, data=data)
    before = net(torch.arange(40))["hidden_states"]
    net.bags = net.bags.clone()
    net.bags[1, net.bags[0] == 5] = (net.bags[1, net.bags[0] == 5] + 1) % 12
    after = net(torch.arange(40))["hidden_states"]
    moved = [
        set((one - two).abs().amax(1).nonzero().flatten().tolist()) for one, two in zip(before, after, strict=True)
    ]
    assert moved[0] <= {5}
    assert moved[1] <= {5, *graph.neighbours[5]}
    assert 5 in moved[1]


def test_it_is_stored_with_its_graph(data, tmp_path):
    torch.manual_seed(0)
    net = GraphConvolutionalNetwork(hidden=6, classes=3, data=data).eval()
    store.save(tmp_path, Stored(net, net.portable))
    read = store.load(tmp_path).module
    assert torch.equal(read(torch.arange(40))["logits"], net(torch.arange(40))["logits"])


def test_dropout_is_for_training_alone(data):
    net = GraphConvolutionalNetwork(hidden=6, classes=3, dropout=0.5, data=data)
    one, two = net(torch.arange(40))["logits"], net(torch.arange(40))["logits"]
    assert not torch.equal(one, two)
    net.eval()
    assert torch.equal(net(torch.arange(40))["logits"], net(torch.arange(40))["logits"])


def test_mistakes_are_refused(data):
    with pytest.raises(UserError, match="needs data with a graph"):
        GraphConvolutionalNetwork(hidden=6, classes=3)
    with pytest.raises(UserError, match="no hidden 0"):
        GraphConvolutionalNetwork(hidden=0, classes=3, data=data)
    assert isinstance(GraphConvolutionalNetwork(hidden=2, classes=3, data=data).portable, Block)
