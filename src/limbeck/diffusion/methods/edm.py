"""EDM's training: a denoising network from data, which then teaches the others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import denoising_weight, squared_error
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class EDMTraining(Method):
    """Denoising score matching under EDM's preconditioning and weights (Karras et al., arXiv 2206.00364, eq. 8).

    Args:
        mean: of the logarithm of the noise levels that are trained on.
        std: standard deviation of that logarithm.
        drop_label: share of the samples whose class is hidden, so that the network can also be asked without one and
            guided (arXiv 2207.12598).
    """

    controls = {"broad": {"method": {"mean": 0.5, "std": 2.5}}}

    def __init__(self, *, mean: float = -1.2, std: float = 1.2, drop_label: float = 0.1) -> None:
        if std <= 0 or not 0 <= drop_label <= 1:
            raise UserError("edm: std must be above 0 and drop_label from 0 to 1")
        self.mean = mean
        self.std = std
        self.drop_label = drop_label

    def setup(self, parts: Parts) -> None:
        """The student is the denoiser.

        Raises:
            UserError: it is none.
        """
        super().setup(parts)
        if not hasattr(parts.student, "sigma_data"):
            raise UserError("edm trains a denoising network, such as unet_denoiser, not this student")
        self.sigma_data = float(parts.student.sigma_data)  # type: ignore[arg-type]
        self.classes = getattr(parts.student, "classes", None)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the denoiser."""
        yield Update("student", partial(self.terms, batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted error of the denoised pictures."""
        ids, x0 = batch["id"], batch["input"]
        sigma = log_normal(clock.normal(ids, (1,), "level").squeeze(1), self.mean, self.std)
        x = x0 + like(sigma, x0) * clock.normal(ids, tuple(x0.shape[1:]), "noise")
        label = None
        if self.classes is not None and "label" in batch:
            hidden = clock.uniform(ids, (1,), "label").squeeze(1) < self.drop_label
            label = torch.where(hidden, -1, batch["label"])
        weight = denoising_weight(sigma, "edm", self.sigma_data)
        return {"denoising": Term.of(weight * squared_error(self.student(x, sigma, **conditioned(label)), x0))}
