"""Random numbers that depend on the sample, not on the batch it happens to sit in.

Each number is a hash of (key, sample id, position). So a draw does not change when a global batch is cut into
micro-batches or ranks, and a resumed run needs no generator state for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable

import torch
from torch import Tensor

# Multipliers of the splitmix64 finaliser (Steele, Lea, Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def key_of(*parts: Hashable) -> int:
    """A signed 64-bit key of any printable parts, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def bits(ids: Tensor, size: int, key: Hashable) -> Tensor:
    """Pseudo-random int64 [len(ids), size] from sample ids [B] and a key."""
    start = _mix(ids.to(torch.int64) * _GOLDEN + key_of(key))
    counter = torch.arange(1, size + 1, device=ids.device, dtype=torch.int64) * _GOLDEN
    return _mix(start[:, None] + counter[None, :])


def uniform(ids: Tensor, shape: tuple[int, ...], key: Hashable) -> Tensor:
    """Uniform float32 in [0, 1) of shape [len(ids), *shape]."""
    n = math.prod(shape)
    return (_shift(bits(ids, n, key), 40).to(torch.float32) * 2.0**-24).view(len(ids), *shape)


def normal(ids: Tensor, shape: tuple[int, ...], key: Hashable) -> Tensor:
    """Standard normal float32 of shape [len(ids), *shape] (Box-Muller)."""
    n = math.prod(shape)
    half = (n + 1) // 2
    raw = bits(ids, 2 * half, key)
    # u1 in (0, 1]: its logarithm is finite.
    u1 = (_shift(raw[:, :half], 40).to(torch.float32) + 1.0) * 2.0**-24
    angle = _shift(raw[:, half:], 40).to(torch.float32) * (2.0**-24 * 2 * math.pi)
    radius = torch.sqrt(-2.0 * torch.log(u1))
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :n].reshape(len(ids), *shape)
