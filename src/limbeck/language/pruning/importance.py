"""How much each channel, head and neuron of a decoder matters: activations on calibration text, forward only.

Muralidharan et al. 2024 (Minitron, arXiv 2407.14679), section 2.2: a unit's activations are aggregated over the
sequence and then over the samples; no gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.language.pruning.anatomy import anatomy_of, blocks_of, shape_of
from limbeck.metrics.base import evaluating
from limbeck.models.forward import forward

Aggregate = Literal["mean", "l2"]
Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Importance:
    """Scores, larger for what matters more.

    Attributes:
        hidden: of the hidden channels [D].
        groups: of the attention heads [L, G]; of a model with grouped queries, of its key-value groups.
        ffn: of the neurons [L, F].
    """

    hidden: Tensor
    groups: Tensor
    ffn: Tensor


@torch.no_grad()
def importance(
    model: nn.Module, batches: Batches, *, sequence: Aggregate = "l2", batch: Aggregate = "mean"
) -> Importance:
    """Scores by the size of activations: what norms give of a channel, what a head gives, what a neuron gives.

    A neuron's activation is its absolute value, a head's the norm of its output; a group's score is the sum of its
    heads', a channel's the sum over the norms of all blocks. Padding counts nothing.

    Args:
        model: a transformers decoder.
        batches: token batches, with ``input_ids`` and ``attention_mask``.
        sequence: ``mean`` or root mean square (``l2``) over a sample's tokens.
        batch: likewise over the samples.

    Raises:
        UserError: an architecture that is not known.
    """
    shape, (heads, neurons), norms = shape_of(model), anatomy_of(model).readers, _block_norms(model)
    root, numbers = anatomy_of(model).blocks, range(shape.layers)

    def of_heads(given: Tensor) -> Tensor:
        return given.unflatten(-1, (shape.groups, shape.queries, shape.head_dim)).norm(dim=-1)

    # Every tapped input, and what is scored of it: [B, T, ...].
    read: dict[str, Callable[[Tensor], Tensor]] = {}
    read |= {f"{root}.{i}.{heads}": of_heads for i in numbers}
    read |= {f"{root}.{i}.{neurons}": Tensor.abs for i in numbers}
    sums: dict[str, Tensor] = {}
    with Taps(model, read, of="input") as inputs, Taps(model, norms) as outputs, evaluating(model):
        samples = 0
        for given in batches:
            forward(model, given)
            mask = given["attention_mask"].bool()
            seen = {path: read[path](value.double()) for path, value in inputs.pop().items()}
            seen |= {path: value.double().abs() for path, value in outputs.pop().items()}
            for path, values in seen.items():
                rows = _over_sequence(values, mask, sequence)
                sums[path] = sums.get(path, 0.0) + (rows if batch == "mean" else rows**2).sum(0)
            samples += len(mask)
    scores = {path: s / samples if batch == "mean" else (s / samples) ** 0.5 for path, s in sums.items()}
    return Importance(
        hidden=torch.stack([scores[path] for path in norms]).sum(0),
        groups=torch.stack([scores[f"{root}.{i}.{heads}"].sum(-1) for i in numbers]),
        ffn=torch.stack([scores[f"{root}.{i}.{neurons}"] for i in numbers]),
    )


def random_importance(model: nn.Module) -> Importance:
    """Scores drawn from torch's global generator: what any other choice of units has to beat."""
    shape = shape_of(model)
    sizes = ((shape.hidden,), (shape.layers, shape.groups), (shape.layers, shape.ffn))
    return Importance(*(torch.rand(size, dtype=torch.float64) for size in sizes))


def _over_sequence(values: Tensor, mask: Tensor, how: Aggregate) -> Tensor:
    """Values [B, T, ...] of the tokens that count, as one for each sample [B, ...]."""
    mask = mask.reshape(*mask.shape, *[1] * (values.dim() - 2))
    tokens = mask.sum(1).clamp(min=1)
    if how == "mean":
        return (values * mask).sum(1) / tokens
    return ((values**2 * mask).sum(1) / tokens) ** 0.5


def _block_norms(model: nn.Module) -> list[str]:
    """Paths of the norms over the hidden channels inside the blocks."""
    root, norms = anatomy_of(model).blocks, anatomy_of(model).norms
    return [f"{root}.{i}.{n}" for i, block in enumerate(blocks_of(model)) for n in norms if hasattr(block, n)]
