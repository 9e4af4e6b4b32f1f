"""A language model's vectors of the nodes of a graph, by node and distance, and the contrast of a graph network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.data import tokenizer as tokenizers
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.losses import IGNORE, wide

READ_AT_ONCE = 128
"""Prompts that a teacher reads in one go."""


def read_nodes(teacher: Teacher, source: Any, hops: int) -> Tensor:
    """The teacher's last hidden state at the last token of each node's prompts, float32 [N, hops + 1, H].

    Args:
        teacher: a language model with its tokenizer.
        source: nodes that have ``prompts`` (data ``graph_nodes``).
        hops: the farthest distance that is told of.

    Raises:
        UserError: the teacher has no tokenizer, or a prompt is longer than it reads.
    """
    words = teacher.tokenizer
    if words is None:
        raise UserError(f"{teacher.name} has no tokenizer with it, so it cannot read the prompts of nodes")
    texts = [source.prompts.text(node, hop) for node in source.nodes.tolist() for hop in range(hops + 1)]
    tokens = tokenizers.encode(words, texts, special=True)
    limit = getattr(getattr(teacher.module, "config", None), "max_position_embeddings", None)
    longest = max(map(len, tokens))
    if limit is not None and longest > limit:
        raise UserError(f"{teacher.name} reads {limit} tokens, and a prompt has {longest}: give it a longer context")
    found = [_last(teacher, tokens[i : i + READ_AT_ONCE]) for i in range(0, len(tokens), READ_AT_ONCE)]
    return torch.cat(found).view(len(source.nodes), hops + 1, -1)


def _last(teacher: Teacher, tokens: Sequence[list[int]]) -> Tensor:
    device = next(teacher.module.parameters()).device
    lengths = torch.tensor([len(row) for row in tokens])
    ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(tokens):
        ids[i, : len(row)] = torch.tensor(row)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    states = teacher.compute(batch, output_hidden_states=True).hidden_states[-1]
    return wide(states[torch.arange(len(tokens)), lengths - 1]).cpu()


def nearest_class(vectors: Tensor, label: Tensor) -> Tensor:
    """Labels with -100 replaced by the class whose labelled vectors' mean direction is nearest, int64 [N].

    Args:
        vectors: [N, H]; only their directions count.
        label: int64 [N].

    Raises:
        UserError: fewer than two classes have a labelled node.
    """
    known = label[label != IGNORE].unique()
    if len(known) < 2:
        raise UserError("the nodes of other classes are to be told apart, and fewer than two classes have a label")
    directions = F.normalize(wide(vectors), dim=1)
    means = torch.stack([directions[label == k].mean(0) for k in known])
    nearest = known[(directions @ F.normalize(means, dim=1).T).argmax(1)]
    return torch.where(label == IGNORE, nearest, label)


class Surroundings(nn.Module):
    """Vectors of nodes at each distance, and draws among the nodes of other classes.

    Args:
        nodes: ids, int64 [N].
        vectors: [N, L, H].
        label: int64 [N] without -100.

    Raises:
        UserError: all nodes are of one class.
    """

    vectors: Tensor
    first: Tensor
    size: Tensor
    ids: Tensor
    places: Tensor

    def __init__(self, nodes: Tensor, vectors: Tensor, label: Tensor) -> None:
        super().__init__()
        # Nodes in the order of their classes: what must not be drawn is one stretch of them.
        by_class = label.argsort(stable=True)
        label, own = label[by_class], label[by_class].unique()
        if len(own) < 2:
            raise UserError("lingugkd: all nodes are of one class, so none has a negative")
        self.register_buffer("vectors", vectors[by_class])
        self.register_buffer("first", torch.searchsorted(label, label))
        self.register_buffer("size", torch.searchsorted(label, label, right=True) - self.first)
        ids, places = nodes[by_class].sort()
        self.register_buffer("ids", ids)
        self.register_buffer("places", places)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of nodes by their ids, int64 [B]."""
        return self.places[torch.searchsorted(self.ids, ids)]

    def draw(self, rows: Tensor, share: Tensor) -> Tensor:
        """Rows of nodes of other classes, each equally likely, int64 [B, ...].

        Args:
            rows: of the nodes, int64 [B].
            share: uniform in [0, 1), [B, ...].
        """
        shape = (-1, *[1] * (share.dim() - 1))
        first, size = self.first[rows].view(shape), self.size[rows].view(shape)
        others = len(self) - size
        # A product with a number just below 1 may be rounded up.
        place = torch.minimum((share * others).long(), others - 1)
        return place + torch.where(place >= first, size, 0)


class Alignment(nn.Module):
    """Linear maps of both sides to vectors of one length for each layer, and a learnt weight of each layer.

    Args:
        own: widths of the student's layers.
        theirs: width of the teacher's vectors.
        dim: length of the vectors that are compared.
    """

    def __init__(self, own: Sequence[int], theirs: int, dim: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(width, dim) for width in own)
        self.theirs = nn.ModuleList(nn.Linear(theirs, dim) for _ in own)
        self.scores = nn.Parameter(torch.zeros(len(own)))

    def forward(self, states: Sequence[Tensor], vectors: Tensor, own: Tensor, drawn: Tensor, tau: float) -> Tensor:
        """``sum_l softmax(scores)_l InfoNCE_l`` of each node, [B].

        Args:
            states: the student's, [B, H_l] for each of L layers.
            vectors: the teacher's of some nodes, [U, L, H].
            own: which of them is the node's own, int64 [B].
            drawn: which of them are its negatives, int64 [B, L, M].
            tau: temperature of the cosines.
        """
        layers = []
        for i, (mine, other) in enumerate(zip(self.own, self.theirs, strict=True)):
            cosines = _unit(mine(states[i])) @ _unit(other(vectors[:, i])).T
            layers.append(contrast(cosines / tau, own, drawn[:, i]))
        weighted: Tensor = torch.stack(layers, 1) @ self.scores.softmax(0)
        return weighted


def contrast(scores: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
    """InfoNCE: ``-log exp(s_own) / (exp(s_own) + sum over drawn exp(s))``, [B].

    Args:
        scores: of each row with everything, [B, U].
        own: the column that belongs to a row, int64 [B].
        drawn: the columns of its negatives, int64 [B, M].
    """
    kept = scores.gather(1, torch.cat([own[:, None], drawn], 1))
    return kept.logsumexp(1) - kept[:, 0]


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(wide(vectors), dim=1)
