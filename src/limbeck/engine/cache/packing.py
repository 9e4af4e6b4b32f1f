"""A truncated distribution in few bytes: k token ids, k probabilities and the rest's mass in one fixed-size record.

The ids of a token are sorted and coded as Elias and Fano did: of each id the low ``l`` bits as they are, the rest as
the distance from the one before in unary, ``k l + k + (V - 1) / 2^l`` bits in all (Elias, Efficient storage and
retrieval by content and address of static files, 1974). Each probability is kept as the cube root of its ratio to the
largest one, rounded to ``bits`` bits between the root of the smallest kept and 1: at this many bits the cube root is
what costs least divergence, as small probabilities may be rougher than large ones. The tail is kept as its log-odds in
float16, which is fine at both ends. So the largest probability needs no room of its own.

At k = 50 of 152 000 tokens and 5 bits that is 120 bytes. Both directions are vectorised and run on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.truncated import TopK

DEEPEST = 40.0
"""Nats below the largest probability at which a kept one counts as nothing: it is stored as if it were there."""
_SCALARS = 4
"""Bytes of log-odds and depth; a window of three bytes that starts at a packed bit never passes them."""


@dataclass(frozen=True)
class Packing:
    """How the records of one cache are laid out.

    Attributes:
        classes: V, the width of the whole distribution.
        k: ids kept, 1 to V.
        bits: of each probability, 2 to 16.
    """

    classes: int
    k: int
    bits: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.classes:
            raise UserError(f"the cache keeps the top {self.k} of {self.classes} tokens: lower k")
        if not 2 <= self.bits <= 16:
            raise UserError(f"cache bits must be 2 to 16, got {self.bits}")

    @cached_property
    def low(self) -> int:
        """Bits of an id that are kept as they are: the number that makes the record smallest."""
        return min(range(17), key=lambda low: self.k * low + (self.classes - 1 >> low))

    @cached_property
    def _starts(self) -> tuple[int, int, int]:
        """The first bit of the low parts, of the probabilities, and after them."""
        high = self.k + (self.classes - 1 >> self.low)
        return high, high + self.k * self.low, high + self.k * (self.low + self.bits)

    @property
    def bytes(self) -> int:
        """Of one record."""
        return -(-self._starts[2] // 8) + _SCALARS

    @property
    def steps(self) -> int:
        """Equal steps between the cube root of the smallest kept ratio and 1."""
        return 2**self.bits - 1

    def pack(self, topk: TopK) -> Tensor:
        """Records of truncated distributions [n, k]: uint8 [n, bytes].

        Raises:
            ValueError: another k, or an id outside the vocabulary.
        """
        if topk.indices.shape[1:] != (self.k,):
            raise ValueError(f"the distributions keep {tuple(topk.indices.shape[1:])} classes, the records {self.k}")
        if topk.indices.numel() and not 0 <= int(topk.indices.min()) <= int(topk.indices.max()) < self.classes:
            raise ValueError(f"a kept id is outside the vocabulary of {self.classes} tokens")
        ids, order = topk.indices.sort(-1)
        below = (topk.logprobs.amax(-1, keepdim=True) - topk.logprobs).clamp(max=DEEPEST).gather(-1, order)
        depth = below.amax(-1).half()
        level = self._level(below, depth)
        high = torch.zeros(len(ids), self._starts[0], dtype=torch.uint8, device=ids.device)
        high.scatter_(1, (ids >> self.low) + torch.arange(self.k, device=ids.device), 1)
        body = torch.cat([high, _bits(ids, self.low), _bits(level, self.bits)], 1)
        scalars = torch.stack([_log_odds(topk.log_tail.float()).half(), depth], 1)
        return torch.cat([_bytes(body), scalars.view(torch.uint8)], 1)

    def unpack(self, records: Tensor, temperature: float = 1.0) -> TopK:
        """The distributions [n, k] of records uint8 [n, bytes], ids ascending; they sum to one.

        Raises:
            UserError: the records are damaged.
        """
        n, (low_at, level_at, _) = len(records), self._starts
        odds, depth = records[:, -_SCALARS:].contiguous().view(torch.float16).float().unbind(1)
        place = _unbits(records[:, : -(-low_at // 8)])[:, :low_at].nonzero()[:, 1]
        if place.numel() != n * self.k:
            raise UserError("a packed record of the teacher cache is damaged: delete the cache and fill it again")
        whole = records.int()
        high = place.view(n, self.k) - torch.arange(self.k, device=records.device)
        ids = (high << self.low) | _fields(whole, low_at, self.low, self.k)
        root = self._root(_fields(whole, level_at, self.bits, self.k), depth)
        logprobs = torch.log_softmax(3 * root.log(), -1) + torch.nn.functional.logsigmoid(-odds)[:, None]
        return TopK(ids, logprobs, torch.nn.functional.logsigmoid(odds), temperature, self.classes)

    def _level(self, below: Tensor, depth: Tensor) -> Tensor:
        """The nearest level of log-ratios ``below`` [n, k] the largest, 0 for the largest itself."""
        floor = (-depth.float() / 3).exp()[:, None]
        share = (1 - (-below / 3).exp()) / (1 - floor).clamp(min=1e-12)
        return (share * self.steps).round().clamp(0, self.steps).long()

    def _root(self, level: Tensor, depth: Tensor) -> Tensor:
        """The cube roots of the ratios to the largest probability that levels stand for."""
        floor = (-depth / 3).exp()[:, None]
        return 1 - level.float() / self.steps * (1 - floor)


def _log_odds(log_mass: Tensor) -> Tensor:
    """``log(m / (1 - m))``; -inf for no mass. float16 holds all of its range that float32 masses have."""
    return log_mass - torch.log(-torch.expm1(log_mass))


def _bits(values: Tensor, width: int) -> Tensor:
    """The low ``width`` bits of values [n, k], least significant first: uint8 [n, k width]."""
    places = torch.arange(width, device=values.device)
    return ((values[..., None] >> places) & 1).to(torch.uint8).flatten(1)


def _bytes(bits: Tensor) -> Tensor:
    """Bits [n, m] as bytes, the first bit lowest."""
    whole = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), bits.shape[1] + 7 >> 3, 8)
    weights = 1 << torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (whole * weights).sum(-1, dtype=torch.uint8)


def _unbits(raw: Tensor) -> Tensor:
    places = torch.arange(8, device=raw.device, dtype=torch.uint8)
    return ((raw[..., None] >> places) & 1).flatten(1)


def _fields(whole: Tensor, start: int, width: int, count: int) -> Tensor:
    """``count`` numbers of ``width`` bits from bit ``start`` of each record: int64 [n, count], bytes as int32."""
    at = start + width * torch.arange(count, device=whole.device)
    byte = at >> 3
    window = whole[:, byte] | (whole[:, byte + 1] << 8) | (whole[:, byte + 2] << 16)
    return ((window >> (at & 7).int()) & ((1 << width) - 1)).long()
