"""Which positions of a row of tokens count, and how they are averaged."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.method import Term
from limbeck.losses import IGNORE, same_shape

Reduction = Literal["token_mean", "seq_mean", "max_len"]


def shift(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and labels [B, T] so that each logit meets the token it predicts: [B, T-1, V] and [B, T-1].

    Raises:
        ValueError: batch or length differ, or there is no next token.
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} must be [B, T, V] and [B, T]")
    if labels.shape[1] < 2:
        raise ValueError(f"rows of {labels.shape[1]} token have no next token to predict")
    return logits[:, :-1], labels[:, 1:]


def token_term(
    values: Tensor,
    mask: Tensor,
    *,
    reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
    weight: float = 1.0,
    max_len: int | None = None,
    unit: str = "tokens",
    rows: str = "sequences",
) -> Term:
    """The term of values per token [B, T] whose positions ``mask`` [B, T] count.

    - ``token_mean``: sum over the global batch's tokens / their number; a long sequence weighs more.
    - ``seq_mean``: mean per sequence, then over the sequences that have a token; all weigh the same.
    - ``max_len``: sum per sequence / the constant ``max_len``, then mean over all sequences; a token weighs the same
      in every batch, however many others are there.

    ``unit`` and ``rows`` say what is counted by the first and the second, where it is not tokens (spans, say).

    Raises:
        ValueError: the shapes differ, or ``max_len`` is missing.
    """
    if reduction == "token_mean":
        return Term.of(values, mask, weight=weight, unit=unit)
    same_shape(values=values, mask=mask)
    mask = mask.bool()
    sums = values.masked_fill(~mask, 0.0).sum(1)
    if reduction == "seq_mean":
        lengths = mask.sum(1)
        return Term((sums / lengths.clamp(min=1)).sum(), (lengths > 0).sum(), weight, rows)
    if max_len is None or max_len < 1:
        raise ValueError(f"reduction 'max_len' needs a positive max_len, got {max_len}")
    return Term(sums.sum() / max_len, len(values), weight, "samples")


def scored(labels: Tensor) -> Tensor:
    """Which of the (shifted) labels a loss is taken at."""
    return labels != IGNORE
