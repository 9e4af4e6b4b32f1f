"""Drafters that look at the target's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.language.speculative.decode import sampled
from limbeck.language.speculative.drafters import Shape, Tree, grow
from limbeck.language.speculative.session import Session
from limbeck.language.speculative.verify import ROOT, Proposal, chain
from limbeck.models.forward import Signals


class LevelsDrafter:
    """A tree whose candidates k tokens ahead do not depend on those before them: one distribution for each level.

    Args:
        levels: logits [depth, V] from features of all tokens but the last [T, d], the row, and the depth wanted.
        shape: how much is proposed.
    """

    def __init__(self, levels: Callable[[Tensor, list[int], int], Tensor], shape: Shape) -> None:
        self._levels, self._shape = levels, shape

    def begin(self, row: list[int], read: Signals) -> None:
        """Take the prompt's features."""
        self._features: Tensor = read.hidden_states[-1]

    def accepted(self, read: Signals, kept: list[int]) -> None:
        """Take the features of what stands now."""
        self._features = torch.cat([self._features, read.hidden_states[-1][kept]])

    def propose(self, row: list[int], room: int, draws: torch.Generator) -> Proposal:
        """The likeliest tokens of each level; for a chain at a temperature, drawn ones."""
        logits = self._levels(self._features, row, min(self._shape.depth, room)).float()
        if not len(logits):
            return chain([])
        if self._shape.width == 1 and self._shape.temperature > 0:
            tokens, drawn = zip(*(sampled(each, self._shape.temperature, draws) for each in logits), strict=True)
            return chain(tokens, drawn)
        log_q = logits.log_softmax(-1)

        def expand(tree: Tree, front: list[int]) -> Tensor:
            ahead, node = 0, front[0]
            while node != ROOT:
                ahead, node = ahead + 1, tree.parents[node]
            return log_q[ahead].expand(len(front), -1)

        return grow(log_q[0], expand, self._shape, len(logits))


class FeatureDrafter:
    """A body that predicts the next feature from the last one and the token after it, on and on.

    What stands is read with the target's own features; what is proposed with the draft's.

    Args:
        draft: joins features [B, T, d] and embeddings into its body's input.
        target: gives its embedding and its output layer.
        shape: how much is proposed.
        vocab_size: cut the vocabulary to these.
    """

    def __init__(self, draft: Any, target: Any, shape: Shape, vocab_size: int | None) -> None:
        self._draft, self._shape, self._vocab = draft, shape, vocab_size
        self._embedding, self._out = target.get_input_embeddings(), target.get_output_embeddings()
        self._device = next(draft.parameters()).device

    def begin(self, row: list[int], read: Signals) -> None:
        """Start a text."""
        self._session = Session(_Body(self._draft))
        self._features = self._draft.features(read.hidden_states)

    def accepted(self, read: Signals, kept: list[int]) -> None:
        """Take the features of what stands now; what the draft imagined is forgotten."""
        self._features = torch.cat([self._features, self._draft.features(read.hidden_states)[kept]])

    def propose(self, row: list[int], room: int, draws: torch.Generator) -> Proposal:
        """Tokens after a row of which all features but the last token's are known."""
        depth = min(self._shape.depth, room)
        self._session.stand([])
        first = self._session.standing
        logits, imagined = self._read(self._features[first:], row[first + 1 :])
        self._session.stand(range(len(row) - 1 - first))
        if self._shape.width == 1:
            return self._chain(logits[-1], imagined[-1], depth, draws)
        return self._tree(logits[-1], imagined[-1], depth)

    def _chain(self, logits: Tensor, feature: Tensor, depth: int, draws: torch.Generator) -> Proposal:
        tokens, drawn = [], []
        for step in range(depth):
            token, q = sampled(logits, self._shape.temperature, draws)
            tokens.append(token)
            drawn.append(q)
            if step + 1 < depth:
                found, imagined = self._read(feature[None], [token])
                logits, feature = found[-1], imagined[-1]
        return chain(tokens, drawn)

    def _tree(self, logits: Tensor, feature: Tensor, depth: int) -> Proposal:
        numbers: dict[int, int] = {ROOT: ROOT}
        features: dict[int, Tensor] = {ROOT: feature}

        def expand(tree: Tree, front: list[int]) -> Tensor:
            above = [tree.parents[node] for node in front]
            given = torch.stack([features[node] for node in above])
            parents = [numbers[node] for node in above]
            numbers.update({node: len(numbers) - 1 + i for i, node in enumerate(front)})
            found, imagined = self._read(given, [tree.tokens[node] for node in front], parents)
            features.update(zip(front, imagined, strict=True))
            return found.log_softmax(-1)

        return grow(logits.log_softmax(-1), expand, self._shape, depth)

    def _read(self, features: Tensor, tokens: list[int], parents: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Logits [N, V] and predicted features [N, d] after tokens at which these features arrived."""
        embedded = self._embedding(torch.tensor(tokens, device=self._device))
        found = self._session.read(parents, inputs_embeds=self._draft.joined(features, embedded)[None])
        imagined: Tensor = found.last_hidden_state[0]
        return self._out(imagined)[:, : self._vocab].float(), imagined


class _Body(nn.Module):
    """The body of a draft, as a session calls it."""

    def __init__(self, draft: Any) -> None:
        super().__init__()
        self.body = draft.body

    def forward(self, **inputs: Any) -> Any:
        return self.body(**inputs)
