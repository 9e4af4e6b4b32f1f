"""Base of methods that look with networks which are learning the set."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from limbeck.condensation.matching import MatchingMethod
from limbeck.condensation.pool import NetworkPool
from limbeck.engine.method import Clock, Parts
from limbeck.engine.noise import uniform
from limbeck.errors import UserError


class Pooled(MatchingMethod):
    """Base of methods that take a network of a pool in each step, and let it learn images and targets afterwards.

    A network learns by squared error, of which a step takes one; how is for :meth:`descent` to say.

    Args:
        pool: networks.
        life: steps that one of them learns before a fresh one takes its place; 0 has fresh ones only.
        net_lr: of the networks' descent.
        net_batch: images in a step of that.
        net, batch_real, augment, clamp: as for :class:`MatchingMethod`.
    """

    def __init__(
        self, *, pool: int = 10, life: int = 100, net_lr: float = 3e-4, net_batch: int = 500, **rest: Any
    ) -> None:
        super().__init__(**rest)
        if min(pool, net_batch) < 1 or life < 0:
            name = type(self).__name__.lower()
            raise UserError(f"{name}: pool and net_batch must be 1 or more, life 0 or more")
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

    def descent(self, network: nn.Module) -> Optimizer:
        """How a network of the pool learns."""
        raise NotImplementedError

    def looking(self, clock: Clock, device: torch.device) -> nn.Module:
        """The network that a step takes, frozen and in evaluation mode."""
        return self.networks(clock).network(clock.step, device).requires_grad_(False).eval()

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
