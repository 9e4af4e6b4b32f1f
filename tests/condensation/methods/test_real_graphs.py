"""The baseline of real graphs."""

from __future__ import annotations

import torch

from limbeck.condensation.graphs.models import graph_collection
from limbeck.condensation.graphs.sets import GraphBatch, graph_bytes
from limbeck.condensation.methods.mirage import Mirage
from limbeck.condensation.methods.real_graphs import RealGraphs, fitting
from limbeck.data.graph_sets import graph_sets
from limbeck.engine.method import Parts
from limbeck.recipe import load_recipe

DATA = graph_sets(count=48, tree=3, extra_edges=0)


def made(cls, seed=0, **args):
    student = graph_collection(seed=seed)
    cls(support=0.6, largest=2, **args).setup(Parts(student, data=DATA.spec, streams={"data": DATA.train}))
    return student


def test_all_are_the_training_graphs():
    student = made(RealGraphs, selection="all")
    assert len(student.labels) == len(DATA.train)
    assert len(student.tags) == sum(len(graph.tags) for graph in DATA.train.graphs)
    assert student.pooled.all()
    assert (student.weights == 1).all()


def test_random_graphs_fit_into_the_bytes_of_mirage():
    mined, random = made(Mirage, patterns=8), made(RealGraphs, patterns=8)
    budget, used = (sum(student.bytes().values()) for student in (mined, random))
    largest = max(graph_bytes(GraphBatch.of(graph)) + 12 for graph in DATA.train.graphs)
    assert budget - largest < used <= budget
    real = {(graph.tags, graph.label) for graph in DATA.train.graphs}
    pieces, labels, _ = random()
    assert {(tuple(p.tags.tolist()), c) for p, c in zip(pieces, labels.tolist(), strict=True)} <= real
    assert not torch.equal(random.tags, made(RealGraphs, seed=1, patterns=8).tags)


def test_one_of_each_class_is_kept_at_least():
    graphs = [GraphBatch.of(graph) for graph in DATA.train.graphs[:5]]
    assert len(fitting(graphs, 0, 2)) == 2
    assert len(fitting(graphs, 10**9, 2)) == 5


def test_the_control_of_a_run_is_that_of_its_own_arguments():
    recipe = load_recipe(
        {
            "data": "graph_sets",
            "student": "graph_collection",
            "method": {"name": "mirage", "support": 0.1, "weigh": "none"},
        }
    )
    assert recipe.control_arms == {"random": {"method": {"name": "real_graphs", "support": 0.1}}}
