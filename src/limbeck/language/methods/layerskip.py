"""LayerSkip: a language model that can be left early, and so drafts for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.losses import forward_kl, scored
from limbeck.language.speculative.exits import depth_of, read_out, watched
from limbeck.losses import cross_entropy, log_softmax
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class LayerSkip(TokenMethod):
    """``sum_l w_l CE_l`` over the exits that are switched on, with layers skipped at random, more often the later.

    Elhoushi et al. 2024, "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding" (arXiv 2404.16710,
    equations 1 to 6). Layer l of L (from 1) is skipped by a row with probability ``drop (2^((l-1)/(L-1)) - 1)``. All
    exits share the final norm and the output layer. ``w_l`` is ``exit_scale l (l + 1) / 2``, and for the last layer
    ``L + exit_scale L (L - 1) / 2``, over their sum; the paper counts from 0, so that its first exit never learns.

    Args:
        drop: probability that the last layer is skipped.
        exit_scale: how much the early exits weigh.
        curriculum: which exits are on: every ``rotation``-th, in turn; or, ``gradual``, one more every 2L-th part of
            the training, from the last one down; or all.
        rotation: of the rotational curriculum.
        exit_loss: an early exit learns the text, or (``kl``) what the last exit says, without gradient to that.
    """

    needs = {}

    def __init__(
        self,
        *,
        drop: float = 0.1,
        exit_scale: float = 0.5,
        curriculum: Literal["rotational", "gradual", "none"] = "rotational",
        rotation: int = 2,
        exit_loss: Literal["ce", "kl"] = "ce",
    ) -> None:
        super().__init__()
        self.drop = drop
        self.exit_scale = exit_scale
        self.curriculum = curriculum
        self.rotation = rotation
        self.exit_loss = exit_loss

    def setup(self, parts: Parts) -> None:
        """Refuse a model without layers to leave after.

        Raises:
            UserError: the model is laid out otherwise, or a number is out of range.
        """
        super().setup(parts)
        self._depth = depth_of(parts.student)
        if not 0 <= self.drop < 1 or self.rotation < 1 or self.exit_scale < 0:
            given = f"drop {self.drop}, rotation {self.rotation}, exit_scale {self.exit_scale}"
            raise UserError(f"layerskip: drop must be in [0, 1), rotation 1 or more, exit_scale 0 or more; got {given}")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the model."""
        yield Update("student", self.exits(batch, clock))

    def exits(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The terms ``exit_1`` ... and ``last``."""
        skipped = clock.uniform(batch["id"], (self._depth,), "layers") < skip_rates(self.drop, self._depth)
        with watched(self.student, skipped.to(batch["input_ids"].device)) as hidden:
            logits = forward(self.student, batch).logits
        labels = batch["labels"][:, 1:]
        weights = exit_weights(self.open(clock), self.exit_scale)
        terms = {"last": self.term(cross_entropy(logits[:, :-1], labels), labels, float(weights[-1]))}
        for layer, weight in enumerate(weights[:-1].tolist()):
            if weight > 0:
                early = read_out(self.student, hidden[layer])[:, :-1]
                terms[f"exit_{layer + 1}"] = self.term(self._early(early, logits[:, :-1], labels), labels, weight)
        return terms

    def _early(self, early: Tensor, last: Tensor, labels: Tensor) -> Tensor:
        if self.exit_loss == "ce":
            return cross_entropy(early, labels)
        # Where there is no label the term does not look.
        return forward_kl(log_softmax(last.detach()), log_softmax(early)) * scored(labels)

    def open(self, clock: Clock) -> Tensor:
        """Which exits are on, bool [L]; the last one always is."""
        layer = torch.arange(1, self._depth + 1)
        if self.curriculum == "rotational":
            on = layer % self.rotation == clock.step % self.rotation
        elif self.curriculum == "gradual":
            on = layer >= self._depth - int(2 * self._depth * clock.progress)
        else:
            on = torch.ones_like(layer, dtype=torch.bool)
        on[-1] = True
        return on


def skip_rates(drop: float, depth: int) -> Tensor:
    """Probability that each layer is skipped, [L]: 0 for the first, ``drop`` for the last (equation 2)."""
    layer = torch.arange(depth, dtype=torch.float64)
    return drop * (2 ** (layer / max(depth - 1, 1)) - 1)


def exit_weights(on: Tensor, scale: float) -> Tensor:
    """Weights of the exits that are on, summing to 1, float64 [L] (equations 5 and 6)."""
    depth = len(on)
    layer = torch.arange(1, depth + 1, dtype=torch.float64)
    weight = scale * layer * (layer + 1) / 2
    weight[-1] = depth + scale * depth * (depth - 1) / 2
    weight = weight * on
    return weight / weight.sum()
