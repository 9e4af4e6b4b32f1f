"""Mixing texts where they are vectors: the embeddings of two texts are averaged, with weights that add up to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock
from limbeck.engine.noise import bits
from limbeck.errors import UserError
from limbeck.models.forward import unwrapped


def partners(batch: Batch, clock: Clock) -> Batch:
    """For each text of the batch another one of the global batch: its ``input_ids``, ``attention_mask``, ``label``.

    The texts stand in a ring whose order depends on their ids and the step alone, and each is mixed with the next; so a
    pair is the same however the ids lie in the batch.
    """
    rows = Together(len(batch["id"]), batch["id"].device)
    ids = rows.all(batch["id"])
    order = bits(ids, 1, (clock.seed, clock.step, "mixup"))[:, 0].argsort()
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    return {k: rows.all(batch[k])[rows.own(following)] for k in ("input_ids", "attention_mask", "label")}


def mixing_share(batch: Batch, clock: Clock, most: float) -> Tensor:
    """How much of each text stays its own, [B]: uniform from ``1 - most`` to 1."""
    return 1 - most * clock.uniform(batch["id"], (), "mixup share")


@contextmanager
def mixed(module: nn.Module, other: Tensor, share: Tensor) -> Iterator[None]:
    """Within the context the module reads ``share`` of its input and the rest of the tokens ``other``.

    Args:
        module: has transformers' ``get_input_embeddings``.
        other: tokens [B, T], as many as those that the module is called with.
        share: [B].

    Raises:
        UserError: the module has no embedding of tokens that could be mixed.
    """
    own = unwrapped(module)
    find = getattr(own, "get_input_embeddings", None)
    embedding = find() if find is not None else None
    if not isinstance(embedding, nn.Module):
        raise UserError(f"{type(own).__name__} has no input embeddings to mix: set mixup to 0")

    def mix(layer: Any, inputs: Any, output: Tensor) -> Tensor:
        theirs = layer.forward(other)
        kept = share.to(output.dtype)[:, None, None]
        return kept * output + (1 - kept) * theirs

    handle = embedding.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()
