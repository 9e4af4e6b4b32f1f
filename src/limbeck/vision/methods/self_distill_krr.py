"""Self-distillation over generations, damped by the labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import IGNORE, cross_entropy, soft_kl, wide
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class SelfDistillKRR(Method):
    """Even your Teacher Needs Guidance (Borup and Andersen 2021, arXiv 2102.13088), for networks.

    Generation t learns ``a d(f, y) + (1 - a) d(f, f_{t-1})``; the first has the labels alone. All generations start
    from the same weights and have an equal share of the run, each its own optimizer; the last one is the student. A
    learning-rate schedule spans the whole run, so leave it constant. The regularisation that repeats itself is the
    optimizer's weight decay. The closed form for kernel ridge regression is in :mod:`limbeck.vision.krr`, where
    ``best_label_weight`` finds a from two fits.

    Args:
        generations: how many, the first included.
        label_weight: a, of the labels beside the previous generation; 0 lets the regularisation grow unchecked.
        loss: d; ``mse`` is half the squared distance to the one-hot label or to the outputs before, ``ce``
            cross-entropy to the label and KL from the probabilities before.
    """

    def __init__(self, *, generations: int = 5, label_weight: float = 0.6, loss: Literal["mse", "ce"] = "mse") -> None:
        if generations < 1:
            raise ValueError(f"there must be at least 1 generation, not {generations}")
        self.generations = generations
        self.label_weight = label_weight
        self.loss: Literal["mse", "ce"] = loss

    def setup(self, parts: Parts) -> None:
        """A learner for each generation; the student is the last."""
        super().setup(parts)
        for i in range(1, self.generations):
            self.learners[f"generation_{i}"] = copy.deepcopy(parts.student)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the generation whose turn it is."""
        role, previous = self.turn(clock)
        yield Update(role, self.terms(role, previous, batch))

    def turn(self, clock: Clock) -> tuple[str, str | None]:
        """Who learns now, and from whom. A run of fewer steps than generations has as many generations as steps."""
        roles = [*(f"generation_{i}" for i in range(1, self.generations)), "student"]
        roles = roles[-max(clock.total, 1) :]
        now = clock.step * len(roles) // max(clock.total, 1)
        return roles[now], roles[now - 1] if now else None

    def terms(self, role: str, previous: str | None, batch: Batch) -> dict[str, Term]:
        """``{"ce"}`` (of whichever loss) and, from the second generation on, ``{"kd"}``."""
        logits, labels = forward(self.learners[role], batch).logits, batch["label"]
        weight = self.label_weight if previous else 1.0
        hard = self.to_labels(logits, labels)
        terms = {"ce": Term.of(hard, labels != IGNORE, weight=weight, unit="labelled")}
        if previous:
            terms["kd"] = Term.of(self.to_outputs(logits, self.outputs(previous, batch)), weight=1 - weight)
        return terms

    @torch.no_grad()
    def outputs(self, role: str, batch: Batch) -> Tensor:
        """What a finished generation gives."""
        return forward(self.learners[role].eval(), batch).logits

    def to_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss against the labels, [B]; 0 without one."""
        if self.loss == "ce":
            return cross_entropy(logits, labels)
        truth = torch.zeros_like(wide(logits)).scatter_(1, labels.clamp_min(0)[:, None], 1.0)
        return torch.where(labels != IGNORE, half_square(logits, truth), torch.zeros((), device=logits.device))

    def to_outputs(self, logits: Tensor, previous: Tensor) -> Tensor:
        """The loss against the previous generation, [B]."""
        if self.loss == "ce":
            return soft_kl(logits, previous, temperature=1.0)
        return half_square(logits, previous)


def half_square(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared distance, [B, K] twice -> [B]."""
    return 0.5 * (wide(a) - wide(b)).square().sum(-1)
