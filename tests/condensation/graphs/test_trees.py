"""Computation trees and frequent sets against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from limbeck.condensation.graphs.trees import Book, exclusive, frequent_sets
from limbeck.data.graph_sets import TaggedGraph
from limbeck.errors import UserError


def some_graphs(count=6):
    dice = random.Random(3)
    found = []
    for number in range(count):
        nodes = 5 + number % 3
        pairs = [p for p in itertools.combinations(range(nodes), 2) if dice.random() < 0.4]
        found.append(TaggedGraph.of_edges([dice.randrange(2) for _ in range(nodes)], pairs, number % 2))
    return found


def unfolded(graph: TaggedGraph, node: int, hops: int) -> str:
    """The computation tree as text, grown without any sharing."""
    children = sorted(unfolded(graph, b, hops - 1) for b in graph.neighbours[node]) if hops else []
    return f"({graph.tags[node]}{''.join(children)})"


def text(tags, edges, root) -> str:
    children = sorted(text(tags, edges, a) for a, b in edges if b == root)
    return f"({tags[root]}{''.join(children)})"


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_codes_are_equal_where_the_unfolded_trees_are(hops):
    book, graphs = Book(), some_graphs()
    codes = [code for graph in graphs for code in book.trees(graph, hops)]
    texts = [unfolded(graph, node, hops) for graph in graphs for node in range(len(graph.tags))]
    assert len(set(codes)) == len(set(texts)) == len(set(zip(codes, texts, strict=True)))
    assert 1 < len(set(codes)) < len(codes)
    for code, wanted in zip(codes, texts, strict=True):
        tags, edges, (root,) = book.unfolded((code,))
        assert text(tags, edges, root) == wanted
        assert len(edges) == len(tags) - 1


def test_a_union_keeps_its_trees_apart():
    book = Book()
    leaf, other = book.code(1, ()), book.code(0, ())
    tree = book.code(2, (other, leaf, leaf))
    tags, edges, roots = book.unfolded((leaf, tree))
    assert (tags, roots) == ([1, 2, 1, 1, 0], [0, 1])
    assert sorted(edges) == [(2, 1), (3, 1), (4, 1)]
    assert book.code(2, (leaf, other, leaf)) == tree


@pytest.mark.parametrize("least", [1, 2, 4])
@pytest.mark.parametrize("largest", [0, 2])
def test_frequent_sets_are_those_of_brute_force(least, largest):
    dice = random.Random(least)
    transactions = [frozenset(i for i in range(7) if dice.random() < 0.5) for _ in range(9)]
    sizes = range(1, (largest or 7) + 1)
    every = [c for size in sizes for c in itertools.combinations(range(7), size)]
    support = {c: sum(set(c) <= t for t in transactions) for c in every}
    found = frequent_sets(transactions, least, largest)
    assert found == {c: count for c, count in support.items() if count >= least}
    assert found


def test_too_many_sets_are_refused():
    with pytest.raises(UserError, match="more than 100 sets"):
        frequent_sets([frozenset(range(10))], 1, limit=100)


def test_a_pattern_of_two_classes_is_of_none():
    by_class = [{(0,): 3, (1,): 2}, {(1,): 5, (2,): 4}, {(3,): 1, (1,): 1, (2,): 2}]
    assert exclusive(by_class) == [{(0,): 3}, {}, {(3,): 1}]
