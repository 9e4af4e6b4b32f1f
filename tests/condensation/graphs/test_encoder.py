"""The encoder with centres: what it reads, how it is kept, and how it begins."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from limbeck import registry
from limbeck.condensation.graphs.encoder import NodeEncoder, cluster_encoder, place_centres, pretrain
from limbeck.condensation.graphs.models import node_encoder
from limbeck.condensation.graphs.nodes import RealNodes
from limbeck.errors import UserError

SMALL = {"hidden": 8, "top": 12, "embedding": 3}


def rows(count: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=generator) @ torch.randn(6, 10, generator=generator)


def encoder(**args) -> NodeEncoder:
    torch.manual_seed(3)
    return node_encoder(**{"in_features": 10, "classes": 4, **SMALL, **args})


def test_rows_of_any_shape_are_embedded_and_the_nearest_centre_wins():
    student = encoder()
    given = rows()
    found = student(given.view(60, 1, 2, 5))
    assert torch.equal(found["embedding"], student.encoder(given))
    assert torch.allclose(found["logits"].exp().sum(1), torch.ones(60))
    nearest = torch.cdist(found["embedding"], student.centres).argmin(1)
    assert torch.equal(found["logits"].argmax(1), nearest) and found["logits"].shape == (60, 4)


def test_nodes_of_a_graph_are_read_by_number_and_the_encoder_is_rebuilt_without_it(nodes):
    student = node_encoder(classes=3, data=nodes, seed=5, **SMALL)
    numbers = torch.tensor([7, 0, 7])
    assert torch.allclose(student.rows(numbers), RealNodes.of(nodes.train).features[numbers])
    again = registry.build("model", student.portable)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(numbers)["logits"], student(numbers)["logits"])


def test_pretraining_rebuilds_rows_and_follows_from_its_key_alone():
    given, found = rows(), []
    for noise in (1, 2):
        student = encoder()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        decoder = pretrain(student, given, steps=150, lr=1e-2, batch_size=20, key="a")
        assert torch.equal(torch.get_rng_state(), state)
        found.append(decoder(student.encoder(given)))
        assert all(p.grad is None for p in student.parameters())
    assert torch.equal(*found)
    assert (found[0] - given).square().mean() < 0.5 * given.var(0).mean()
    other = encoder()
    assert not torch.equal(
        pretrain(other, given, steps=150, lr=1e-2, batch_size=20, key="b")(other.encoder(given)), found[0]
    )


def test_centres_are_those_of_k_means():
    student, given = encoder(), rows()
    place_centres(student, given, 5)
    points = student.encoder(given).detach().double().numpy()
    fit = KMeans(4, n_init=5, random_state=student.seed % 2**32).fit(points)
    assert torch.equal(student(given)["logits"].argmax(1), torch.as_tensor(fit.labels_).long())


def test_mistakes_are_told():
    for wrong in ({"in_features": None}, {"classes": None}, {"hidden": 0}):
        with pytest.raises(UserError, match="node_encoder:"):
            encoder(**wrong)
    with pytest.raises(UserError, match="not Linear"):
        cluster_encoder(nn.Linear(2, 2))
