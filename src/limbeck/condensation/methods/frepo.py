"""FRePo: regression on the features of networks that are themselves learning the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from limbeck.condensation.kernels import linear_kernel, ridge, squared_loss
from limbeck.condensation.networks import embed, features_of
from limbeck.condensation.pooled import Pooled
from limbeck.condensation.regression import RegressionMethod
from limbeck.engine.method import Clock, Term
from limbeck.registry import register


@register("method")
class FRePo(Pooled, RegressionMethod):
    """Neural feature regression with pooling (Zhou, Nezhadarya and Ba, NeurIPS 2022, arXiv 2206.00719).

    As ``kip``, but the kernel is that of the features of one network with a constant, ``<[phi, 1], [phi, 1]>``, taken
    from a pool of networks that learn the set by Adam, each for at most ``life`` steps. Images and labels learn. The
    paper takes LAMB with learning rate 3e-4, 1024 real images in all, and a ConvNet with batch norm whose channels
    double (``net: {norm: batch, double: true}``).
    """

    def __init__(self, *, batch_real: int = 100, **rest: Any) -> None:
        super().__init__(batch_real=batch_real, **rest)

    def descent(self, network: nn.Module) -> Optimizer:
        """Adam."""
        return torch.optim.Adam(network.parameters(), lr=self.net_lr)

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step, the mean over the real images."""
        images, targets, real, wanted, _ = self.lesson(clock)
        network = self.looking(clock, images.device)
        of_real, own = embed(network, real), features_of(network)(images)
        said = ridge(linear_kernel(own, own), linear_kernel(of_real, own), targets, self.strength)
        return {"features": Term(squared_loss(said, wanted).mean(), 1, unit="sets")}
