"""Flows in the spaces that their papers use, over networks that are EDM denoisers: TrigFlow and rectified flow.

A rectified flow has ``z = (1 - t) x0 + t eps``, so that ``z / (1 - t)`` is a point of the EDM path at the level ``t /
(1 - t)``; TrigFlow has ``x = cos(t) x0 + sigma_data sin(t) eps`` at the level ``sigma_data tan t``. Results keep the
shape [B, *shape] of the points; times are [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.diffusion.networks import FourierFeatures, zero
from limbeck.diffusion.paths import Denoise, FlowMatching, TrigFlow, from_denoised, like, on_path
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts
from limbeck.errors import UserError

RF = FlowMatching()
JumpTo = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x, sigma, to) -> the point that the jump heads for``, in EDM space."""


def trig_field(denoise: Denoise, scaled: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """TrigFlow's ``F(x / sigma_data, t) = (cos t x - D) / (sigma_data sin t)`` (arXiv 2410.11081, section 3).

    Args:
        denoise: an EDM denoiser, or a consistency function that is the identity at level 0.
        scaled: ``x / sigma_data``.
        t: times in (0, pi / 2).
        sigma_data: standard deviation of the data.
    """
    path = TrigFlow(sigma_data)
    x = sigma_data * scaled
    return from_denoised(path, x, t, on_path(denoise, path)(x, t), "v") / sigma_data


def trig_tangent(
    x: Tensor, t: Tensor, velocity: Tensor, field: Tensor, change: Tensor, sigma_data: float, warm: float = 1.0
) -> Tensor:
    """``cos t df/dt`` of the consistency function ``f = cos t x - sigma_data sin t F`` (arXiv 2410.11081, algorithm 1).

    ``-cos^2 t (sigma_data F - dx/dt) - warm (cos t sin t x + sigma_data dF)``.

    Args:
        x: points of the path.
        t: their times.
        velocity: ``dx/dt`` there.
        field: ``F(x / sigma_data, t)``.
        change: ``dF``, the derivative of F along ``cos t sin t (dx/dt / sigma_data, 1)``.
        sigma_data: standard deviation of the data.
        warm: the share of the second part, which is unsteady early in training.
    """
    cos, sin = like(torch.cos(t), x), like(torch.sin(t), x)
    return -(cos**2) * (sigma_data * field - velocity) - warm * (cos * sin * x + sigma_data * change)


def normalised(tangent: Tensor, floor: float) -> Tensor:
    """``g / (|g| + floor)``, the norm over all dimensions of a sample."""
    length = tangent.flatten(1).norm(dim=1)
    return tangent / like(length + floor, tangent)


def mean_velocity(heads_for: JumpTo, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """``(z_t - z_r) / (t - r)`` of a jump of a two-level network between the times ``t >= r`` of a rectified flow.

    It is ``(z - h) / t`` with the point ``h`` that the jump heads for, in the limit ``r = t`` too: there it is the
    velocity.
    """
    return (z - heads_for(z / like(1 - t, z), t / (1 - t), r / (1 - r))) / like(t, z)


def mean_velocity_target(velocity: Tensor, change: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """``v - (t - r) du/dt``, what the mean velocity from ``t`` to ``r`` has to be (arXiv 2505.13447, eq. 6)."""
    return velocity - like(t - r, velocity) * change


def flow_step(z: Tensor, velocity: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """From time ``t`` to ``r`` at a velocity: ``z - (t - r) v``."""
    return z - like(t - r, z) * velocity


def need_jumps(parts: Parts) -> None:
    """For flow maps.

    Raises:
        UserError: the student's network does not take the level that a jump goes to.
    """
    if not getattr(parts.student.net, "jumps", False) or getattr(parts.student, "rule", "map") != "map":
        raise UserError("a flow map takes two levels: student: {rule: map, net: {jumps: true}}")


class LevelWeight(nn.Module):
    """A learned logarithm of the weight of a noise level, 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.level = FourierFeatures()
        self.last = zero(nn.Linear(2 * len(self.level.frequencies), 1))

    def forward(self, sigma: Tensor) -> Tensor:
        """``[B] -> [B]``."""
        return self.last(self.level(torch.log(sigma) / 4)).squeeze(1)


class FlowMethod(TrajectoryMethod):
    """Base of the methods that use velocities, of the teacher or of the data, and no solver.

    Args:
        points: whose velocity moves a point: the ``teacher``'s, which makes it distillation, or the ``data``'s, that
            of one clean sample and its noise, which makes it training.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True

    def __init__(self, *, points: Literal["teacher", "data"] = "teacher", **rest: Any) -> None:
        super().__init__(**rest)
        self.points = points

    def within_range(self, t: Tensor) -> Tensor:
        """Times of the rectified flow cut to those of the student's noise levels."""
        low, high = (level / (1 + level) for level in (self.sigma_min, self.sigma_max))
        return t.clamp(low, high)

    def on_line(self, batch: Batch, clock: Clock, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points of the rectified flow at times [B], their velocity as the recipe says, and their class."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "noise").to(x0)
        z = RF.noisy(x0, eps, t)
        return z, eps - x0 if self.points == "data" else self.velocity(z, t, label), label

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """The teacher's, at points of the rectified flow."""
        return (z - self.denoised(z / like(1 - t, z), t / (1 - t), label)) / like(t, z)

    def average(self, z: Tensor, t: Tensor, r: Tensor, label: Tensor | None, *, lagging: bool = False) -> Tensor:
        """The student's mean velocity from ``t`` to ``r``; ``lagging``, of what gives targets."""
        call: Callable[..., Any] = self.lagging if lagging else self.network
        return mean_velocity(lambda x, sigma, to: call(x, sigma, label, to=to), z, t, r)
