"""KRR-ST: a few images with features from which a teacher's features of all images can be predicted."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from limbeck.condensation.augment import augment, unpaired
from limbeck.condensation.features import features_as_targets, teacher_features
from limbeck.condensation.kernels import linear_kernel, ridge
from limbeck.condensation.matching import Ops
from limbeck.condensation.networks import embed, features_of, fresh_network, paper_convnet
from limbeck.condensation.pooled import Pooled
from limbeck.condensation.synthetic import image_set
from limbeck.engine.method import Clock, Parts, Term
from limbeck.registry import register


@register("method")
class KRRST(Pooled):
    """Self-supervised data-set distillation for transfer learning (Lee et al., ICLR 2024, arXiv 2310.06511).

    Images and their targets learn so that kernel ridge regression from them, with the features of a network of a pool
    and a constant, predicts a self-supervised teacher's features of augmented real images:
    ``|K_rs (K_ss + lambda I)^-1 y_s - g(a(x_r))|^2``, the mean over all numbers. The targets begin as the teacher's
    features of the first images. The networks of the pool learn images and targets by plain descent. No label is read
    but to draw as many real images of each class. The paper takes AdamW with 1e-3 (CIFAR-100), 1024 real images in all,
    and 160,000 steps.

    Args:
        augment: operations on the real images, each by its own numbers; none where empty.
        strength: lambda over the trace of the images' kernel.
        net_decay: weight decay of the networks' descent.
    """

    learns_labels: ClassVar[bool] = True
    needs: ClassVar[dict[str, set[str]]] = {"teacher": {"features"}}
    live = True

    def __init__(
        self,
        *,
        batch_real: int = 100,
        augment: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        strength: float = 1e-6,
        life: int = 1000,
        net_lr: float = 0.1,
        net_decay: float = 1e-3,
        net_batch: int = 256,
        **rest: Any,
    ) -> None:
        super().__init__(batch_real=batch_real, augment=augment, life=life, net_lr=net_lr, net_batch=net_batch, **rest)
        self.strength = strength
        self.net_decay = net_decay

    def setup(self, parts: Parts) -> None:
        """Make the targets the teacher's features of the first images.

        Raises:
            UserError: as :class:`MatchingMethod` says, or the student's targets are not as wide as the teacher's
                features.
        """
        super().setup(parts)
        student = image_set(parts.student)
        features_as_targets(student, self.teachers)
        assert student.targets is not None
        offers = {**parts.offers, "classes": student.targets.shape[1]}
        self.fresh = partial(fresh_network, self.net or paper_convnet(self.real.images.shape), offers)

    def descent(self, network: nn.Module) -> Optimizer:
        """Plain, with weight decay."""
        return torch.optim.SGD(network.parameters(), lr=self.net_lr, weight_decay=self.net_decay)

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step, the mean over the numbers of the real features."""
        images, targets = self.student()
        key = (clock.seed, clock.step)
        real, _ = self.real.to(images.device).draw(self.batch_real, (key, "real"))
        if self.augment:
            real = augment(real, unpaired(len(real), (key, "augment"), self.augment))
        wanted = teacher_features(self.teachers, real)
        network = self.looking(clock, images.device)
        of_real, own = embed(network, real), features_of(network)(images)
        said = ridge(linear_kernel(own, own), linear_kernel(of_real, own), targets, self.strength)
        return {"features": Term(F.mse_loss(said, wanted), 1, unit="sets")}
