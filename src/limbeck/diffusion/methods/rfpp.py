"""2-RF++: one reflow is enough, where it is trained at the times and with the distances that matter."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.losses import pseudo_huber, squared_error
from limbeck.diffusion.methods.rectified_flow import RectifiedFlow
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


def u_shaped(u: Tensor, steepness: float) -> Tensor:
    """Times in [0, 1] of density proportional to ``e^{at} + e^{a(1 - t)}`` from uniform ``u`` of the same shape.

    Half exponential towards either end (arXiv 2405.20320, section 3.2): it is ``cosh(a (t - 1/2))``, whose integral has
    an inverse. A ``steepness`` a of 0 is uniform.
    """
    if steepness == 0:
        return u
    return 0.5 + torch.asinh((2 * u - 1) * math.sinh(steepness / 2)) / steepness


@register("method")
class RFPP(RectifiedFlow):
    """2-RF++, improved training of rectified flows (Lee et al., arXiv 2405.20320).

    Where the lines of a teacher's pairs do not cross, one reflow makes a flow that is straight, and what is left is to
    learn it well. Three changes to :class:`~limbeck.diffusion.methods.rectified_flow.RectifiedFlow` do so: the network
    starts as the diffusion model itself, which is a rectified flow under another path (``from_teacher``: the student is
    a denoiser here, so nothing has to be converted); times are drawn from a law with the form of a U, since the errors
    are at both ends; and the distance is ``(1 - t)`` times the pseudo-Huber distance of the velocities with a distance
    of the samples over ``t``, which weighs an error of the velocity alike at all times.

    What differs: LPIPS is for photographs, so samples are compared by the pseudo-Huber distance too; pairs are the
    teacher's alone, while the paper may add pairs of data and the noise that it comes from; no step is distilled after
    reflow, unless ``distil`` asks for it.

    Args:
        steepness: of the law of times, a of :func:`u_shaped`; 0 draws them uniformly.
        distance: of velocities and samples: ``huber`` or the mean ``square``.
        huber: c of the pseudo-Huber distance, in units of ``sqrt(dimensions)``.
        sample_weight: of the distance of samples over t; 0 leaves the velocities alone, at a weight of 1 for all times.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        steepness: float = 4.0,
        distance: Literal["huber", "square"] = "huber",
        huber: float = 0.00054,
        sample_weight: float = 1.0,
        distil: float = 0.0,
        **rest: Any,
    ) -> None:
        super().__init__(distil=distil, **rest)
        if steepness < 0 or huber < 0:
            raise UserError("rfpp: steepness and huber must be 0 or more")
        self.steepness = steepness
        self.distance = distance
        self.huber: float = huber
        self.sample_weight = sample_weight

    def apart(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The distance [B] that the recipe names."""
        if self.distance == "square":
            return squared_error(prediction, target)
        return pseudo_huber(prediction, target, self.huber)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The velocity on the lines of pairs with the sample that it leads to, and later the single step."""
        if clock.progress >= 1 - self.distil:
            return super().terms(batch, clock)
        eps, label, x0 = self.couple(batch, clock)
        u = u_shaped(clock.uniform(batch["id"], (1,), "time").squeeze(1), self.steepness)
        x, sigma, t = self.on_pair(x0, eps, u.to(x0))
        return {"velocity": Term.of(self.line_error(self.network(x, sigma, label), x0, t))}

    def line_error(self, made: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The distance [B] of estimate and sample at times [B]; velocities differ as these do, over t."""
        velocity = self.apart(made / like(t, made), x0 / like(t, made))
        if self.sample_weight == 0:
            return velocity
        return (1 - t) * velocity + self.sample_weight * self.apart(made, x0) / t
