"""Classes drawn at random from a distribution in few bytes: of each token, the distinct ids with their counts.

A token has one byte or two for how many distinct ids follow, and an entry for each: id and count in one number of as
many whole bytes as they need (three at 50 draws of 152 000 tokens). Where what is drawn from is not the distribution
itself, an entry is the id and the weight in float16, off by at most 1 part in 2048 or 3e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.noise import bits
from limbeck.errors import UserError
from limbeck.truncated import Sampled, sampled_of


@dataclass(frozen=True)
class Draws:
    """How draws are made and laid out.

    Attributes:
        classes: V, the width of the whole distribution.
        draws: N, ids drawn for a token, with replacement.
        proposal: exponent of the distribution that is drawn from.
        seed: of the draws, which follow from it and the text alone.
    """

    classes: int
    draws: int
    proposal: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 65535:
            raise UserError(f"cache draws must be 1 to 65535, got {self.draws}")
        if not 0 <= self.proposal <= 2:
            raise UserError(f"cache proposal, the exponent of what is drawn from, must be 0 to 2, got {self.proposal}")

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return max((self.classes - 1).bit_length(), 1)

    @property
    def token_bytes(self) -> int:
        """Of the number of distinct ids."""
        return 1 if self.draws < 256 else 2

    @property
    def entry_bytes(self) -> int:
        """Of one distinct id with its count or weight."""
        return self._number_bytes + (0 if self.counted else 2)

    @property
    def counted(self) -> bool:
        """Whether a weight is a count over the draws, and so exact."""
        return self.proposal == 1

    @property
    def _number_bytes(self) -> int:
        return -(-(self.id_bits + (self.draws - 1).bit_length() * self.counted) // 8)

    def draw(self, logits: Tensor, keys: Tensor, positions: Tensor, temperature: float = 1.0) -> Sampled:
        """Draws for tokens [n, V] at ``positions`` int64 [n] of rows whose content hashes to ``keys`` int64 [n].

        They follow from the seed, the row's content and the position alone, not from the order of filling.
        """
        raw = bits(bits(keys, 1, "row")[:, 0] + positions, self.draws, ("draws", self.seed))
        # 53 bits, all that a float64 holds: with fewer, the rarest tokens could never be drawn.
        uniform = ((raw >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
        return sampled_of(logits, uniform, self.proposal, temperature)

    def pack(self, sampled: Sampled) -> tuple[Tensor, Tensor]:
        """Records uint8 [n, token_bytes] of tokens [n, m], and those of all their entries, uint8 [e, entry_bytes]."""
        there = sampled.weights > 0
        number, weight = sampled.indices[there], sampled.weights[there]
        sizes = _to_bytes(there.sum(-1), self.token_bytes)
        if self.counted:
            counts = (weight.double() * self.draws).round().long()
            return sizes, _to_bytes(number | (counts - 1) << self.id_bits, self._number_bytes)
        halves = weight.half().view(-1, 1).view(torch.uint8).view(-1, 2)
        return sizes, torch.cat([_to_bytes(number, self._number_bytes), halves], 1)

    def sizes(self, tokens: Tensor) -> Tensor:
        """How many entries each token has, int64 [n], from its record."""
        return _from_bytes(tokens)

    def unpack(self, tokens: Tensor, entries: Tensor, temperature: float = 1.0) -> Sampled:
        """The draws [n, m] of records of tokens [n, token_bytes] and of their entries, in order.

        Raises:
            UserError: the records do not go together.
        """
        sizes = self.sizes(tokens)
        if int(sizes.sum()) != len(entries):
            raise UserError("packed records of the teacher cache are damaged: delete the cache and fill it again")
        most = int(sizes.max()) if len(sizes) else 0
        there = torch.arange(most, device=sizes.device) < sizes[:, None]
        number = _from_bytes(entries[:, : self._number_bytes])
        ids = torch.zeros(there.shape, dtype=torch.int64, device=sizes.device)
        weights = torch.zeros(there.shape, device=sizes.device)
        ids[there] = number & ((1 << self.id_bits) - 1)
        if self.counted:
            weights[there] = ((number >> self.id_bits) + 1).float() / self.draws
        else:
            weights[there] = entries[:, self._number_bytes :].contiguous().view(torch.float16)[:, 0].float()
        return Sampled(ids, weights, temperature, self.classes)


def _to_bytes(values: Tensor, width: int) -> Tensor:
    """Whole numbers [n] in ``width`` bytes each, lowest first."""
    places = 8 * torch.arange(width, device=values.device)
    return ((values[:, None] >> places) & 255).to(torch.uint8)


def _from_bytes(raw: Tensor) -> Tensor:
    places = 8 * torch.arange(raw.shape[1], device=raw.device)
    return (raw.long() << places).sum(1)
