"""RFAD: kernel inducing points with the kernel of random finite networks, and logits from its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.kernels import ridge, squared_loss
from limbeck.condensation.networks import embed, features_of
from limbeck.condensation.regression import RegressionMethod
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


class Temperature(nn.Module):
    """A positive number that learns."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(value).log())

    def forward(self) -> Tensor:
        """The number."""
        return self.log.exp()


@register("method")
class RFAD(RegressionMethod):
    """Random feature approximation (Loo et al., NeurIPS 2022, arXiv 2210.12067).

    As ``kip`` with the kernel of a random convolutional network of finite width: the features of ``networks`` fresh
    ones, drawn anew in each step, side by side. What the regression predicts is divided by a temperature that learns
    and read as logits (Platt scaling), so that the loss is a cross-entropy; ``loss: squared`` is KIP's. The paper takes
    eight networks without norm of 4096 features each, and Adam with learning rate 1e-3 for images and 3e-3 for labels.

    Args:
        networks: M, in each step.
        loss: ``platt`` or ``squared``.
        temperature: first value; a learner of its own (``train.learners.temperature``).
        strength: lambda over the trace of the images' kernel.
    """

    fixed = ("temperature",)

    def __init__(
        self,
        *,
        batch_real: int = 512,
        networks: int = 8,
        loss: Literal["platt", "squared"] = "platt",
        temperature: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(batch_real=batch_real, **rest)
        if networks < 1 or temperature <= 0:
            raise UserError("rfad: networks must be at least 1, and temperature above 0")
        self.networks = networks
        self.loss = loss
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """Take the real images, and let the temperature learn."""
        super().setup(parts)
        if self.loss == "platt":
            self.learners["temperature"] = Temperature(self.temperature)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the images and labels, with the temperature."""
        roles = ("student", "temperature") if self.loss == "platt" else ("student",)
        yield Update(roles, partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step, the mean over the real images."""
        images, targets, real, wanted, labels = self.lesson(clock)
        k_ss = torch.zeros(len(images), len(images), device=images.device)
        k_ts = torch.zeros(len(real), len(images), device=images.device)
        for number in range(self.networks):
            network = self.fresh((clock.seed, clock.step, number), images.device).requires_grad_(False)
            own, of_real = features_of(network)(images), embed(network, real)
            # Features side by side have the sum of their kernels.
            width = own.shape[1] * self.networks
            k_ss, k_ts = k_ss + own @ own.T / width, k_ts + of_real @ own.T / width
        said = ridge(k_ss, k_ts, targets, self.strength)
        if self.loss == "squared":
            return {"kernel": Term(squared_loss(said, wanted).mean(), 1, unit="sets")}
        return {"kernel": Term(F.cross_entropy(said / self.learners["temperature"](), labels), 1, unit="sets")}
