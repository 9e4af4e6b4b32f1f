"""The graph tangent kernel: its sums written out, the kernel of perceptrons, wide networks, and the score."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.graphs.kernels import KernelScore, Side, means_between, node_kernel
from limbeck.condensation.graphs.nodes import RealNodes
from limbeck.condensation.kernels import mlp_kernel
from limbeck.data.graph_nodes import graph_nodes
from limbeck.errors import UserError

EDGES = [[1, 2], [0], [0, 3], [2], []]


def side(edges, seed, width=4) -> Side:
    features = torch.randn(len(edges), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean = torch.zeros(len(edges), len(edges), dtype=torch.float64)
    for node, near in enumerate(edges):
        mean[node, [node, *near]] = 1 / (1 + len(near))
    return Side(features, mean)


def written_out(a: Side, b: Side, edges_a, edges_b, rounds: int, depth: int) -> list[list[float]]:
    """The kernel between single nodes of the disjoint union of both graphs, by loops over pairs and neighbours."""
    features = [*a.features.tolist(), *b.features.tolist()]
    near = [[u, *e] for u, e in enumerate(edges_a)]
    near += [[len(edges_a) + u, *(len(edges_a) + v for v in e)] for u, e in enumerate(edges_b)]
    nodes = range(len(features))
    sigma = [[sum(p * q for p, q in zip(features[u], features[v], strict=True)) for v in nodes] for u in nodes]
    theta = [list(row) for row in sigma]
    for _ in range(rounds):
        sigma, theta = (
            [
                [sum(k[p][q] for p in near[u] for q in near[v]) / len(near[u]) / len(near[v]) for v in nodes]
                for u in nodes
            ]
            for k in (sigma, theta)
        )
        for _ in range(depth):
            new, slope = ([[0.0] * len(nodes) for _ in nodes] for _ in range(2))
            for u in nodes:
                for v in nodes:
                    scale = math.sqrt(sigma[u][u] * sigma[v][v])
                    angle = math.acos(max(-1.0, min(1.0, sigma[u][v] / scale)))
                    slope[u][v] = 1 - angle / math.pi
                    new[u][v] = scale * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
            theta = [[theta[u][v] * slope[u][v] + new[u][v] for v in nodes] for u in nodes]
            sigma = new
    return [row[len(edges_a) :] for row in theta[: len(edges_a)]]


@pytest.mark.parametrize(("rounds", "depth"), [(1, 1), (2, 2), (3, 1)])
def test_kernel_between_graphs_is_its_sums(rounds, depth):
    other = [[1], [0, 2], [1]]
    a, b = side(EDGES, 0), side(other, 1)
    found = node_kernel(a, b, rounds=rounds, depth=depth)
    wanted = torch.tensor(written_out(a, b, EDGES, other, rounds, depth), dtype=torch.float64)
    assert torch.allclose(found, wanted, atol=1e-9)
    assert torch.allclose(node_kernel(b, a, rounds=rounds, depth=depth), found.T)


def test_without_edges_it_is_the_kernel_of_perceptrons():
    x, y = side(EDGES, 0).features, side([[1], [0], []], 1).features
    alone = node_kernel(Side(x), Side(y), rounds=2, depth=2)
    assert torch.allclose(alone * 2 / x.shape[1], mlp_kernel(x, y, depth=4, bias=0.0), rtol=1e-4)


def test_wide_networks_have_it():
    a = side(EDGES, 0)
    wanted = node_kernel(a, a, rounds=1, depth=1)
    generator, width, found = torch.Generator().manual_seed(3), 2000, []
    for _ in range(40):
        # f(u) = v . relu(W mean(x)) sqrt(2 / width); its gradients in W and in v, multiplied out.
        first = torch.randn(width, 4, generator=generator, dtype=torch.float64)
        last = torch.randn(width, generator=generator, dtype=torch.float64)
        inputs = a.mean @ a.features
        hidden = inputs @ first.T
        by_last = hidden.relu() * math.sqrt(2 / width)
        by_first = ((hidden > 0) * last)[:, :, None] * inputs[:, None, :] * math.sqrt(2 / width)
        found.append(by_last @ by_last.T + by_first.flatten(1) @ by_first.flatten(1).T)
    assert torch.allclose(torch.stack(found).mean(0), wanted, atol=0.05 * float(wanted.diagonal().max()))


@pytest.fixture
def held_out():
    return graph_nodes(nodes=90, classes=3, per_class=6, val_size=30, test_size=20, words=6, degree=5.0, clarity=0.6)


def test_means_are_over_the_held_out_graph_alone(held_out):
    real, nodes = RealNodes.of(held_out.train), held_out.val.nodes
    found = means_between(real.adjacency, nodes).to_dense()
    there = real.adjacency.to_dense()[nodes][:, nodes] > 0
    assert torch.allclose(found, there.double() / there.sum(1, keepdim=True), atol=1e-12)
    assert int(there.sum()) > len(nodes)


def test_score_is_half_the_mean_squared_error_of_the_ridge(held_out):
    real = RealNodes.of(held_out.train)
    score = KernelScore(real, held_out.val, strength=0.5, rounds=2, depth=2)
    rows = real.draw([2, 2, 2], "some")
    features, labels = real.features[rows], real.labels[rows]
    val = held_out.val
    side = Side(real.features[val.nodes].double(), means_between(real.adjacency, val.nodes).to_dense())
    own = Side(features.double(), torch.eye(6, dtype=torch.float64))
    k_ss, k_ts = node_kernel(own, own), node_kernel(side, own)
    bent = k_ss + 0.5 * k_ss.trace() / 6 * torch.eye(6, dtype=torch.float64)
    said = k_ts @ torch.linalg.inv(bent) @ F.one_hot(labels).double()
    wanted = 0.5 * (said - F.one_hot(val.label).double()).square().mean()
    assert score(features, labels) == pytest.approx(float(wanted), rel=1e-9)


def test_nodes_that_show_their_class_score_better(held_out):
    real = RealNodes.of(held_out.train)
    score = KernelScore(real, held_out.val)
    rows = real.draw([3, 3, 3], "some")
    assert score(real.features[rows], real.labels[rows]) < score(real.features[rows], real.labels[rows].roll(3))


def test_held_out_nodes_must_have_a_class(held_out):
    held_out.val.label.fill_(-100)
    with pytest.raises(UserError, match="no held-out node has a label"):
        KernelScore(RealNodes.of(held_out.train), held_out.val)
