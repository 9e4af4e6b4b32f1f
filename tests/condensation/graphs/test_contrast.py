"""Block contrast: each formula in float64 with explicit loops, and what blocks are when every node is one."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.condensation.graphs.contrast import (
    influence,
    meta_nodes,
    nearest_edges,
    negative_part,
    positive_part,
    sharpened,
    soft_assignments,
)

EDGES = torch.tensor([[0, 0, 1, 3], [1, 2, 3, 4]])  # node 5 has no neighbour


def drawn(rows: int, width: int = 3) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).double().requires_grad_()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def test_nearest_edges_are_those_of_a_search_through_all_pairs():
    rows = drawn(12).detach()
    wanted = set()
    for i in range(12):
        others = sorted((j for j in range(12) if j != i), key=lambda j: (rows[i] - rows[j]).norm().item())
        wanted |= {(min(i, j), max(i, j)) for j in others[:3]}
    found = [tuple(pair) for pair in nearest_edges(rows, 3).T.tolist()]
    assert set(found) == wanted and len(found) == len(wanted)


def test_the_same_row_twice_is_no_edge_to_itself():
    edges = nearest_edges(torch.zeros(6, 2), 2)
    assert (edges[0] < edges[1]).all()


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_influence_counts_walks_that_may_stay(hops):
    walk = torch.eye(6, dtype=torch.float64)
    for a, b in EDGES.T.tolist():
        walk[a, b] = walk[b, a] = 1
    walk /= walk.sum(1, keepdim=True)
    wanted = sum(torch.linalg.matrix_power(walk, r) for r in range(1, hops + 1)).fill_diagonal_(0)
    places, values = influence(EDGES, 6, hops)
    found = torch.zeros(6, 6, dtype=torch.float64)
    found[places[0], places[1]] = values.double()
    assert torch.allclose(found, wanted, atol=1e-6)
    assert len(values) == (wanted > 0).sum() and not (places == 5).any()


def test_shares_and_sharpened_shares_are_the_formulas():
    z, centres = drawn(7), drawn(4)
    shares, targets = soft_assignments(z, centres), sharpened(soft_assignments(z, centres))
    raw = [
        [1 / (1 + sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in centres.tolist()] for x in z.tolist()
    ]
    q = [[value / sum(row) for value in row] for row in raw]
    sizes = [sum(row[k] for row in q) for k in range(4)]
    p = [[row[k] ** 2 / sizes[k] / sum(row[m] ** 2 / sizes[m] for m in range(4)) for k in range(4)] for row in q]
    assert torch.allclose(shares, torch.tensor(q, dtype=torch.float64))
    assert torch.allclose(targets, torch.tensor(p, dtype=torch.float64))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_both_parts_are_the_formulas(tau):
    z = drawn(6)
    places, values = influence(EDGES, 6, 2)
    near = [0.0] * 6
    for (i, j), w in zip(places.T.tolist(), values.tolist(), strict=True):
        near[i] += w * math.exp(tau * cosine(z[i], z[j]))
    wanted = -sum(math.log(value + 1e-10) for value in near) / 6
    assert near[5] == 0
    assert positive_part(z, places, values.double(), tau).item() == pytest.approx(wanted, rel=1e-9)
    far = [sum(math.exp(tau * cosine(z[i], z[j]) if i != j else 0) for j in range(6)) for i in range(6)]
    assert negative_part(z, tau).item() == pytest.approx(sum(math.log(f + 1e-10) for f in far) / 6, rel=1e-9)


def test_gradients_are_those_of_differences():
    z = drawn(6)
    places, values = influence(EDGES, 6, 2)
    clusters = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda x: positive_part(x, places, values.double(), 0.5), (z,))
    assert torch.autograd.gradcheck(lambda x: negative_part(meta_nodes(x, clusters, 3), 0.5), (z,))


def test_meta_nodes_are_sums_and_an_empty_cluster_is_nothing():
    z = drawn(5)
    found = meta_nodes(z, torch.tensor([2, 0, 2, 2, 0]), 4)
    wanted = torch.stack([z[1] + z[4], torch.zeros(3).double(), z[0] + z[2] + z[3], torch.zeros(3).double()])
    assert torch.allclose(found, wanted)
    negative_part(found, 0.5).backward()
    assert z.grad.isfinite().all()


def test_blocks_of_one_node_each_are_all_nodes():
    z = drawn(8)
    clusters = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    blocks, every = negative_part(meta_nodes(z, clusters, 8), 0.7), negative_part(z, 0.7)
    assert blocks.item() == pytest.approx(every.item(), rel=1e-12)
    a, b = (torch.autograd.grad(value, z)[0] for value in (blocks, every))
    assert torch.allclose(a, b, rtol=1e-10)


def test_alike_nodes_in_blocks_differ_from_all_by_their_number_alone():
    """n nodes in each of K places: all sees n - 1 more of its own kind, and n of each other, where a block sees one."""
    places, n, tau = drawn(3).detach(), 4, 0.5
    every = negative_part(places.repeat_interleave(n, 0), tau)
    rows = [
        1 + (n - 1) * math.exp(tau) + n * sum(math.exp(tau * cosine(places[i], places[j])) for j in range(3) if j != i)
        for i in range(3)
    ]
    assert every.item() == pytest.approx(sum(math.log(row) for row in rows) / 3, rel=1e-9)
