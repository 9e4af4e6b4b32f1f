"""Queries, keys and values of a transformer's layers, found by the names of their projections.

Attention scores are computed again from what the projections give, so that a model may run with any attention kernel,
and needs no eager one to be looked into.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps, submodule
from limbeck.errors import UserError
from limbeck.models.forward import unwrapped

_NAMES = {
    "q": ("attention.self.query", "attention.q_lin", "self_attn.q_proj", "attention.query", "attn.q"),
    "k": ("attention.self.key", "attention.k_lin", "self_attn.k_proj", "attention.key", "attn.k"),
    "v": ("attention.self.value", "attention.v_lin", "self_attn.v_proj", "attention.value", "attn.v"),
}
_JOINT = ("Wqkv", "c_attn")
"""What one projection to all three, side by side, is called: in ModernBERT and GPT-2."""
_LAYER = re.compile(r"\.(\d+)\.")
_HEADS = ("num_attention_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class Projections:
    """Module paths of one layer's projections; all three are one where a layer projects to them together."""

    q: str
    k: str
    v: str

    @property
    def attention(self) -> str:
        """The module that they lie in."""
        return self.q.rpartition(".")[0]


def projections(module: nn.Module) -> list[Projections]:
    """The projections of every layer, in order; of BERT, RoBERTa, DistilBERT, MobileBERT, ModernBERT, GPT-2, Llama.

    Raises:
        UserError: the model has no layers with projections of a known name.
    """
    found: dict[str, dict[int, str]] = {part: {} for part in _NAMES}
    for name, _ in module.named_modules():
        layer = _LAYER.search(name)
        for part, ends in _NAMES.items():
            if layer and (name.endswith(ends) or name.rpartition(".")[2] in _JOINT):
                found[part][int(layer[1])] = name
    layers = sorted(found["q"])
    if not layers or any(sorted(found[part]) != layers for part in _NAMES):
        raise UserError(
            f"{type(module).__name__} has no attention layers with query, key and value projections of a known name "
            "(BERT, RoBERTa, DistilBERT, MobileBERT, ModernBERT, GPT-2, Llama and their likes have)"
        )
    return [Projections(found["q"][i], found["k"][i], found["v"][i]) for i in layers]


def head_counts(module: nn.Module) -> tuple[int, int]:
    """Heads of the queries, and those of keys and values, by a transformer's configuration.

    Raises:
        UserError: it has none that says so.
    """
    config = getattr(unwrapped(module), "config", None)
    heads = next((int(getattr(config, name)) for name in _HEADS if getattr(config, name, None)), None)
    if heads is None:
        raise UserError(f"{type(unwrapped(module)).__name__} does not say its number of attention heads in a config")
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


class AttentionTaps:
    """Records what some layers attend with at each forward: ``pop()`` returns (q, k, v) for each.

    Where a layer turns its queries and keys by their positions, they are given turned, as the layer multiplies them.

    Args:
        module: the model.
        layers: which, by number; negative ones count from the end.
        detach: cut the gradient.

    Attributes:
        heads, groups: heads of the queries, and those of keys and values.

    Raises:
        UserError: no projections are found, or there is no such layer.
    """

    def __init__(self, module: nn.Module, layers: Sequence[int], *, detach: bool = False) -> None:
        there = projections(module)
        wrong = [i for i in layers if not -len(there) <= i < len(there)]
        if wrong:
            raise UserError(
                f"{type(module).__name__} has {len(there)} attention layers, so there is no layer {wrong[0]}"
            )
        self.heads, self.groups = head_counts(module)
        self.places = [there[i] for i in layers]
        self._taps = Taps(module, {p for place in self.places for p in (place.q, place.k, place.v)}, detach=detach)
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles = []
        for path in {place.attention for place in self.places}:
            hook = self._record_turn(path)
            self._handles.append(submodule(module, path).register_forward_hook(hook, with_kwargs=True))

    def _record_turn(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            given = kwargs.get("position_embeddings")
            if isinstance(given, tuple) and len(given) == 2:
                self._turns[path] = given

        return hook

    def pop(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and values [B, T, D] of each layer, as of the last forward."""
        values, (turns, self._turns) = self._taps.pop(), (self._turns, {})
        return [self._parts(place, values, turns.get(place.attention)) for place in self.places]

    def _parts(
        self, place: Projections, values: Mapping[str, Tensor], turn: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = values[place.q], values[place.k], values[place.v]
        if place.q == place.k:
            width = q.shape[-1] // (self.heads + 2 * self.groups)
            q, k, v = q.split([self.heads * width, self.groups * width, self.groups * width], -1)
        if turn is not None:
            q, k = turned(q, self.heads, *turn), turned(k, self.groups, *turn)
        return q, k, v

    def close(self) -> None:
        """Remove the hooks."""
        self._taps.close()
        for handle in self._handles:
            handle.remove()


def turned(values: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) on [B, T, D], the halves of a head's channels being pairs.

    Args:
        values: queries or keys.
        heads: that share D.
        cosines, sines: [B or 1, T, D / heads] of the angles.
    """
    x = split_heads(values, heads)
    first, second = x.chunk(2, -1)
    both = x * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]
    return both.transpose(1, 2).flatten(2).to(values.dtype)


def split_heads(values: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, heads, T, D / heads].

    Raises:
        ValueError: the width is not a multiple of ``heads``.
    """
    if values.shape[-1] % heads:
        raise ValueError(f"width {values.shape[-1]} is not a multiple of {heads} heads")
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def scores(a: Tensor, b: Tensor) -> Tensor:
    """Scaled products of every two positions, [B, A, T, D] twice -> [B, A, T, T]: ``a b^T / sqrt(D)``.

    Where ``b`` has fewer heads (grouped keys), each serves as many of ``a`` as there are to one.
    """
    b = b.repeat_interleave(a.shape[1] // b.shape[1], 1) if len(b[0]) < len(a[0]) else b
    return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def pair_mask(attention_mask: Tensor) -> Tensor:
    """Pairs of positions of which both are there, [B, T] -> bool [B, 1, T, T]."""
    there = attention_mask.bool()
    return (there[:, :, None] & there[:, None, :])[:, None]


def masked_log_softmax(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Log-softmax over the positions that are there, [B, A, T, T] with a mask [B, T]; padded ones get ``-inf``."""
    gone = ~attention_mask.bool()[:, None, None, :]
    return torch.log_softmax(values.masked_fill(gone, -math.inf), dim=-1)
