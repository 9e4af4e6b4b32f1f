"""DeepInversion, and the adaptive kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Update
from limbeck.errors import UserError
from limbeck.losses import cross_entropy, wide
from limbeck.registry import register
from limbeck.vision.inversion.rounds import Least, Rounds, descend
from limbeck.vision.inversion.views import rolled
from limbeck.vision.losses.inversion import competition, total_variation


@register("method")
class DeepInversion(Rounds):
    """Dreaming to Distill (Yin et al. 2020, arXiv 1912.08795): DeepInversion, with the adaptive term (ADI).

    Every ``every`` steps the pixels of a batch start as noise and descend ``CE(z_t, y) + tv_weight TV + l2_weight |x|
    + bn_weight sum_l (|mu_l - BN mean_l| + |var_l - BN var_l|) + compete_weight (1 - JS(p_t, p_s))`` for random classes
    y, at random shifts and flips of all images alike. The images of the least loss join the bank that the student
    learns from by soft targets. Norms of images are the means of each image's own.

    Args:
        bn_weight: of the statistics of the teacher's layers.
        first_layer: factor on the first layer's statistics (10 for ImageNet).
        tv_weight: of the total variation.
        l2_weight: of the length of an image.
        compete_weight: of the adaptive term; 0 is plain DeepInversion.
        compete_temperature: of both sides in it.
        jitter: largest shift, in pixels.
        lr: of the pixels, with Adam.
    """

    def __init__(
        self,
        *,
        bn_weight: float = 10.0,
        first_layer: float = 1.0,
        tv_weight: float = 2.5e-5,
        l2_weight: float = 3e-8,
        compete_weight: float = 10.0,
        compete_temperature: float = 3.0,
        jitter: int = 2,
        lr: float = 0.05,
        iterations: int = 2000,
        temperature: float = 3.0,
        **rest: Any,
    ) -> None:
        super().__init__(iterations=iterations, temperature=temperature, **rest)
        if jitter < 0:
            raise UserError(f"deepinversion: jitter must be 0 or more, not {jitter}")
        self.bn_weight = bn_weight
        self.first_layer = first_layer
        self.tv_weight = tv_weight
        self.l2_weight = l2_weight
        self.compete_weight = compete_weight
        self.compete_temperature = compete_temperature
        self.jitter = jitter
        self.lr = lr

    def round(self, clock: Clock, device: torch.device, number: int) -> Iterable[Update]:
        """Optimise the pixels of a batch; nothing else learns."""
        ids = torch.arange(self.synthesis_batch, device=device)
        pixels = clock.normal(ids, self.shape, f"pixels {number}").requires_grad_()
        labels, least = self.draw_labels(ids, clock, f"labels {number}"), Least()
        optimizer = torch.optim.Adam([pixels], lr=self.lr)
        with Statistics(self.teacher.module) as statistics:
            for i in range(self.iterations):
                loss = self.inversion_loss(self.moved(pixels, clock, f"{number} {i}"), labels, statistics)
                least.take(loss, images=pixels)
                descend(optimizer, loss)
        self.bank.add(**least.rows)
        return ()

    def moved(self, pixels: Tensor, clock: Clock, name: str) -> Tensor:
        """The images as one inner step sees them, shifted and mirrored alike."""
        # On the CPU, where the numbers are needed: the device is not waited for.
        draws = clock.uniform(torch.zeros(1, dtype=torch.int64), (3,), f"jitter {name}")[0].tolist()
        down, right = (int(d * (2 * self.jitter + 1)) - self.jitter for d in draws[:2])
        return rolled(pixels, down, right, flip=self.flip and draws[2] < 0.5)

    def inversion_loss(self, images: Tensor, labels: Tensor, statistics: Statistics) -> Tensor:
        """What the pixels descend, a scalar."""
        logits = self.ask(images)
        layers = statistics.distances()
        loss = cross_entropy(logits, labels).mean()
        loss = loss + self.bn_weight * (self.first_layer * layers[0] + layers[1:].sum())
        loss = loss + self.tv_weight * total_variation(images).mean()
        loss = loss + self.l2_weight * wide(images).flatten(1).norm(dim=1).mean()
        if self.compete_weight:
            rivals = competition(self.rival(images), logits, temperature=self.compete_temperature)
            loss = loss + self.compete_weight * rivals.mean()
        return loss
