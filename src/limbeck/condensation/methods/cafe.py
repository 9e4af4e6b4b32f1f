"""CAFE: features of every layer aligned, and class centres that tell real images apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.losses import class_means, distribution_matching
from limbeck.condensation.matching import MatchingMethod, Ops
from limbeck.condensation.networks import descend, relu_maps
from limbeck.engine.method import Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class CAFE(MatchingMethod):
    """Condensing by aligning features (Wang et al., CVPR 2022, arXiv 2203.01531).

    Of each class the mean map after every ReLU, and the mean feature, shall be alike for real and learned images. The
    centre of a class's learned features shall tell its real ones from those of other classes: real features are given
    logits by their inner products with the centres. The network learns the images between the steps, in loops that
    watch its accuracy on real images: it learns until its last ``watched`` accuracies differ by more than
    ``inner_range``, and makes way for a fresh one when as many in a row, one after each step, differ by less than
    ``outer_range``. The published code takes SGD with learning rate 0.1 and momentum 0.5 over 2000 networks, halved at
    1200, 1600 and 1800.

    Args:
        early_weight: of the maps of all ReLUs but the last, whose own is 1.
        feature_weight: of the features. The published code counts them twice, flattened and as the pooled map.
        discrimination: weight of the cross-entropy by centres, summed over the real images.
        outer_range: lambda 1.
        inner_range: lambda 2.
        watched: accuracies whose range decides.
        outer: steps with one network, at most; the published code has no limit.
        inner: epochs on the images after a step, at most; likewise.
        query: real images of each class whose accuracy is watched.
        net_lr: of the network's plain descent.
        net_batch: images in a step of that.
    """

    def __init__(
        self,
        *,
        augment: Ops = (),
        early_weight: float = 0.1,
        feature_weight: float = 2.0,
        discrimination: float = 0.01,
        outer_range: float = 0.04,
        inner_range: float = 0.03,
        watched: int = 10,
        outer: int = 100,
        inner: int = 100,
        query: int = 128,
        net_lr: float = 0.01,
        net_batch: int = 256,
        **rest: Any,
    ) -> None:
        super().__init__(augment=augment, **rest)
        if inner < 0 or min(outer, query, net_batch, watched) < 1:
            raise UserError("cafe: outer, query, net_batch and watched must be 1 or more, inner 0 or more")
        self.early_weight = early_weight
        self.feature_weight = feature_weight
        self.discrimination = discrimination
        self.outer_range = outer_range
        self.inner_range = inner_range
        self.watched = watched
        self.outer = outer
        self.inner = inner
        self.query = query
        self.net_lr = net_lr
        self.net_batch = net_batch
        self._network: nn.Module | None = None
        self._born = 0
        self._seen: list[float] = []
        self._kept: dict[str, Tensor] = {}

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``layers``, ``features`` and ``centres``; the count is 1: the paper sums over classes."""
        images, labels = self.student()
        network = self.network(clock, images.device).requires_grad_(False)
        sets = self.drawn(images, labels, (clock.seed, clock.step))
        with torch.no_grad():
            real_maps, real = relu_maps(network, sets.real)
        own_maps, own = relu_maps(network, sets.images)
        gaps = [
            distribution_matching(a.flatten(1), sets.real_labels, b.flatten(1), labels, self.real.classes).sum()
            for a, b in zip(real_maps, own_maps, strict=True)
        ]
        weights = [*[self.early_weight] * (len(gaps) - 1), 1.0]
        layers = torch.stack([weight * gap for weight, gap in zip(weights, gaps, strict=True)]).sum()
        features = distribution_matching(real, sets.real_labels, own, labels, self.real.classes).sum()
        centres = class_means(own, labels, self.real.classes)
        told = F.cross_entropy(real @ centres.T, sets.real_labels, reduction="sum")
        return {
            "layers": Term(layers, 1, unit="sets"),
            "features": Term(features, 1, self.feature_weight, unit="sets"),
            "centres": Term(told, 1, self.discrimination, unit="sets"),
        }

    def network(self, clock: Clock, device: torch.device) -> nn.Module:
        """The network of a step; fresh where the last one was given up."""
        if self._network is None:
            if not self._kept:
                self._born, self._seen = clock.step, []
            self._network = self.fresh((clock.seed, self._born, "network"), device)
            if self._kept:
                self._network.load_state_dict(self._kept)
            self._kept = {}
        return self._network

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; watch the network, and let it learn the images or make way for a fresh one."""
        super().after_step(clock)
        network = self._network
        if network is None:
            return
        self._seen = [*self._seen, self._accuracy(network, (clock.seed, clock.step, "outer"))][-self.watched :]
        settled = len(self._seen) == self.watched and _range(self._seen) < self.outer_range
        if settled or clock.step + 1 - self._born >= self.outer:
            self._network = None
            return
        with torch.no_grad():
            images, labels = (t.detach() for t in self.student())
        self._learn(network.requires_grad_(True), images, labels, (clock.seed, clock.step, "inner"))

    def _learn(self, network: nn.Module, images: Tensor, labels: Tensor, key: tuple[int, int, str]) -> None:
        """Epochs on the images until the accuracy has moved."""
        optimizer, seen = torch.optim.SGD(network.parameters(), lr=self.net_lr), list[float]()
        network.train()
        for epoch in range(self.inner):
            with torch.enable_grad():
                descend(network, optimizer, images, labels, self.net_batch, self.augment, (key, epoch))
            seen = [*seen, self._accuracy(network, (*key, epoch))][-self.watched :]
            if len(seen) == self.watched and _range(seen) > self.inner_range:
                return

    @torch.no_grad()
    def _accuracy(self, network: nn.Module, key: tuple[int | str, ...]) -> float:
        """On some real images of each class. The loops turn on it, so that here the device is waited for."""
        images, labels = self.real.draw(self.query, key)
        return float((network(images).argmax(1) == labels).double().mean())

    def state_dict(self) -> dict[str, Any]:
        """The network, since when it lasts, and the accuracies that are watched."""
        kept = self._kept if self._network is None else self._network.state_dict()
        watched = {"seen": torch.tensor(self._seen, dtype=torch.float64), "born": torch.tensor(self._born)}
        return {**{f"network.{k}": v for k, v in kept.items()}, **watched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._network, self._born, self._seen = None, int(state["born"]), state["seen"].tolist()
        self._kept = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}


def _range(values: list[float]) -> float:
    return max(values) - min(values)
