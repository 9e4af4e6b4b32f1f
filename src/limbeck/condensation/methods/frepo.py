"""FRePo: regression on the features of networks that are themselves learning the set."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from limbeck.condensation.kernels import linear_kernel, ridge, squared_loss
from limbeck.condensation.networks import embed, features_of
from limbeck.condensation.pool import NetworkPool
from limbeck.condensation.regression import RegressionMethod
from limbeck.engine.method import Clock, Parts, Term
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class FRePo(RegressionMethod):
    """Neural feature regression with pooling (Zhou, Nezhadarya and Ba, NeurIPS 2022, arXiv 2206.00719).

    As ``kip``, but the kernel is that of the features of one network with a constant, ``<[phi, 1], [phi, 1]>``, taken
    from a pool of networks that learn the set, each for at most ``life`` steps. A step takes one of them, as it is in
    evaluation mode, and lets it learn the set for a step by squared error. Images and labels learn. The paper takes
    LAMB with learning rate 3e-4, a batch of 1024 real images in all, and a ConvNet with batch norm whose channels
    double (``net: {norm: batch, double: true}``).

    Args:
        pool: networks.
        life: steps that one of them learns before a fresh one takes its place; 0 has fresh ones only.
        net_lr: of their Adam.
        net_batch: images in such a step.
        strength: lambda over the trace of the images' kernel.
    """

    def __init__(
        self, *, batch_real: int = 100, pool: int = 10, life: int = 100, net_lr: float = 3e-4, net_batch: int = 500,
        **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_real=batch_real, **rest)
        if min(pool, net_batch) < 1 or life < 0:
            raise UserError("frepo: pool and net_batch must be 1 or more, life 0 or more")
        self.pool = pool
        self.life = life
        self.net_lr = net_lr
        self.net_batch = net_batch
        self._pool: NetworkPool | None = None
        self._kept: dict[str, Any] = {}

    def setup(self, parts: Parts) -> None:
        """Take the real images; the pool is empty."""
        super().setup(parts)
        self._pool = None

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step, the mean over the real images."""
        images, targets, real, wanted, _ = self.lesson(clock)
        network = self.networks(clock).network(clock.step, images.device).requires_grad_(False).eval()
        of_real, own = embed(network, real), features_of(network)(images)
        said = ridge(linear_kernel(own, own), linear_kernel(of_real, own), targets, self.strength)
        return {"features": Term(squared_loss(said, wanted).mean(), 1, unit="sets")}

    def networks(self, clock: Clock) -> NetworkPool:
        """The pool, made when it is first asked for."""
        if self._pool is None:
            self._pool = NetworkPool(self.fresh, self.descent, self.pool, self.life, clock.seed)
            if self._kept:
                self._pool.load_state_dict(self._kept)
            self._kept = {}
        return self._pool

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; let the network of this step learn."""
        super().after_step(clock)
        if self._pool is not None:
            self._pool.grow(clock.step, lambda network, optimizer: self.learn(network, optimizer, clock))

    def descent(self, network: nn.Module) -> Optimizer:
        """How a network of the pool learns."""
        return torch.optim.Adam(network.parameters(), lr=self.net_lr)

    def learn(self, network: nn.Module, optimizer: Optimizer, clock: Clock) -> None:
        """One step on the set by squared error."""
        with torch.no_grad():
            images, targets = (t.detach() for t in self.student())
        rank = uniform(torch.arange(len(images)), (1,), (clock.seed, clock.step, "rows"))[:, 0]
        rows = rank.argsort()[: self.net_batch].to(images.device)
        network.requires_grad_(True).train()
        with torch.enable_grad():
            optimizer.zero_grad()
            F.mse_loss(network(images[rows]), targets[rows]).backward()
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The pool's."""
        return dict(self._kept) if self._pool is None else self._pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._pool, self._kept = None, dict(state)
