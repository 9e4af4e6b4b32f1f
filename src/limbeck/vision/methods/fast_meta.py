"""Data-free distillation with a meta-learned generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.batch_statistics import Moments, Statistics, mixed
from limbeck.engine.method import Clock, Parts, Term, Update
from limbeck.losses import cross_entropy
from limbeck.registry import register
from limbeck.vision.inversion.generator import MetaGenerator, put, start_afresh
from limbeck.vision.inversion.rounds import Least, Rounds, descend


@register("method")
class FastMeta(Rounds):
    """Up to 100x Faster Data-free Knowledge Distillation (Fang et al. 2022, arXiv 2112.06253).

    Every ``every`` steps a copy of a generator, and noise, descend ``bn_weight BN + onehot_weight CE(z_t, y)
    - adv_weight KL(p_t || p_s)`` for random classes y in a few steps; the divergence counts where student and teacher
    agree. Then the generator itself, from which the copies start, takes one step along the sum of the copy's gradients
    (first-order MAML) or towards the copy (Reptile): so it learns what all batches have in common. The batch of the
    least loss joins the bank that the student learns from. The inner optimizer is new in every round.

    The generator is the learner ``generator``; the authors train it with Adam at ``iterations`` times ``lr``, without
    a schedule, betas 0.5 and 0.999.

    Args:
        meta: how the generator learns; with ``none`` every round starts from fresh weights.
        bn_weight: of the statistics of the teacher's layers.
        onehot_weight: of the classes.
        adv_weight: of the student's divergence, after the warm-up.
        momentum: share of earlier rounds in the statistics that are matched.
        lr: of the copy, with Adam.
        lr_z: of the noise.
        latent: length of the generator's noise.
        width: channels of the generator before its last convolution.
    """

    def __init__(
        self,
        *,
        meta: Literal["fomaml", "reptile", "none"] = "fomaml",
        bn_weight: float = 10.0,
        onehot_weight: float = 0.5,
        adv_weight: float = 1.33,
        momentum: float = 0.9,
        warmup: int = 20,
        lr: float = 3e-3,
        lr_z: float = 0.01,
        iterations: int = 5,
        latent: int = 256,
        width: int = 64,
        **rest: Any,
    ) -> None:
        super().__init__(iterations=iterations, warmup=warmup, **rest)
        self.meta: Literal["fomaml", "reptile", "none"] = meta
        self.bn_weight = bn_weight
        self.onehot_weight = onehot_weight
        self.adv_weight = adv_weight
        self.momentum = momentum
        self.lr = lr
        self.lr_z = lr_z
        self.latent = latent
        self.width = width

    def setup(self, parts: Parts) -> None:
        """The generator, the copy that the rounds train, and no statistics yet."""
        super().setup(parts)
        self._copy = self.new_generator(self.latent, self.width, "pixels")
        if self.meta != "none":
            self.learners["generator"] = MetaGenerator(self.new_generator(self.latent, self.width, "pixels"))
        self.moments: Moments | None = None

    def round(self, clock: Clock, device: torch.device, number: int) -> Iterable[Update]:
        """Make a batch of images and move the generator by it."""
        start = self._start(clock, device, number)
        loss, summed = self._descend(clock, device, number)
        if self.meta == "reptile":
            summed = [s - p.detach() for s, p in zip(start, self._copy.parameters(), strict=True)]
        if self.meta != "none":
            pull = self.learners["generator"](summed)
            yield Update("generator", {"meta": Term.of((loss + pull)[None])})

    def _start(self, clock: Clock, device: torch.device, number: int) -> list[Tensor]:
        """Start the copy, and give the weights it starts from."""
        self._copy.to(device)
        if self.meta == "none":
            start_afresh(self._copy, clock, f"generator {number}")
            return []
        start = self.learners["generator"]()
        put(start, self._copy)
        return start

    def _descend(self, clock: Clock, device: torch.device, number: int) -> tuple[Tensor, list[Tensor]]:
        """Train the copy and fill the bank; the last loss, a scalar, and the sum of the copy's gradients."""
        ids = torch.arange(self.synthesis_batch, device=device)
        labels, least = self.draw_labels(ids, clock, f"labels {number}"), Least()
        z = clock.normal(ids, (self.latent,), f"z {number}").requires_grad_()
        groups: list[dict[str, Any]] = [{"params": list(self._copy.parameters())}, {"params": [z], "lr": self.lr_z}]
        optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(0.5, 0.999))
        adversarial = clock.step > 0 or number == self.warmup
        summed = [torch.zeros_like(p) for p in self._copy.parameters()]
        with Statistics(self.teacher.module) as statistics:
            for i in range(self.iterations):
                images = self._copy(z)
                views = self.augmented(images, ids, clock, f"view {number} {i}")
                loss = self.inversion_loss(views, labels, statistics, adversarial=adversarial)
                moments = [(mean.detach(), variance.detach()) for mean, variance in statistics.moments()]
                least.take(loss, images=images)
                summed = [s + g for s, g in zip(summed, descend(optimizer, loss), strict=True)]
        self.moments = mixed(self.moments, moments, self.momentum)
        self.bank.add(**least.rows)
        return loss.detach(), summed

    def inversion_loss(self, images: Tensor, labels: Tensor, statistics: Statistics, *, adversarial: bool) -> Tensor:
        """What the copy descends, a scalar."""
        logits = self.ask(images)
        matched = mixed(self.moments, statistics.moments(), self.momentum)
        loss = self.bn_weight * statistics.distances(matched).sum()
        loss = loss + self.onehot_weight * cross_entropy(logits, labels).mean()
        if adversarial and self.adv_weight:
            loss = loss - self.adv_weight * self.adversary(images, logits)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The bank, and the statistics of earlier rounds."""
        moments = None if self.moments is None else [list(pair) for pair in self.moments]
        return {**super().state_dict(), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        found = state["moments"]
        self.moments = None if found is None else [(mean, variance) for mean, variance in found]
