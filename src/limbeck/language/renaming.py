"""Other names for the words that a text uses often, so that it is not told by its names alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.engine.noise import uniform

OFTEN = 2
"""How often a text uses a word that may get another name."""


class Renaming:
    """Replaces the frequent identifiers of some texts, each by one random word wherever it stands.

    For code, where names say nothing of what it does (Gurioli et al. 2025, arXiv 2503.03008). An identifier is here a
    token of letters, digits and underscores that is no number and no mark.

    Args:
        tokenizer: of the texts.
        rate: share of the texts that get other names.
    """

    def __init__(self, tokenizer: Any, rate: float) -> None:
        size, special = len(tokenizer), set(tokenizer.all_special_ids)
        words = tokenizer.convert_ids_to_tokens(list(range(size)))
        # Without the marks by which pieces and beginnings of words are told.
        named = [str(word).lstrip("\u0120\u2581#").isidentifier() and i not in special for i, word in enumerate(words)]
        self.named = torch.tensor(named)
        self.names = self.named.nonzero().flatten()
        self.rate = rate

    def __call__(self, tokens: Tensor, mask: Tensor, ids: Tensor, seed: tuple[Any, ...]) -> Tensor:
        """The texts [B, T] with other names, by their ids [B] and the seed alone; padding [B, T] stays."""
        can = mask.bool() & self.named.to(tokens.device)[tokens]
        alike = (tokens[:, :, None] == tokens[:, None]) & can[:, None] & can[:, :, None]
        often = alike.sum(-1) >= OFTEN
        draws = uniform(ids, (1 + tokens.shape[1],), (*seed, "renaming"))
        # Each word takes the draw of the first place where it stands.
        drawn = draws[:, 1:].gather(1, alike.int().argmax(-1))
        other = self.names.to(tokens.device)[(drawn * len(self.names)).long()]
        return torch.where(often & (draws[:, :1] < self.rate), other, tokens)
