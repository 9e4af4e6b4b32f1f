"""Masked diffusion: a network from text that fills in tokens, however many are hidden."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from limbeck.diffusion.masked import MaskedTransformer
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class MaskedDiffusion(Method):
    """``E_t [w(t) sum_{i masked} -log p(x_i | those left)]``, every token masked with probability t (arXiv 2406.07524).

    With ``w = 1 / t`` and t uniform this is the bound on the negative log-likelihood of a sequence (equation 10, for
    the log-linear schedule). Every optimum of either weight is the data's law of tokens given others.

    Args:
        weight: ``bound``, or ``even`` for the mean over masked tokens alone, whose gradients vary less.
        least: lowest share of tokens that are masked, which bounds the weight.
    """

    controls = {"even": {"method": {"name": "masked_diffusion", "weight": "even"}}}

    def __init__(self, *, weight: Literal["bound", "even"] = "bound", least: float = 0.05) -> None:
        if not 0 < least < 1:
            raise UserError(f"masked_diffusion: least must be between 0 and 1, not {least:g}")
        self.weight = weight
        self.least = least

    def setup(self, parts: Parts) -> None:
        """The student is the network.

        Raises:
            UserError: it fills in no masks, or the data is no text of its tokens.
        """
        super().setup(parts)
        if not isinstance(parts.student, MaskedTransformer):
            raise UserError("masked_diffusion trains what fills in masks: student: {name: masked_transformer}")
        if parts.data is not None and parts.data.task != "language":
            raise UserError(f"masked_diffusion learns from text; the data's task is {parts.data.task}")
        self.mask = parts.student.tokens
        self.net = parts.student

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the network."""
        yield Update("student", partial(self.terms, batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted error of the masked tokens."""
        ids, x = batch["id"], batch["input_ids"]
        share = self.least + (1 - self.least) * clock.uniform(ids, (1,), "share")
        hidden = clock.uniform(ids, tuple(x.shape[1:]), "hidden") < share
        score = self.student(torch.where(hidden, self.mask, x), 1.0)
        # At any time the score of a masked token is the law of the clean ones, but for a factor.
        error = cross_entropy(score[..., : self.mask], torch.where(hidden, x, -100))
        if self.weight == "even":
            return {"tokens": Term.of(error, hidden, unit="tokens")}
        return {"bound": Term.of((error * hidden / share).sum(1) / x.shape[1])}

    def count(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        """Adds the tokens of the batch, of which some are masked."""
        return {**super().count(batch), "tokens": batch["input_ids"].numel()}
