"""What proposes tokens: language models, heads on the target's features, and trees grown by a draft's confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.language.speculative.decode import sampled
from limbeck.language.speculative.session import Session
from limbeck.language.speculative.verify import ROOT, Proposal, chain
from limbeck.models.forward import Signals


@dataclass(frozen=True)
class Shape:
    """How much is proposed.

    Attributes:
        depth: tokens ahead.
        width: candidates for each token, and nodes of a level that are followed further; 1 is a chain.
        nodes: of the tree, the most confident ones.
        temperature: of a drawn chain; trees and chains at 0 take the likeliest tokens.
    """

    depth: int = 4
    width: int = 1
    nodes: int = 16
    temperature: float = 0.0


class Tree:
    """A tree of candidate tokens while it grows."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []

    def add(self, parents: Sequence[int], log_q: Tensor, width: int) -> list[int]:
        """The ``width`` likeliest tokens below each parent, by log-probabilities [P, V]; returns the new nodes."""
        first = len(self.tokens)
        best, which = log_q.topk(min(width, log_q.shape[-1]), dim=-1)
        for parent, scores, tokens in zip(parents, best.tolist(), which.tolist(), strict=True):
            above = 0.0 if parent == ROOT else self.scores[parent]
            for score, token in zip(scores, tokens, strict=True):
                self.tokens.append(token)
                self.parents.append(parent)
                self.scores.append(above + score)
        return list(range(first, len(self.tokens)))

    def best(self, nodes: Sequence[int], count: int) -> list[int]:
        """The ``count`` most confident of the nodes, in the order of the tree."""
        # Sorting is stable and a child is no more confident than its parent, so that no node comes without it.
        return sorted(sorted(nodes, key=lambda node: -self.scores[node])[:count])

    def proposal(self, count: int) -> Proposal:
        """The ``count`` most confident nodes."""
        kept = self.best(range(len(self.tokens)), count)
        place = {ROOT: ROOT, **{node: number for number, node in enumerate(kept)}}
        parents = [place[self.parents[node]] for node in kept]
        return Proposal([self.tokens[node] for node in kept], parents, [None] * len(kept))


def grow(log_q: Tensor, expand: Callable[[Tree, list[int]], Tensor], shape: Shape, depth: int) -> Proposal:
    """A tree by the draft's confidence (EAGLE-2, Li et al. 2024, arXiv 2406.16858).

    At each level the ``width`` nodes of the largest joint probability are expanded; of all nodes the ``nodes`` most
    probable are proposed. No draw enters, which keeps the verification exact.

    Args:
        log_q: log-probabilities [V] of the first token.
        expand: log-probabilities [F, V] after each of some nodes of the tree.
        shape: how much.
        depth: levels, at most.
    """
    tree = Tree()
    level = tree.add([ROOT], log_q[None], shape.width)
    for _ in range(depth - 1):
        front = tree.best(level, shape.width)
        level = tree.add(front, expand(tree, front), shape.width)
    return tree.proposal(shape.nodes)


class ModelDrafter:
    """A small language model: a chain of drawn tokens, or a tree of likely ones.

    Args:
        module: a transformers model with the target's tokenizer.
        shape: how much it proposes.
        vocab_size: cut its vocabulary to these.
    """

    def __init__(self, module: nn.Module, shape: Shape, vocab_size: int | None = None) -> None:
        self._module, self._shape, self._vocab = module, shape, vocab_size
        self._device = next(module.parameters()).device

    def begin(self, row: list[int], read: Signals) -> None:
        """Start a text."""
        self._session, self._seen = Session(self._module), list[int]()

    def accepted(self, read: Signals, kept: list[int]) -> None:
        """What the target gave is nothing to a model of its own; what stands is seen from the next row."""

    def propose(self, row: list[int], room: int, draws: torch.Generator) -> Proposal:
        """Tokens after a row."""
        depth = min(self._shape.depth, room)
        logits = self._catch_up(row)
        if self._shape.width > 1:
            return self._tree(logits, depth)
        tokens, drawn = [], []
        for step in range(depth):
            token, q = sampled(logits, self._shape.temperature, draws)
            tokens.append(token)
            drawn.append(q)
            if step + 1 < depth:
                logits = self._read([token])[-1]
        # The chain's tokens are tried as they are read: they stand here until the next row says otherwise.
        self._session.stand(range(depth - 1))
        self._seen = [*row, *tokens[: depth - 1]]
        return chain(tokens, drawn)

    def _catch_up(self, row: list[int]) -> Tensor:
        """Logits [V] after a row, of which only what is new is read."""
        same = next((i for i, (a, b) in enumerate(zip(self._seen, row, strict=False)) if a != b), len(self._seen))
        self._session.shorten(min(same, len(row) - 1))
        new = row[self._session.standing :]
        logits = self._read(new)[-1]
        self._session.stand(range(len(new)))
        self._seen = list(row)
        return logits

    def _tree(self, logits: Tensor, depth: int) -> Proposal:
        numbers: dict[int, int] = {ROOT: ROOT}

        def expand(tree: Tree, front: list[int]) -> Tensor:
            parents = [numbers[tree.parents[node]] for node in front]
            numbers.update({node: len(numbers) - 1 + i for i, node in enumerate(front)})
            return self._read([tree.tokens[node] for node in front], parents).log_softmax(-1)

        found = grow(logits.log_softmax(-1), expand, self._shape, depth)
        self._session.stand([])
        return found

    def _read(self, tokens: list[int], parents: list[int] | None = None) -> Tensor:
        given = torch.tensor([tokens], device=self._device)
        logits: Tensor = self._session.read(parents, input_ids=given).logits[0, :, : self._vocab]
        return logits.float()
