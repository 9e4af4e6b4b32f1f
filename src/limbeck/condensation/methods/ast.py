"""AST: experts that go slowly at first, and a student that is made ready for not going exactly their way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.condensation.experts import Course
from limbeck.condensation.methods.mtt import MTT
from limbeck.condensation.selection import k_means
from limbeck.condensation.synthetic import RealImages, SyntheticImages, first_images, image_set, tiled
from limbeck.condensation.trajectory import distance
from limbeck.condensation.unroll import Flat, unroll
from limbeck.engine.method import Clock, Parts, Term
from limbeck.engine.noise import key_of, normal, uniform
from limbeck.registry import register

CLIPPED = (0.5, 0.5, 0.55, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""What the experts' loss is multiplied by in their first epochs (the published code's)."""
DROP = 0.7
"""And their learning rate from the second half on."""


@register("method")
class AST(MTT):
    """Smooth and high-quality experts, and five changes to the matching (Shen et al. 2023, arXiv 2310.10541).

    Better experts (momentum, weight decay) move too fast for a few images to follow. Here their loss counts less in the
    first epochs (``clip``) and its gradient is kept small (``penalty``). The matching may start from representative
    images (``start``), from weights beside the expert's (``perturb``), weigh the loss of late starts more than that of
    early ones (``balance``), and match the epochs between as well (``between``). Each is off at False, 0 or "given".

    Args:
        start: ``average`` are means of random shares of each class, ``representative`` the images nearest to the
            centres of k-means, and ``given`` the student's own first images.
        clip: multiply the experts' loss by 0.5 to 0.9 in the first eleven epochs.
        penalty: weight of the squared gradient of the experts' loss; the code has none, the paper a small one.
        penalty_of: with respect to the ``inputs`` or the ``weights``.
        perturb: the weights of each layer are moved by a share of themselves drawn between half of this and this:
            ``w + a w * d / |d|``, where d is noise of which a half is zero. The distance starts there as well.
        balance: multiply the loss of the student's steps by ``log_5(t - T/2 + 8)`` for late t of the first epochs below
            T, and divide it by ``log_5(T/2 - t + 8)`` for early ones.
        between: add the distances to the expert's epochs before t + ``ahead``, each after its share of the steps.
    """

    fixed = ("expert_lr", "expert_momentum", "expert_decay", "penalty")

    def __init__(
        self,
        *,
        start: Literal["given", "average", "representative"] = "representative",
        clip: bool = True,
        penalty: float = 1e-3,
        penalty_of: Literal["inputs", "weights"] = "inputs",
        perturb: float = 1.0,
        balance: bool = True,
        between: bool = True,
        expert_lr: float = 0.003,
        expert_momentum: float = 0.9,
        expert_decay: float = 1e-3,
        **rest: Any,
    ) -> None:
        super().__init__(expert_lr=expert_lr, expert_momentum=expert_momentum, expert_decay=expert_decay, **rest)
        self.start = start
        self.clip = clip
        self.penalty = penalty
        self.penalty_of = penalty_of
        self.perturb = perturb
        self.balance = balance
        self.between = between

    def setup(self, parts: Parts) -> None:
        """Put the first images into the student."""
        super().setup(parts)
        student = image_set(parts.student)
        if self.start == "average":
            student.replace_(first_images(self.real, student.per_class, "mean", student.seed, student.tiles))
        elif self.start == "representative":
            student.replace_(representatives(self.real, student))

    def course(self) -> Course:
        """With the loss clipped and its gradient penalised."""
        shares = CLIPPED if self.clip else ()
        penalised = {"penalty": self.penalty, "penalty_of": self.penalty_of} if self.penalty else {}
        return replace(super().course(), drop=DROP, shares=shares, **penalised)  # type: ignore[arg-type]

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: what is left of the expert's way, and of the ways to the epochs between."""
        images, labels = self.pulled()
        expert, epoch = self.segment(clock)
        stops = list(range(1, self.ahead + 1)) if self.between else [self.ahead]
        begin, *targets = self.expert_weights(clock, expert, [epoch, *(epoch + k for k in stops)], images.device)
        if self.perturb:
            begin = perturbed(self.flat, begin, self.perturb, (clock.seed, clock.step))
        plain, factor = self.step_loss(clock), balanced(epoch, self.latest) if self.balance else 1.0
        path = unroll(
            lambda *given: factor * plain(*given),
            begin,
            self.rate(),
            self.steps,
            (images, labels),
            momentum=self.momentum,
            checkpoint=self.checkpoint,
        )
        places = [round(k * self.steps / self.ahead) for k in stops]
        left = [distance(path[at], target, begin) for at, target in zip(places, targets, strict=True)]
        return {"trajectory": Term(torch.stack(left).sum(), 1, unit="sets")}


def balanced(epoch: int, starts: int) -> float:
    """What the loss of steps that start after ``epoch`` is multiplied by, of starts below ``starts``."""
    late = epoch - starts / 2
    return math.log(late + 8, 5) if late >= 0 else 1 / math.log(8 - late, 5)


def perturbed(net: Flat, weights: Tensor, most: float, key: tuple[int, int]) -> Tensor:
    """Weights [P] moved by ``a w * d / |d|``, layer by layer, with a between ``most`` / 2 and ``most``.

    Args:
        net: tells the layers apart.
        weights: [P].
        most: the largest a.
        key: of all draws.
    """
    one = torch.tensor([key_of(key, "perturb")], device=weights.device)
    noise = normal(one, tuple(weights.shape), (key, "noise"))[0]
    kept = uniform(one, tuple(weights.shape), (key, "kept"))[0] < 0.5
    share = most * (1 + uniform(one, (1,), (key, "share"))[0, 0]) / 2
    layers = zip(net.named(weights).values(), net.named(noise * kept).values(), strict=True)
    return torch.cat([(w + share * w * d / d.norm().clamp(min=1e-12)).flatten() for w, d in layers])


def representatives(real: RealImages, student: SyntheticImages) -> Tensor:
    """The images of each class nearest to the centres of k-means, [N, ...], as many as the student stores."""
    count = student.per_class * student.tiles**2
    real.require(count)
    chosen = []
    for label in range(real.classes):
        own = real.of_class(label)
        chosen.append(own[k_means(own.flatten(1), count, student.seed)])
    return tiled(torch.cat(chosen), student.tiles)
