"""Mining sets of trees: what is in the student, and what it teaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.condensation.graphs.metrics import area, fresh_graph_classifiers
from limbeck.condensation.graphs.models import graph_collection
from limbeck.condensation.graphs.sets import GraphBatch, GraphCollection, graph_bytes
from limbeck.condensation.methods.mirage import Mirage
from limbeck.data.graph_sets import graph_sets
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.metrics.base import Evaluation
from limbeck.registry import find


@pytest.fixture(scope="module")
def data():
    return graph_sets(count=48, classes=3, tree=3, extra_edges=0)


def mined(data, **args) -> GraphCollection:
    student = graph_collection(seed=0)
    method = Mirage(**{"support": 0.3, **args})
    method.setup(Parts(student, data=data.spec, streams={"data": data.train}))
    assert list(method.updates({"id": torch.arange(1)}, Clock(0, 1))) == []
    return student


def holders(data, piece: GraphBatch, hops: int) -> list[int]:
    """The classes of the training graphs that have all trees of a piece, found by growing trees as text."""

    def text(tags, senders, node, left):
        return (
            f"({tags[node]}{''.join(sorted(text(tags, senders, b, left - 1) for b in senders(node)))})"
            if left >= 0
            else ""
        )

    edges = piece.edges.T.tolist()
    roots = piece.pooled.nonzero()[:, 0].tolist()
    trees = {text(piece.tags.tolist(), lambda v: [a for a, b in edges if b == v], r, hops) for r in roots}
    found = []
    for graph in data.train.graphs:
        own = {text(graph.tags, lambda v, g=graph: g.neighbours[v], v, hops) for v in range(len(graph.tags))}
        found += [graph.label] if trees <= own else []
    return found


@pytest.mark.parametrize("hops", [1, 2])
def test_sets_are_frequent_in_their_class_alone_and_weigh_their_support(data, hops):
    student = mined(data, hops=hops, largest=3)
    pieces, labels, weights = student()
    assert set(labels.tolist()) == {0, 1, 2}
    supports = []
    for piece, label in zip(pieces, labels.tolist(), strict=True):
        found = holders(data, piece, hops)
        assert found.count(label) >= 0.3 * 12
        assert all(found.count(other) < 0.3 * 12 for other in range(3) if other != label)
        supports.append(found.count(label))
    for c in range(3):
        own = torch.tensor(supports).float() * (labels == c)
        assert torch.allclose(weights[labels == c], (own / own.sum() / 3)[labels == c])


def test_no_set_is_missing(data):
    """Of single trees: every one that is frequent in one class alone is there."""
    student = mined(data, hops=1, largest=1)
    wanted = 0
    seen = set()
    for graph in data.train.graphs:
        for node, tag in enumerate(graph.tags):
            tree = (tag, tuple(sorted(graph.tags[b] for b in graph.neighbours[node])))
            if tree in seen:
                continue
            seen.add(tree)
            counts = [0, 0, 0]
            for other in data.train.graphs:
                trees = {
                    (t, tuple(sorted(other.tags[b] for b in other.neighbours[v]))) for v, t in enumerate(other.tags)
                }
                counts[other.label] += tree in trees
            wanted += sum(count >= 3.6 for count in counts) == 1
    assert len(student.labels) == wanted > 0


def test_limits_limit(data):
    whole = mined(data, largest=2)
    few = mined(data, largest=2, patterns=2)
    assert torch.bincount(few.labels).tolist() == [min(2, n) for n in torch.bincount(whole.labels).tolist()]
    roots = [int(piece.pooled.sum()) for piece in whole()[0]]
    assert max(roots) == 2
    assert (mined(data, largest=2, weigh="none").weights == 1).all()
    assert len(mined(data, support=0.1, least=3, largest=1).labels) < len(mined(data, support=0.1, largest=1).labels)


def test_the_set_comes_back_from_its_folder(data, tmp_path):
    student = mined(data, largest=1)
    store.save(tmp_path / "set", Stored(student, student.portable, frozenset({"graphs"}), None))
    back = store.load(tmp_path / "set").module
    assert student.state_dict().keys() == back.state_dict().keys()
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in student.state_dict().items())
    empty = GraphCollection()
    empty.load_state_dict(student.state_dict())
    assert empty.sizes == student.sizes == back.sizes


def test_bytes_are_counted(data):
    student = mined(data, largest=2, patterns=1)
    pieces = student()[0]
    counted = sum(8 * len(p.tags) + 16 * p.edges.shape[1] + 8 * int(p.pooled.sum()) for p in pieces)
    assert student.bytes() == {"structure": counted, "labels": 12 * len(pieces)}
    graph = data.train.graphs[0]
    assert graph_bytes(GraphBatch.of(graph)) == 8 * len(graph.tags) + 8 * sum(len(n) for n in graph.neighbours)


def test_what_is_mined_teaches(data):
    student = mined(data, largest=2)
    evaluation = Evaluation(student, spec=data.spec, source=data.test)
    sizes = {"networks": 1, "kinds": ("gin",), "width": 16, "steps": 150, "lr": 0.01}
    found = fresh_graph_classifiers(evaluation, **sizes)
    assert found == fresh_graph_classifiers(evaluation, **sizes)
    assert found.values["fresh_auc"] > 0.7
    assert set(found.values) == set(find("metric", "fresh_graph_classifiers").facts["better"])
    student.labels.copy_((student.labels + 1) % 3)
    assert fresh_graph_classifiers(evaluation, **sizes).values["fresh_auc"] < found.values["fresh_auc"] - 0.2


def test_the_area_is_the_share_of_pairs_in_order():
    shares = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    assert area(shares, [0, 0, 1, 1]) == pytest.approx(0.75)
    assert area(torch.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0]) == 1
    with pytest.raises(UserError, match="all classes"):
        area(shares, [0, 0, 0, 0])


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="support in"):
        Mirage(support=0)
    with pytest.raises(UserError, match="class 0 alone"):
        mined(data, hops=0, support=1.0)
    with pytest.raises(UserError, match="not Linear"):
        Mirage().setup(Parts(nn.Linear(2, 2), data=data.spec, streams={"data": data.train}))
    with pytest.raises(UserError, match="is empty"):
        fresh_graph_classifiers(Evaluation(graph_collection(seed=0), spec=data.spec, source=data.test))
