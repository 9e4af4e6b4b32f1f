"""DWA: each slot is recovered from a teacher whose weights have turned away from what the slot shows already."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.recover import DecoupledMethod, Voter
from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class DWA(DecoupledMethod):
    """Directed Weight Adjustment (Du et al., NeurIPS 2024, arXiv 2409.17612), in the recovery of ``sre2l``.

    Before the recovery each slot gets a copy of the teacher, whose weights climb the cross-entropy of the slot's first
    images in ``ascents`` steps of length ``radius / ascents``, each along the gradient; labels come from the teacher as
    it was. In the distance of statistics the variances count ``var_weight`` times. The paper starts from real images
    (the student's ``init: real``) and takes 12 steps, a radius of 0.015 and a ``var_weight`` of 11 for small images, 15
    and 2 for ImageNet-1K. A copy is kept for each slot.

    Args:
        ascents: steps of the weights; 0 leaves them.
        radius: length of all of them together, at most.
        var_weight: of the variances, beside the means.
    """

    fixed = ("radius",)

    def __init__(
        self,
        *,
        ascents: int = 12,
        radius: float = 0.015,
        var_weight: float = 11.0,
        crop: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(crop=crop, **rest)
        if ascents < 0 or radius < 0:
            raise UserError("dwa: ascents and radius are 0 or more")
        self.ascents = ascents
        self.radius = radius
        self.var_weight = var_weight

    def setup(self, parts: Parts) -> None:
        """Adjust a copy of each teacher for each slot.

        Raises:
            UserError: as :meth:`DecoupledMethod.setup`.
        """
        super().setup(parts)
        images, labels = self.slots()
        self.adjusted = [
            [adjusted(teacher, slot, labels, self.ascents, self.radius) for slot in images.detach()]
            for teacher in self.teachers.values()
        ]

    def votes(self, slots: int, clock: Clock) -> list[Voter]:
        """The copies, each for its slot."""
        share = 1 / len(self.adjusted)
        return [
            Voter(copied, [share * (slot == number) for slot in range(slots)])
            for copies in self.adjusted
            for number, copied in enumerate(copies)
        ]

    def distance(self, statistics: Statistics, rows: slice) -> Tensor:
        """Distance of the means and, weighted, of the variances."""
        layers = []
        for (mean, variance), norm in zip(statistics.moments(rows), statistics.norms, strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            gap = (variance - norm.running_var).norm()
            layers.append((mean - norm.running_mean).norm() + self.var_weight * gap)
        return self.first_layer * layers[0] + torch.stack([*layers[1:], torch.zeros_like(layers[0])]).sum()


def adjusted(teacher: Teacher, images: Tensor, labels: Tensor, steps: int, radius: float) -> Teacher:
    """A copy of a teacher whose weights climb the cross-entropy of images [C, ...], in steps of ``radius / steps``.

    Each step goes along the gradient of all weights, so that together they move them by ``radius`` at most. What batch
    normalisation remembers stays.
    """
    module: nn.Module = copy.deepcopy(teacher.module).requires_grad_(True)
    weights = list(module.parameters())
    with torch.enable_grad():
        for _ in range(steps):
            loss = F.cross_entropy(forward(module, {"input": images}).logits, labels)
            gradients = torch.autograd.grad(loss, weights)
            length = torch.stack([g.norm() for g in gradients]).norm().clamp(min=torch.finfo(loss.dtype).tiny)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(gradient / length, alpha=radius / steps)
    return Teacher(module, teacher.gives, teacher.name, teacher.mode)
