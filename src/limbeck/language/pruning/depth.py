"""Which blocks of a decoder to leave out.

By block influence (Men et al. 2024, arXiv 2403.03853; used by Minitron, 2407.14679), by the loss without a block
(Minitron), by the angular distance over consecutive blocks (Gromov et al. 2024, 2403.17887; used by self-data
distillation, 2410.09982), or evenly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.language.losses import scored, shift
from limbeck.language.pruning.anatomy import anatomy_of, blocks_of, shape_of
from limbeck.language.pruning.importance import Batches
from limbeck.losses import cross_entropy
from limbeck.metrics.base import evaluating
from limbeck.models.forward import forward


@torch.no_grad()
def block_influence(model: nn.Module, batches: Batches) -> Tensor:
    """``1 - cos(in, out)`` of each block [L], the mean over all tokens that are no padding."""
    total, tokens = torch.zeros(shape_of(model).layers, dtype=torch.float64), 0
    for states, mask in _states(model, batches):
        apart = [1 - F.cosine_similarity(a, b, dim=-1) for a, b in itertools.pairwise(states)]
        total += torch.stack([(values * mask).sum() for values in apart]).cpu()
        tokens += int(mask.sum())
    return total / tokens


@torch.no_grad()
def angular_distances(model: nn.Module, batches: Batches, count: int) -> Tensor:
    """``arccos(cos(h_l, h_(l + count))) / pi`` at each sample's last token, the mean over samples [L - count + 1].

    Raises:
        ValueError: there are not so many blocks.
    """
    layers = shape_of(model).layers
    if not 1 <= count <= layers:
        raise ValueError(f"count must be between 1 and the {layers} blocks of the model, not {count}")
    total, samples = torch.zeros(layers - count + 1, dtype=torch.float64), 0
    for states, mask in _states(model, batches):
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).amax(1)
        rows = torch.arange(len(mask), device=mask.device)
        at = [state[rows, last] for state in states]
        cosines = [F.cosine_similarity(a, b, dim=-1) for a, b in zip(at, at[count:], strict=False)]
        total += torch.stack([(c.clamp(-1, 1).arccos() / math.pi).sum() for c in cosines]).cpu()
        samples += len(mask)
    return total / samples


@torch.no_grad()
def loss_increase(model: nn.Module, batches: Batches) -> Tensor:
    """How much the loss per token grows when a block is left out, for each block [L], in nats."""
    layers = shape_of(model).layers
    kept, loss = list(batches), torch.zeros(layers + 1, dtype=torch.float64)
    with evaluating(model):
        loss[0] = _loss(model, kept)
        for i in range(layers):
            with bypassed(model, [i]):
                loss[i + 1] = _loss(model, kept)
    return loss[1:] - loss[0]


@contextmanager
def bypassed(model: nn.Module, blocks: Sequence[int]) -> Iterator[None]:
    """Within the context these blocks of the model give what they are given."""
    own = blocks_of(model)

    def passes(module: nn.Module, given: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = given[0] if given else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [own[i].register_forward_hook(passes, with_kwargs=True) for i in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def most_important(scores: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` largest scores' places, in order; of equals the first."""
    return tuple(sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist()))


def without_span(distances: Tensor, layers: int, count: int) -> tuple[int, ...]:
    """The blocks that are left when the ``count`` consecutive ones with the least angular distance go."""
    first = int(distances.argmin())
    return tuple(i for i in range(layers) if not first <= i < first + count)


def evenly(layers: int, count: int) -> tuple[int, ...]:
    """``count`` blocks evenly spread over all, the first and (of two or more) the last among them."""
    if count == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (count - 1)) for i in range(count))


def _states(model: nn.Module, batches: Batches) -> Iterator[tuple[list[Tensor], Tensor]]:
    """For each batch the residual stream before every block and after the last [B, T, D], and the mask [B, T]."""
    root, layers = anatomy_of(model).blocks, shape_of(model).layers
    paths = [f"{root}.{i}" for i in range(layers)]
    with Taps(model, paths[:1], of="input") as first, Taps(model, paths) as after, evaluating(model):
        for batch in batches:
            forward(model, batch)
            found = after.pop()
            states = [first.pop()[paths[0]], *(found[path] for path in paths)]
            yield [s.double() for s in states], batch["attention_mask"].bool()


def _loss(model: nn.Module, batches: Batches) -> float:
    total, tokens = 0.0, 0
    for batch in batches:
        logits, labels = shift(forward(model, batch).logits, batch["labels"])
        mask = scored(labels)
        total += float(cross_entropy(logits, labels)[mask].double().sum())
        tokens += int(mask.sum())
    return total / max(tokens, 1)
