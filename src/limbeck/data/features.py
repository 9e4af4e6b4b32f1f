"""Columns of a table as numbers: standardised quantities and one-hot categories, fitted on the train rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import UserError

Value = str | float | None
"""What a cell holds; None where it is missing."""
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
MOSTLY = 0.9
"""A column of which this share or more reads as numbers is taken for numeric with mistakes, not for categories."""


@dataclass(frozen=True)
class Quantity:
    """A numeric column: standardised by the train rows; a missing value becomes the mean, which is 0.

    If train has missing values, a second feature is 1 where one is missing.
    """

    name: str
    mean: float
    std: float
    flags_missing: bool

    @classmethod
    def fit(cls, name: str, values: np.ndarray) -> Quantity:
        """Mean and deviation of the values that are there (float64 [N], NaN where missing)."""
        known = values[~np.isnan(values)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        return cls(name, mean, std if std > 1e-12 * max(1.0, abs(mean)) else 1.0, len(known) < len(values))

    @property
    def features(self) -> list[str]:
        """Names of the features it gives."""
        return [self.name, f"{self.name} missing"] if self.flags_missing else [self.name]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Float32 [N, 1 or 2]."""
        missing = np.isnan(values)
        scaled = np.where(missing, 0.0, (values - self.mean) / self.std)
        return np.stack([scaled, missing] if self.flags_missing else [scaled], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Category:
    """A column of texts: one-hot over the texts of the train rows (missing is one of them if train has it).

    A text that train does not have is all zeros.
    """

    name: str
    levels: tuple[str | None, ...]

    @classmethod
    def fit(cls, name: str, values: Sequence[Value], limit: int) -> Category:
        """The distinct texts, sorted.

        Raises:
            UserError: there are more than ``limit``.
        """
        texts = {_text(v) for v in set(values)}
        levels = (*sorted(t for t in texts if t is not None), *([None] if None in texts else []))
        if len(levels) > limit:
            says = f"e.g. '{levels[0]}' and '{levels[1]}', more than max_categories={limit}"
            raise UserError(f"column '{name}' has {len(levels)} different texts, {says}: drop it or raise the limit")
        return cls(name, levels)

    @property
    def features(self) -> list[str]:
        """Names of the features it gives."""
        return [f"{self.name}={'missing' if level is None else level}" for level in self.levels]

    def encode(self, values: Sequence[Value]) -> np.ndarray:
        """Float32 [N, number of levels]."""
        place = {level: i for i, level in enumerate(self.levels)}
        column = {v: place.get(_text(v), -1) for v in set(values)}
        columns = np.array([column[v] for v in values])
        return (columns[:, None] == np.arange(len(self.levels))).astype(np.float32)


def numbers(name: str, values: Sequence[Value], lines: Sequence[int]) -> np.ndarray | None:
    """The column as numbers (float64 [N], NaN where missing), or None if it is one of texts.

    Raises:
        UserError: nearly all values are numbers but one is not, or one is infinite; names its line.
    """
    read = {v: _number(v) for v in set(values)}
    if None in read.values():
        wrong = [i for i, v in enumerate(values) if read[v] is None]
        if len(wrong) > (1 - MOSTLY) * sum(v is not None for v in values):
            return None
        says = f"column '{name}' is numeric, but line {lines[wrong[0]]} has '{values[wrong[0]]}'"
        raise UserError(f"{says}: correct it, or list the column under categorical")
    column = np.array([read[v] for v in values], dtype=np.float64)
    if np.isinf(column).any():
        raise UserError(f"column '{name}' is infinite in line {lines[int(np.isinf(column).argmax())]}")
    return column


def without_missing(values: Sequence[Value]) -> list[Value]:
    """The cells, None where a text stands for a missing value (empty, NA, N/A, NaN, null, None, ?)."""
    known = {v: None if isinstance(v, str) and v.strip().lower() in MISSING else v for v in set(values)}
    return [known[v] for v in values]


def _number(value: Value) -> float | None:
    """NaN where missing, None where it is no number."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except ValueError:
        return None


def _text(value: Value) -> str | None:
    return value if value is None or isinstance(value, str) else f"{value:g}"
