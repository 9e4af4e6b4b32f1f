"""Experts on a graph: trained as torch would, kept now and then, found again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.graphs.experts import NodeCourse, NodeExperts
from limbeck.condensation.graphs.networks import fresh_node_network
from limbeck.condensation.graphs.nodes import RealNodes

CPU = torch.device("cpu")


def experts(nodes, seed=1, keep: str | None = None, **course) -> NodeExperts:
    taken = NodeCourse(**{"states": 3, "every": 2, "lr": 0.2, **course})
    return NodeExperts(RealNodes.of(nodes.train), 5, 2, taken, 2, seed, keep=keep, quiet=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_expert_is_trained_on_the_labelled_nodes(nodes, optimizer):
    found = experts(nodes, optimizer=optimizer, weight_decay=0.01).at(1, [0, 2, 3], CPU)
    real = RealNodes.of(nodes.train)
    network = fresh_node_network("gcn", 18, 3, 5, 2, key=(1, ("expert", 1)))
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    course = kind(network.parameters(), lr=0.2, weight_decay=0.01)
    for epoch in range(7):
        if epoch in (0, 4, 6):
            flat = torch.cat([p.detach().flatten() for p in network.parameters()])
            assert torch.allclose(found[(0, 4, 6).index(epoch)], flat, atol=1e-6)
        logits = network(real.features, real.adjacency)
        course.zero_grad()
        F.cross_entropy(logits, real.labels, ignore_index=-100).backward()
        course.step()


def test_experts_are_kept_and_found_again(nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    first = experts(nodes, keep="10MB").at(0, [3], CPU)[0]
    (file,) = tmp_path.glob("**/experts/*/*.safetensors")
    made = file.stat().st_mtime_ns
    assert torch.equal(experts(nodes, keep="10MB").at(0, [3], CPU)[0], first)
    assert file.stat().st_mtime_ns == made
    assert not torch.equal(experts(nodes, keep="10MB", lr=0.1).at(0, [3], CPU)[0], first)
    assert len(list(tmp_path.glob("**/experts/*/*.safetensors"))) == 2
