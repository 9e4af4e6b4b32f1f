"""IDC: gradients matched on networks that learn the real data, and many images formed of each that is stored."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import nn

from limbeck.condensation.matching import Ops
from limbeck.condensation.methods.dc import DC
from limbeck.condensation.networks import descend
from limbeck.engine.method import Clock
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class IDC(DC):
    """Efficient synthetic-data parameterisation (Kim et al., ICML 2022, arXiv 2205.14959).

    With ``student.tiles: 2`` each stored image is four small ones, which are enlarged before they are seen (the paper's
    multi-formation; 1 is its IDC-I). As in ``dsa`` the gradients of a class are compared under the same augmentation,
    but by the squared or absolute difference of their kernels, without the last layer, and the network learns *real*
    images between the steps, with CutMix, so that its gradients do not fade. The published code takes SGD with momentum
    0.5 and a learning rate of 5e-3 for ``mse`` (times the images per class over ten), and clamps.

    Args:
        outer: steps with one network.
        inner: epochs on a share of the real images after each step.
        distance: between gradients.
        early: epochs on the real images before a network's first step.
        net_data: real images in an epoch.
        net_lr, net_momentum, net_decay: of the network's descent.
        net_cutmix: share of its steps whose images are mixed.
    """

    def __init__(
        self,
        *,
        outer: int = 100,
        inner: int = 1,
        distance: Literal["rows", "cosine", "mse", "l1"] = "mse",
        batch_real: int = 64,
        augment: Ops = ("color", "crop", "cutout"),
        early: int = 0,
        net_data: int = 2000,
        net_lr: float = 0.01,
        net_momentum: float = 0.9,
        net_decay: float = 5e-4,
        net_cutmix: float = 0.5,
        net_batch: int = 64,
        clamp: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(
            outer=outer,
            inner=inner,
            distance=distance,
            batch_real=batch_real,
            augment=augment,
            net_lr=net_lr,
            net_batch=net_batch,
            clamp=clamp,
            **rest,
        )
        if early < 0 or net_data < 1:
            raise UserError("idc: early must be 0 or more, and net_data at least 1")
        self.early = early
        self.net_data = net_data
        self.net_momentum = net_momentum
        self.net_decay = net_decay
        self.net_cutmix = net_cutmix
        self._optimizer: torch.optim.SGD | None = None
        self._momenta: dict[str, torch.Tensor] = {}

    def weights(self, network: nn.Module) -> list[nn.Parameter]:
        """Those whose gradients are compared: the kernels, not the last layer.

        Raises:
            UserError: the network has no convolution.
        """
        kernels = [p for p in network.parameters() if p.dim() > 2]
        if not kernels:
            raise UserError(f"idc compares the gradients of kernels, and {type(network).__name__} has no convolution")
        return kernels

    def seen_by(self, clock: Clock, device: torch.device) -> nn.Module:
        """The network of a step; a fresh one has learnt the real images for ``early`` epochs."""
        before = self.network
        network = super().seen_by(clock, device)
        if network is not before:
            self._optimizer = self._begin(network)
            if clock.step % self.loops[0] == 0:
                with torch.enable_grad():
                    for epoch in range(self.early):
                        self._epoch(network, (clock.seed, clock.step, "early"), epoch, len(self.real.labels))
        return network

    def learn(self, network: nn.Module, key: Hashable) -> None:
        """Let the network learn real images for the inner epochs."""
        for epoch in range(self.loops[1]):
            self._epoch(network, key, epoch, self.net_data)

    def _epoch(self, network: nn.Module, key: Hashable, epoch: int, count: int) -> None:
        assert self._optimizer is not None
        rank = uniform(torch.arange(len(self.real.labels)), (1,), (key, epoch, "rows"))[:, 0]
        rows = rank.argsort()[:count].to(self.real.labels.device)
        # Cutting out and mixing in at once would leave little of an image.
        ops = tuple(op for op in self.augment if op != "cutout" or not self.net_cutmix)
        images, labels = self.real.images[rows], self.real.labels[rows]
        where = (key, epoch)
        descend(network, self._optimizer, images, labels, self.net_batch, ops, where, cutmix=self.net_cutmix)

    def _begin(self, network: nn.Module) -> torch.optim.SGD:
        momentum, decay = self.net_momentum, self.net_decay
        optimizer = torch.optim.SGD(network.parameters(), lr=self.net_lr, momentum=momentum, weight_decay=decay)
        for name, parameter in network.named_parameters():
            if name in self._momenta:
                optimizer.state[parameter]["momentum_buffer"] = self._momenta[name].to(parameter.device).clone()
        self._momenta = {}
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """The network's weights and the momenta of its descent."""
        momenta = dict(self._momenta)
        if self._optimizer is not None and self.network is not None:
            for name, parameter in self.network.named_parameters():
                momentum = self._optimizer.state[parameter].get("momentum_buffer")
                if momentum is not None:
                    momenta[name] = momentum
        return {**super().state_dict(), **{f"momentum.{k}": v for k, v in momenta.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._optimizer = None
        self._momenta = {k.removeprefix("momentum."): v for k, v in state.items() if k.startswith("momentum.")}
        super().load_state_dict({k: v for k, v in state.items() if not k.startswith("momentum.")})
