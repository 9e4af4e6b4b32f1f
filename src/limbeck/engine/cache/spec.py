"""What a user says about a cache: encoding, views, and how many bytes it may take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from limbeck.errors import UserError
from limbeck.registry import nearest

Mode = Literal["full", "fp16", "topk", "packed", "sampled"]
BY_TOKENS = ("packed", "sampled")
"""Modes that keep distributions of next tokens, found by the text."""

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}{end}": 1000**power for power, prefix in enumerate("kmgt", 1) for end in ("", "b")}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}


def parse_bytes(text: str | int) -> int:
    """A number of bytes as people write it: ``2GB`` (10^9), ``1.5 GiB`` (2^30), ``800k``, or a plain number.

    Raises:
        UserError: it is not a positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = found[2].lower() if found else ""
    if not found or unit not in _UNITS or float(found[1]) <= 0:
        raise UserError(f"'{text}' is not a size in bytes; write it like 500MB, 2GB or 1.5GiB")
    return round(float(found[1]) * _UNITS[unit])


def format_bytes(count: int) -> str:
    """A short decimal form: ``5.13 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:.0f} TB"


@dataclass(frozen=True)
class CacheSpec:
    """How teacher outputs are stored.

    Attributes:
        mode: ``full`` keeps float32, ``fp16`` halves it, ``topk`` keeps of each logits signal the k likeliest classes
            with their log-probabilities and the tail's log-mass (other float signals are then kept in fp16). Integer
            signals are always kept as they are. Two modes are for text alone, whose rows they find by their tokens:
            ``packed`` keeps the k likeliest tokens and the tail in few bytes, ``sampled`` tokens drawn at random.
        k: classes kept by ``topk`` and ``packed``.
        views: how many augmented views of each sample, numbered from 0, or their numbers.
        budget: bytes the directory may take, a number or text like ``2GB``.
        temperature: that ``topk`` divides logits by. Distributions cut at one temperature cannot be moved to another.
        logprobs: precision of ``topk``'s log-probabilities.
        bits: of a probability in ``packed``.
        draws: how many tokens ``sampled`` draws, with replacement.
        proposal: exponent of the distribution that it draws from; 1 is the teacher's own.
        seed: of the draws.

    Raises:
        UserError: a value is out of range.
    """

    mode: Mode = "fp16"
    k: int | None = None
    views: int | tuple[int, ...] = 1
    budget: int | str = "4GB"
    temperature: float = 1.0
    logprobs: Literal["fp16", "fp32"] = "fp16"
    bits: int = 5
    draws: int = 50
    proposal: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            hint = nearest(self.mode, get_args(Mode))
            raise UserError(
                f"cache mode '{self.mode}' is unknown: "
                f"{f'did you mean {hint}?' if hint else 'full, fp16, topk, packed or sampled'}"
            )
        if self.mode in ("topk", "packed") and (self.k is None or self.k < 1):
            raise UserError(f"cache mode {self.mode} needs k, the number of classes to keep, e.g. k: 32; got {self.k}")
        if not self.view_numbers or len(set(self.view_numbers)) != len(self.view_numbers):
            raise UserError(f"cache views must be a positive number or distinct view numbers, got {self.views}")
        if not self.temperature > 0:
            raise UserError(f"cache temperature must be positive, got {self.temperature}")
        if self.logprobs not in ("fp16", "fp32"):
            raise UserError(f"cache logprobs must be fp16 or fp32, got '{self.logprobs}'")
        object.__setattr__(self, "budget", parse_bytes(self.budget))

    @property
    def view_numbers(self) -> tuple[int, ...]:
        """The views that are stored."""
        return tuple(range(self.views)) if isinstance(self.views, int) else tuple(self.views)

    def key(self, signals: Collection[str]) -> str:
        """A short name of what is stored and how, for the cache's directory; the budget is no part of it."""
        kept: tuple[object, ...] = ()
        views: tuple[int, ...] = () if self.mode in BY_TOKENS else self.view_numbers
        if self.mode == "topk":
            kept = (self.k, float(self.temperature), self.logprobs)
        elif self.mode == "packed":
            kept = (self.k, float(self.temperature), self.bits)
        elif self.mode == "sampled":
            kept = (self.draws, float(self.temperature), float(self.proposal), self.seed)
        what = repr((self.mode, kept, views, sorted(signals)))
        return f"{self.mode}-{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"

    @property
    def budget_bytes(self) -> int:
        """The budget as a number."""
        return parse_bytes(self.budget)
