"""Graphs of the vocabulary: which tokens a model finds likely together along a text, and how far two such graphs are.

A graph is ``C = sum_t z_t z_t^T``, where ``z_t`` holds the logits of the k likeliest tokens at position t and 0 for all
others. It is never built: what is compared of it are its row sums and its norm, which cost T k and T^2 k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.language.losses.unlike import sorted_pair


def signatures(logits: Tensor, mask: Tensor, k: int) -> Tensor:
    """Row sums of the graphs of rows of logits, divided by their Frobenius norm: [B, T, V] -> [B, V].

    Args:
        logits: [B, T, V].
        mask: bool [B, T], the positions that count.
        k: how many logits of a position are kept.

    Returns:
        float [B, V]; 0 for rows without a position. The squares of a row sum to at most V.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must be 1 to the number of tokens, {logits.shape[-1]}; got {k}")
    values, tokens = logits.float().topk(k, dim=-1)
    values = values.masked_fill(~mask[..., None], 0.0)
    channels = torch.zeros_like(logits, dtype=values.dtype).scatter(-1, tokens, values)
    sums = (channels * values.sum(-1, keepdim=True)).sum(1)
    # The norm of sum_t z_t z_t^T is that of the products of the z_t with one another.
    products = channels @ channels.transpose(1, 2)
    norm = products.square().sum((1, 2)).clamp(min=1e-24).sqrt()
    return sums / norm[:, None]


def graph_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared 1-D Wasserstein distance between sorted signatures, [B, V] and [B, W] -> [B], at most 4.

    The smaller graph is filled up with tokens that stand alone. It is a lower bound of the squared Gromov-Wasserstein
    distance of the graphs (each scaled to a mean square of 1) under uniform weights: Jensen's inequality over one of
    the two couplings leaves the difference of row means, whose best coupling is to sort. Zero for graphs that differ
    in the names of their tokens alone.
    """
    a, b = sorted_pair(first, second)
    return (a - b).square().mean(-1)
