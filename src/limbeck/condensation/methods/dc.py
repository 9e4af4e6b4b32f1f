"""Gradient matching: synthetic images that push a network's weights where the real ones push them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.condensation.augment import augment, siamese
from limbeck.condensation.losses import gradient_distance
from limbeck.condensation.matching import MatchingMethod
from limbeck.condensation.networks import descend
from limbeck.condensation.synthetic import image_set
from limbeck.engine.method import Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Steps with a network, and its epochs on the images after each, by images per class (the published code's)."""
SEEN = 16
"""Real images of each class that batch norm takes its statistics from."""


@register("method")
class DC(MatchingMethod):
    """Data-set condensation by gradient matching (Zhao, Mopuri and Bilen, ICLR 2021, arXiv 2006.05929).

    Of each class, the gradient of the cross-entropy with respect to a network's weights is taken on real images and on
    the student's, and these move so that both are alike: ``sum_c sum_l sum_i (1 - cos)`` over layers and output units.
    The network is fresh every ``outer`` steps and learns the images for ``inner`` epochs after each of the steps
    between. With ``augment`` and ``paired`` it is differentiable Siamese augmentation (DSA; Zhao and Bilen, ICML 2021,
    arXiv 2102.08259). The papers take SGD with learning rate 0.1 and momentum 0.5 over 1000 networks, so that the steps
    are 1000 times ``outer``.

    Args:
        outer: steps with one network; by default the papers' number for the images per class (1, 10 or 50 and between).
        inner: epochs on the images that the network learns after a step; by default likewise.
        distance: between gradients, as in :func:`limbeck.condensation.losses.gradient_distance`.
        paired: a class is augmented alike on both sides; without, each side by its own draw.
        net_lr: of the network's plain descent.
        net_batch: images in a step of that.
    """

    def __init__(
        self,
        *,
        outer: int | None = None,
        inner: int | None = None,
        distance: Literal["rows", "cosine", "mse", "l1"] = "rows",
        paired: bool = True,
        net_lr: float = 0.01,
        net_batch: int = 256,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if (outer is not None and outer < 1) or (inner is not None and inner < 0) or net_batch < 1:
            raise UserError("dc: outer and net_batch must be 1 or more, inner 0 or more")
        self.outer = outer
        self.inner = inner
        self.distance = distance
        self.paired = paired
        self.net_lr = net_lr
        self.net_batch = net_batch

    def setup(self, parts: Parts) -> None:
        """Settle the loops."""
        super().setup(parts)
        per_class = image_set(parts.student).per_class
        nearest = min(LOOPS, key=lambda known: abs(known - per_class))
        self.loops = tuple(
            default if given is None else given
            for given, default in zip((self.outer, self.inner), LOOPS[nearest], strict=True)
        )
        self.network: nn.Module | None = None
        self._kept: dict[str, Tensor] = {}

    def says(self) -> list[str]:
        """The loops that follow from the number of images."""
        return [
            f"a fresh network every {self.loops[0]} steps, which learns the images for {self.loops[1]} epochs between"
        ]

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: its value, and the gradient that it gives the images, found class by class."""
        images, _ = self.student()
        network = self.seen_by(clock, images.device)
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            total = torch.zeros((), device=images.device)
            gradient = torch.zeros_like(leaf)
            for loss in self.classes(network, leaf, (clock.seed, clock.step)):
                gradient += torch.autograd.grad(loss, leaf)[0]
                total += loss.detach()
        moved = (images * gradient).sum()
        return {"gradients": Term(total + moved - moved.detach(), 1, unit="sets")}

    def classes(self, network: nn.Module, images: Tensor, key: tuple[int, int]) -> Iterator[Tensor]:
        """The distance of each class in turn; the graph of one need not outlive it."""
        weights = self.weights(network)
        real, _ = self.real.to(images.device).draw(self.batch_real, (key, "real"))
        shares, equal = self.real.shares(self.batch_real), self.equal(len(images))
        draws = None
        if self.augment:
            draws = siamese(self.real.classes, (key, "augment"), self.augment)
            real = augment(real, draws, shares)
            if not self.paired:
                draws = siamese(self.real.classes, (key, "augment of the images"), self.augment)
        for c, (of_class, own) in enumerate(zip(real.split(shares), images.split(equal), strict=True)):
            if draws is not None:
                own = augment(own, draws.group(c), [len(own)])
            wanted = torch.autograd.grad(_loss(network, of_class, c), weights)
            given = torch.autograd.grad(_loss(network, own, c), weights, create_graph=True)
            yield gradient_distance(wanted, given, self.distance)

    def weights(self, network: nn.Module) -> list[nn.Parameter]:
        """Those whose gradients are compared: matrices and kernels."""
        return [p for p in network.parameters() if p.dim() > 1]

    def seen_by(self, clock: Clock, device: torch.device) -> nn.Module:
        """The network of a step, in training mode but for batch norm, whose statistics are those of real images."""
        episode, step = divmod(clock.step, self.loops[0])
        if self.network is None or step == 0:
            self.network = self.fresh((clock.seed, episode, "network"), device)
            if self._kept and step > 0:
                self.network.load_state_dict(self._kept)
        self._kept = {}
        norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm)]
        if norms:
            real, _ = self.real.to(device).draw(SEEN, (clock.seed, clock.step, "statistics"))
            for norm in norms:
                norm.train()
            with torch.no_grad():
                self.network(real)
            for norm in norms:
                norm.eval()
        return self.network

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; then let the network learn, unless the next step has a fresh one."""
        super().after_step(clock)
        if self.network is None or (clock.step + 1) % self.loops[0] == 0:
            return
        self.network.train()
        with torch.enable_grad():
            self.learn(self.network, (clock.seed, clock.step, "inner"))

    def learn(self, network: nn.Module, key: Hashable) -> None:
        """Let the network learn the images for the inner epochs."""
        with torch.no_grad():
            images, labels = (t.detach() for t in self.student())
        optimizer = torch.optim.SGD(network.parameters(), lr=self.net_lr)
        for epoch in range(self.loops[1]):
            descend(network, optimizer, images, labels, self.net_batch, self.augment, (key, epoch))

    def state_dict(self) -> dict[str, Any]:
        """The network's weights, which have learnt the images of earlier steps."""
        kept = self._kept if self.network is None else self.network.state_dict()
        return {f"network.{k}": v for k, v in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.network = None
        self._kept = {k.removeprefix("network."): v for k, v in state.items()}


def _loss(network: nn.Module, images: Tensor, label: int) -> Tensor:
    return F.cross_entropy(network(images), torch.full((len(images),), label, device=images.device))
