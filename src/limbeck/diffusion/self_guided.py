"""What methods share that train adapters on a network which, guided and without them, is its own teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.networks import inherit
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Parts
from limbeck.errors import UserError


class SelfGuided(TrajectoryMethod):
    """Base of the methods that train adapters on a network, whose guided self without them is the teacher."""

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True

    def setup(self, parts: Parts) -> None:
        """Take the student, whose base becomes the recipe's teacher unless ``from_teacher`` is off.

        Raises:
            UserError: it has no adapters, no classes or cannot be told of guidance, or its base is no such network.
        """
        super().setup(parts)
        net: Any = parts.student.net
        self._net = (net,)  # in a tuple, so that it is no learner of its own
        self.sigma_data = float(net.sigma_data)
        if not hasattr(net, "off"):
            raise UserError(
                "this method trains adapters: student: {net: {name: lora, base: {...}}} or guidance_adapter"
            )
        if self.classes is None:
            raise UserError("guidance needs classes: give student and teacher 'classes'")
        if not getattr(net, "guided", False):
            raise UserError(
                "this student cannot be told the strength of guidance: student: {net: {base: {guided: true}}}"
            )
        teacher = self.teacher.module
        if self.from_teacher and not (inherit(net, teacher) or inherit(net.base, teacher)):
            raise UserError(
                "the network without its adapters has to be the teacher, and its layers are not the teacher's: make "
                "student.net.base like the teacher, or turn off from_teacher for a base that is trained already"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the context the student's network has no adapters and takes no gradient."""
        with torch.no_grad(), self._net[0].off():
            yield

    def base(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The network by the student's module, within :meth:`alone` that without its adapters."""
        return self.student(x, label, at=sigma)

    def guided(self, x: Tensor, sigma: Tensor, label: Tensor | None, scale: Tensor) -> Tensor:
        """The estimate of the network without its adapters, guided at strengths [B]."""
        with self.alone():
            return Guided(self.base, like(scale, x))(x, sigma, **conditioned(label))
