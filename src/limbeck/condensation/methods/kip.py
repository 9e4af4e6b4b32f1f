"""KIP: images from which kernel ridge regression with the kernel of a wide network predicts the real ones."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.condensation.kernels import best_targets, mlp_kernel, ridge, squared_loss
from limbeck.condensation.regression import RegressionMethod
from limbeck.condensation.synthetic import SyntheticImages, first_targets
from limbeck.engine.method import Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class KIP(RegressionMethod):
    """Kernel inducing points (Nguyen et al. 2021, arXiv 2011.00050 and 2107.13034).

    ``1/2 |y_T - K_ts (K_ss + lambda I)^-1 t|^2`` over a batch of real images, whose wanted outputs y_T are one-hot less
    1 / classes. The kernel is that of an infinitely wide perceptron, in closed form; the papers' best results are with
    convolutional ones, which take thousands of hours. The papers take Adam, with a learning rate of 0.01 to 0.04.

    Args:
        kernel: the neural tangent kernel, or that of the random network (``nngp``).
        depth: hidden layers.
        bias: standard deviation of the biases.
        strength: lambda over the trace of the images' kernel.
        solve: at the end take the best labels for the images and all real ones (the papers' label solve).
    """

    def __init__(
        self,
        *,
        batch_real: int = 512,
        kernel: Literal["ntk", "nngp"] = "ntk",
        depth: int = 2,
        bias: float = 0.1,
        strength: float = 1e-6,
        solve: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(batch_real=batch_real, strength=strength, **rest)
        if depth < 0:
            raise UserError(f"kip: depth must be 0 or more, not {depth}")
        self.kernel = kernel
        self.depth = depth
        self.bias = bias
        self.solve = solve

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel of images [A, ...] and [B, ...], [A, B]."""
        return mlp_kernel(a, b, depth=self.depth, bias=self.bias, kind=self.kernel)

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step, the mean over the real images."""
        images, targets, real, wanted, _ = self.lesson(clock)
        said = ridge(self.between(images, images), self.between(real, images), targets, self.strength)
        return {"kernel": Term(squared_loss(said, wanted).mean(), 1, unit="sets")}

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; at the end solve for the labels, if asked to."""
        super().after_step(clock)
        student = cast("SyntheticImages", self.student)
        if self.solve and clock.step + 1 == clock.total and student.targets is not None:
            images, _ = student()
            wanted = first_targets(self.real.labels, self.real.classes, centred=True)
            across = self.between(self.real.images, images)
            found = best_targets(self.between(images, images), across, wanted, self.strength)
            # Images that come of one stored image share its label.
            student.targets.copy_(found.view(len(student.targets), -1, found.shape[1]).mean(1))
