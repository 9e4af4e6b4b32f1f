"""Fresh networks and the papers' training on a condensed set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.condensation.networks import accuracy, embed, features_of, fresh_network, paper_convnet, post_train
from limbeck.errors import UserError
from limbeck.models.vision import ConvNet
from limbeck.registry import Block

SMALL = Block("convnet", {"width": 8, "depth": 2})


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_papers_depths():
    sizes = {8: 1, 16: 2, 28: 3, 32: 3, 64: 4, 128: 5, 256: 6}
    assert {s: paper_convnet((3, s, s)).args["depth"] for s in sizes} == sizes


def test_a_fresh_network_depends_on_the_key_alone_and_leaves_the_generator(data):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = fresh_network(SMALL, data.spec.offers(), "key")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(weights(one), weights(fresh_network(SMALL, data.spec.offers(), "key")))
    assert not torch.equal(weights(one), weights(fresh_network(SMALL, data.spec.offers(), "other")))
    assert one.training


def test_features_in_pieces_equal_the_whole(data):
    network = fresh_network(SMALL, data.spec.offers(), "key")
    whole = network.features(data.train.images)
    assert torch.allclose(embed(network, data.train.images, chunk=7), whole, atol=1e-5)
    assert not embed(network, data.train.images).requires_grad


def test_batch_norm_sees_the_whole_batch(data):
    network = fresh_network(Block("convnet", {"width": 8, "depth": 2, "norm": "batch"}), data.spec.offers(), "key")
    whole = network.features(data.train.images)
    assert torch.allclose(embed(network, data.train.images, chunk=7), whole, atol=1e-6)


def test_a_network_without_features_is_refused():
    with pytest.raises(UserError, match="Linear has none"):
        features_of(nn.Linear(2, 2))


def test_training_follows_the_protocol(data):
    """Against the same training written out: SGD 0.9 / 5e-4, one drop of the rate at half, all images in a batch."""
    network = fresh_network(SMALL, data.spec.offers(), "key")
    other = ConvNet(in_channels=1, image_size=8, classes=3, width=8, depth=2)
    other.load_state_dict(network.state_dict())
    images, labels = data.train.images[:6], data.train.labels[:6]
    post_train(network, images, labels, epochs=6, lr=0.05, batch_size=64, ops=(), key="k")
    momentum = [torch.zeros_like(p) for p in other.parameters()]
    for epoch in range(6):
        loss = nn.functional.cross_entropy(other(images), labels)
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        with torch.no_grad():
            for p, g, m in zip(other.parameters(), gradients, momentum, strict=True):
                m.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_((0.05 if epoch < 3 else 0.005) * m)
    assert torch.allclose(weights(network), weights(other), atol=1e-5)
    assert not network.training


def test_training_is_repeatable_with_augmentation_and_soft_labels(data):
    images, labels = data.train.images[:9], nn.functional.one_hot(data.train.labels[:9], 3).float()

    def train(key: str) -> torch.Tensor:
        network = fresh_network(SMALL, data.spec.offers(), "key")
        return weights(post_train(network, images, labels, epochs=3, lr=0.05, batch_size=4, ops=("crop",), key=key))

    assert torch.equal(train("a"), train("a"))
    assert not torch.equal(train("a"), train("b"))


def test_accuracy_counts_hits_over_all_batches():
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]
    assert accuracy(nn.Identity(), logits, torch.tensor([0, 1, 2, 2, 2]), 2) == pytest.approx(0.6)
