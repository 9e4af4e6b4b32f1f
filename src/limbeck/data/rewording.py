"""Other words for the words of a text: replaced, swapped, left out or put in, by (seed, sample, view) alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.noise import uniform
from limbeck.errors import UserError

KINDS = ("neighbour", "random", "swap", "delete", "insert")
"""In the order in which they are done."""
WINDOW = 2
"""Words to either side that make up a word's company."""


class Rewording:
    """Augments rows of tokens (Wei and Zou 2019, arXiv 1901.11196, called EDA). Marks and padding stay.

    ``neighbour`` replaces a share of the words, each by one of the words that keep the most similar company in the
    training rows, ``random`` by any word; ``swap`` has so many pairs of a text change places; ``delete`` leaves a share
    out, but never all; ``insert`` puts a neighbour of a word before it, as far as the context has room. A text that is
    one of a pair is reworded by itself. EDA takes synonyms of a thesaurus where this takes neighbours.

    Args:
        shares: how much of a text each does, by name.
        tokenizer: says which ids are marks.
        tokens: of the training rows [N, T], for the neighbours.
        seed: of the draws.
        nearest: how many neighbours a word has.

    Raises:
        UserError: a name that is not one of :data:`KINDS`, or a number that is no share.
    """

    def __init__(
        self, shares: Mapping[str, float], tokenizer: Any, tokens: Tensor, *, seed: int = 0, nearest: int = 5
    ) -> None:
        unknown = [name for name in shares if name not in KINDS]
        if unknown:
            raise UserError(f"reword: no '{unknown[0]}'; there is {', '.join(KINDS)}")
        bad = [name for name, share in shares.items() if not 0 <= share <= 1]
        if bad:
            raise UserError(f"reword: {bad[0]} is a share between 0 and 1, not {shares[bad[0]]}")
        self.shares = {name: float(shares[name]) for name in KINDS if shares.get(name)}
        self.seed = seed
        self.pad = int(tokenizer.pad_token_id)
        special = sorted(set(tokenizer.all_special_ids))
        self.special = torch.tensor(special)
        self.plain = torch.tensor(sorted(set(range(len(tokenizer))) - set(special)))
        needed = {"neighbour", "insert"} & set(self.shares)
        self.near = neighbours(tokens, self.special, len(tokenizer), nearest) if needed else None

    def __repr__(self) -> str:
        return f"Rewording({self.shares}, seed={self.seed})"

    def __call__(self, tokens: Tensor, mask: Tensor, kinds: Tensor, ids: Tensor, view: int) -> tuple[Tensor, ...]:
        """Reworded ``tokens``, with their mask and kinds: int64 [B, T] each.

        Args:
            tokens: int64 [B, T], padded at the end.
            mask: int64 [B, T], 1 where there is a token.
            kinds: int64 [B, T], which text of a pair a token is of.
            ids: of the samples, [B].
            view: of the samples.
        """
        for name, share in self.shares.items():
            draws = uniform(ids, (2, tokens.shape[1]), (self.seed, int(view), f"reword {name}"))
            words = mask.bool() & ~torch.isin(tokens, self.special)
            chosen = words & (draws[:, 0] < share)
            if name in ("neighbour", "random"):
                tokens = torch.where(chosen, self._other(tokens, draws[:, 1], name), tokens)
            elif name == "swap":
                tokens = _swapped(tokens, words, kinds, draws, share)
            else:
                if name == "delete":
                    times = mask * ~(chosen & ~_last_ones(words, kinds, draws[:, 0]))
                else:
                    room = tokens.shape[1] - mask.sum(1, keepdim=True)
                    chosen = chosen & (chosen.cumsum(1) <= room)
                    times = mask + chosen
                place, mask = _places(times)
                tokens = tokens.gather(1, place).masked_fill(mask == 0, self.pad)
                kinds = kinds.gather(1, place) * mask
                if name == "insert":
                    # Of the two copies of a chosen word the first becomes one of its neighbours.
                    first = chosen.gather(1, place) & (place != place.roll(1, 1)) & mask.bool()
                    tokens = torch.where(first, self._other(tokens, draws[:, 1], name), tokens)
        return tokens, mask, kinds

    def _other(self, tokens: Tensor, draws: Tensor, name: str) -> Tensor:
        if name == "random":
            return self.plain[(draws * len(self.plain)).long()]
        assert self.near is not None
        near = self.near[tokens]
        return near.gather(-1, (draws * near.shape[-1]).long()[..., None]).squeeze(-1)


def _places(times: Tensor) -> tuple[Tensor, Tensor]:
    """Where each place of a new row is read from, and whether there is a token: int64 [B, T] both.

    Each token of the old row comes as many times as ``times`` [B, T] says.
    """
    width = times.shape[1]
    ends = times.cumsum(1)
    wanted = torch.arange(width, device=times.device).expand_as(times).contiguous()
    # The n-th token of the new row is the first that, with all before it, has more than n copies.
    place = torch.searchsorted(ends, wanted, right=True).clamp_max(width - 1)
    return place, (wanted < ends[:, -1:]).long()


def _swapped(tokens: Tensor, words: Tensor, kinds: Tensor, draws: Tensor, share: float) -> Tensor:
    """Each text with ``share`` times its length pairs of words, at least one, that have changed places."""
    rows = tokens.tolist()
    for row, can, kind, draw in zip(rows, words, kinds, draws.tolist(), strict=True):
        for text in (0, 1):
            places = (can & (kind == text)).nonzero().flatten().tolist()
            for n in range(max(1, round(share * len(places))) if len(places) > 1 else 0):
                a, b = (places[int(side[n] * len(places))] for side in draw)
                row[a], row[b] = row[b], row[a]
    return torch.tensor(rows, device=tokens.device)


def _last_ones(words: Tensor, kinds: Tensor, draws: Tensor) -> Tensor:
    """The word of each text that stays whatever happens, that of the largest draw: bool [B, T]."""
    kept = torch.zeros_like(words)
    for text in (0, 1):
        own = words & (kinds == text)
        kept |= own & (draws == draws.masked_fill(~own, -1.0).amax(1, keepdim=True))
    return kept


def neighbours(tokens: Tensor, special: Tensor, size: int, nearest: int) -> Tensor:
    """For each of ``size`` tokens those of the most similar company, int64 [size, nearest].

    A word's company is the positive pointwise mutual information with the words beside it (Levy and Goldberg 2014,
    "Neural Word Embedding as Implicit Matrix Factorization"); companies are compared by their cosine. Marks have none,
    and are nobody's neighbours.
    """
    together = torch.zeros(size, size)
    for step in range(1, WINDOW + 1):
        a, b = tokens[:, :-step].flatten().long(), tokens[:, step:].flatten().long()
        together.index_put_((a, b), torch.ones(len(a)), accumulate=True)
    together = together + together.T
    together[special], together[:, special] = 0.0, 0.0
    total, each = together.sum().clamp_min(1), together.sum(0)
    company = (together * total / (each[:, None] * each).clamp_min(1e-9)).clamp_min(1).log()
    company = torch.nn.functional.normalize(company, dim=1)
    alike = (company @ company.T).fill_diagonal_(-1.0)
    alike[:, special] = -2.0
    return alike.argsort(dim=1, descending=True, stable=True)[:, :nearest]
