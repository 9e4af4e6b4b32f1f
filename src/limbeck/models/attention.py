"""Queries, keys and values of a transformer's layers, found by the names of their projections.

Attention scores are computed again from what the projections give, so that a model may run with any attention kernel,
and needs no eager one to be looked into.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.errors import UserError

_NAMES = {
    "q": ("attention.self.query", "attention.q_lin", "self_attn.q_proj", "attention.query", "attn.q"),
    "k": ("attention.self.key", "attention.k_lin", "self_attn.k_proj", "attention.key", "attn.k"),
    "v": ("attention.self.value", "attention.v_lin", "self_attn.v_proj", "attention.value", "attn.v"),
}
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Projections:
    """Module paths of one layer's projections."""

    q: str
    k: str
    v: str


def projections(module: nn.Module) -> list[Projections]:
    """The projections of every layer, in order; of BERT, RoBERTa, DistilBERT, Llama and their likes.

    Raises:
        UserError: the model has no layers with projections of a known name.
    """
    found: dict[str, dict[int, str]] = {part: {} for part in _NAMES}
    for name, _ in module.named_modules():
        layer = _LAYER.search(name)
        for part, ends in _NAMES.items():
            if layer and name.endswith(ends):
                found[part][int(layer[1])] = name
    layers = sorted(found["q"])
    if not layers or any(sorted(found[part]) != layers for part in _NAMES):
        raise UserError(
            f"{type(module).__name__} has no attention layers with separate query, key and value projections of a "
            "known name (BERT, RoBERTa, DistilBERT, Llama and their likes have)"
        )
    return [Projections(found["q"][i], found["k"][i], found["v"][i]) for i in layers]


class AttentionTaps:
    """Records what the projections of some layers give at each forward: ``pop()`` returns (q, k, v) for each.

    Args:
        module: the model.
        layers: which, by number; negative ones count from the end.
        detach: cut the gradient.
    """

    def __init__(self, module: nn.Module, layers: Sequence[int], *, detach: bool = False) -> None:
        there = projections(module)
        wrong = [i for i in layers if not -len(there) <= i < len(there)]
        if wrong:
            raise UserError(
                f"{type(module).__name__} has {len(there)} attention layers, so there is no layer {wrong[0]}"
            )
        self.places = [there[i] for i in layers]
        self._taps = Taps(module, {p for place in self.places for p in (place.q, place.k, place.v)}, detach=detach)

    def pop(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values [B, T, D] of each layer, as of the last forward."""
        values = self._taps.pop()
        return [(values[p.q], values[p.k], values[p.v]) for p in self.places]

    def close(self) -> None:
        """Remove the hooks."""
        self._taps.close()


def split_heads(values: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, heads, T, D / heads].

    Raises:
        ValueError: the width is not a multiple of ``heads``.
    """
    if values.shape[-1] % heads:
        raise ValueError(f"width {values.shape[-1]} is not a multiple of {heads} heads")
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def scores(a: Tensor, b: Tensor) -> Tensor:
    """Scaled products of every two positions, [B, A, T, D] twice -> [B, A, T, T]: ``a b^T / sqrt(D)``."""
    return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def pair_mask(attention_mask: Tensor) -> Tensor:
    """Pairs of positions of which both are there, [B, T] -> bool [B, 1, T, T]."""
    there = attention_mask.bool()
    return (there[:, :, None] & there[:, None, :])[:, None]


def masked_log_softmax(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Log-softmax over the positions that are there, [B, A, T, T] with a mask [B, T]; padded ones get ``-inf``."""
    gone = ~attention_mask.bool()[:, None, None, :]
    return torch.log_softmax(values.masked_fill(gone, -math.inf), dim=-1)
