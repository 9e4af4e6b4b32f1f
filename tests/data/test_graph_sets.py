"""Sets of small graphs."""

from __future__ import annotations

import gzip

import pytest
import torch

from limbeck.data.graph_sets import MOTIFS, TaggedGraph, graph_sets, read_graphs
from limbeck.errors import MissingDataError, UserError

TEXT = "2\n3 7\n4 1 1\n5 2 0 2\n4 1 1\n2 -1\n0 1 1\n0 1 0\n"


def write(folder, text=TEXT):
    path = folder / "graphs" / "MUTAG.txt.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_a_file_is_read(tmp_path):
    one, other = read_graphs(write(tmp_path))
    assert one == TaggedGraph((4, 5, 4), ((1,), (0, 2), (1,)), 1)
    assert other == TaggedGraph((0, 0), ((1,), (0,)), 0)
    assert one.by_degree(1).tags == (1, 1, 1)
    assert one.by_degree(9).tags == (1, 2, 1)


@pytest.mark.parametrize("text", ["", "3\n", "2\n1 0\n", "1\n2 0\n0 1 1\n0 1 5\n", "x"])
def test_other_files_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="no graphs as text"):
        read_graphs(write(tmp_path, text))


def test_named_sets_are_found_under_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match="mutag"):
        graph_sets(graphs="mutag")
    write(tmp_path)
    data = graph_sets(graphs="mutag", test_size=1)
    assert (len(data.train), len(data.test), data.val, data.extra["tags"]) == (1, 1, None, 6)
    assert graph_sets(graphs="mutag", test_size=1, tags="degree").extra["tags"] == 3


def test_graphs_with_motifs_have_them_and_are_the_seeds():
    data = graph_sets(count=40, classes=4, tree=3, extra_edges=0, test_size=8, val_size=4)
    assert data.spec.class_names == ("cycle", "house", "clique", "star")
    assert [len(part) for part in (data.train, data.test, data.val)] == [28, 8, 4]
    assert torch.bincount(data.test.label).tolist() == [2, 2, 2, 2]
    for graph in data.train.graphs:
        motif = MOTIFS[data.spec.class_names[graph.label]]
        size, nodes = 1 + max(max(pair) for pair in motif), len(graph.tags)
        first = nodes - size
        assert 3 <= first <= 6
        inside = {(a - first, b - first) for a in range(first, nodes) for b in graph.neighbours[a] if b >= first}
        assert inside == {(a, b) for a, b in motif} | {(b, a) for a, b in motif}
        assert sum(len(some) for some in graph.neighbours) == 2 * (first - 1 + len(motif) + 1)
        assert graph.tags == tuple(len(some) for some in graph.neighbours)
    same, other = (graph_sets(count=40, seed=seed, test_size=8) for seed in (0, 1))
    assert same.train.fingerprint == graph_sets(count=40, test_size=8).train.fingerprint
    assert same.train.fingerprint != other.train.fingerprint


def test_rows_are_graphs_by_number():
    data = graph_sets(count=12)
    batch = data.train.batch(torch.tensor([3, 0]))
    assert batch["input"].tolist() == [3, 0]
    assert batch["label"].tolist() == [data.train.graphs[3].label, data.train.graphs[0].label]
    assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())


@pytest.mark.parametrize("wrong", [{"classes": 5}, {"classes": 1}, {"max_degree": 0}, {"tree": 0}, {"count": 1}])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(UserError, match="graph_sets"):
        graph_sets(**wrong)
