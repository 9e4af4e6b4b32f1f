"""Where the networks that judge images come from: fresh random ones, and ones trained on a given set."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.condensation.augment import augment, unpaired
from limbeck.condensation.relabel import cut_mixed
from limbeck.engine.noise import key_of, uniform
from limbeck.errors import UserError
from limbeck.registry import Block, build

CHUNK, CACHED_PIXELS = 1024, 2**17
"""Images that are embedded at once, at most, and how many pixels of them on a processor."""


def paper_convnet(shape: Sequence[int]) -> Block:
    """ConvNet-D as the papers choose it: 128 channels, stages until the map is 4 x 4 (3 for 32 pixels, 4 for 64)."""
    return Block("convnet", {"depth": max(1, round(math.log2(shape[-1])) - 2)})


def fresh_network(
    block: Block, offers: Mapping[str, Any], key: Hashable, device: torch.device | None = None
) -> nn.Module:
    """A network with random weights that depend on ``key`` alone, in training mode. No generator is touched.

    Args:
        block: the network.
        offers: what fills the arguments that the block leaves out (``DataSpec.offers()``).
        key: of its random weights.
        device: where it goes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_of(key) % 2**63)
        network = build("model", block, offers=offers)
    return cast("nn.Module", network).to(device).train()


def features_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network's ``features`` method, images [B, ...] -> [B, D].

    Raises:
        UserError: it has none.
    """
    method = getattr(network, "features", None)
    if not callable(method):
        name = type(network).__name__
        raise UserError(f"matching features needs a network with a method features(images) -> [B, D]; {name} has none")
    return method


def relu_maps(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What leaves each ReLU, in order, and the features [B, D]; with gradient.

    Raises:
        UserError: the network has no ``features`` method, or no ReLU.
    """
    maps: list[Tensor] = []
    phi = features_of(network)
    found = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    if not found:
        raise UserError(f"{type(network).__name__} has no ReLU, whose maps are compared")
    hooks = [module.register_forward_hook(lambda m, i, out: maps.append(out)) for module in found]
    try:
        features = phi(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps, features


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, chunk: int | None = None) -> Tensor:
    """Features [B, D] without gradient, ``chunk`` images at once; all where batch norm is in training mode.

    By default a processor takes as few as its caches hold, which is faster than large batches
    (``benchmarks/matching_step.py``).
    """
    phi = features_of(network)
    whole = any(isinstance(m, _BatchNorm) and m.training for m in network.modules())
    cached = CACHED_PIXELS // images.shape[2:].numel() if images.device.type == "cpu" else CHUNK
    size = chunk or min(max(cached, 1), CHUNK)
    return torch.cat([phi(piece) for piece in ([images] if whole else images.split(size))])


def post_train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    ops: tuple[str, ...],
    key: Hashable,
    regression: bool = False,
    cutmix: float = 0.0,
) -> nn.Module:
    """Train a network on a condensed set by the papers' protocol, and return it in evaluation mode.

    SGD with momentum 0.9 and weight decay 5e-4, the rate divided by 10 once at half of the epochs, unpaired DSA.
    Order and augmentation follow from ``key`` alone.

    Args:
        network: trained in place.
        images: [N, ...].
        labels: int64 [N], or probabilities [N, classes], or the numbers that a regression shall meet.
        epochs: passes over the images.
        lr: learning rate of the first half.
        batch_size: images a step.
        ops: augmentation operations; none where empty.
        key: of all randomness.
        regression: by squared error, not cross-entropy.
        cutmix: share of the steps whose images are mixed.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr if 2 * epoch < epochs else 0.1 * lr
        step = (key, epoch)
        descend(network, optimizer, images, labels, batch_size, ops, step, regression=regression, cutmix=cutmix)
    return network.eval()


def descend(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    ops: tuple[str, ...],
    key: tuple[Hashable, int],
    *,
    regression: bool = False,
    cutmix: float = 0.0,
) -> None:
    """One pass over the images, in an order and with unpaired augmentation that follow from the key.

    In a share ``cutmix`` of the steps a rectangle of another image of the batch is put into each, and both labels count
    by their areas (Yun et al. 2019, arXiv 1905.04899).
    """
    criterion = F.mse_loss if regression else F.cross_entropy
    order = uniform(torch.arange(len(images)), (1,), (*key, "order"))[:, 0].argsort()
    for number, rows in enumerate(order.split(batch_size)):
        x, y = images[rows], labels[rows]
        if ops:
            x = augment(x, unpaired(len(x), (*key, number), ops))
        optimizer.zero_grad()
        if cutmix and float(uniform(torch.zeros(1, dtype=torch.int64), (1,), (*key, number, "cut"))) < cutmix:
            x, partner, share = cut_mixed(x, (*key, number))
            said = network(x)
            loss = share * criterion(said, y) + (1 - share) * criterion(said, y[partner])
        else:
            loss = criterion(network(x), y)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Share of images [N, ...] whose label [N] the network finds."""
    hits = [network(x).argmax(1) == y for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)]
    return torch.cat(hits).double().mean().item()
