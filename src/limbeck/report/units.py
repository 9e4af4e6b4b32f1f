"""Numbers as people read them: 98.3 %, 0.41 ms, 12.4 k, 48.6 kB, 14×."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

GAP = "\u202f"
"""Narrow no-break space, between a number and its unit."""
MINUS = "\u2212"
DASH = "–"

TINY, HUGE = 1e-60, 1e60

SI = (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")


def finite(value: object) -> float | None:
    """The value as a float, or None when it is no number that a page can show.

    That is text, null, a truth value, NaN, infinity, and what is too large to be drawn.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if abs(number) < TINY:
        return 0.0
    return number if abs(number) < HUGE else None


def number(value: float, digits: int = 3, *, zeros: bool = False) -> str:
    """A plain number with at most ``digits`` significant decimals: 0.0123, 1.23, 123, 12 345, 1.2e-07.

    Args:
        value: a finite number.
        digits: significant digits behind which decimals are cut.
        zeros: keep the zeros that end the decimals.
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e9:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    magnitude = math.floor(math.log10(float(f"{size:.{digits - 1}e}")))
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace(",", GAP)
    return (text if zeros else _trimmed(text)).replace("-", MINUS)


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage; what is not quite 0 % or 100 % is never rounded to it."""
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if (float(text) != 100 or share == 1) and (float(text) != 0 or share == 0):
            break
    text = text.removesuffix(".0") if share in (0, 1) else text
    return f"{text}{GAP}%".replace("-", MINUS)


def scaled(value: float, unit: str = "") -> str:
    """A large number with a decimal prefix: 12.4 k, 1.2 MB, 3.4 GFLOPs."""
    size, prefix = _prefix(value)
    if prefix:
        return f"{number(value / size)}{GAP}{prefix}{unit}"
    text = f"{value:.0f}" if float(value).is_integer() else number(value)
    return (f"{text}{GAP}{unit}" if unit else text).replace("-", MINUS)


def seconds(value: float) -> str:
    """A duration: 3.2 µs, 0.41 ms, 12.3 s, 2 min 5 s, 3 h 20 min."""
    size = abs(value)
    if size < 59.95:
        scale, unit = _short_time(size)
        return f"{number(value * scale, 3 if size >= 1e-3 else 2, zeros=True)}{GAP}{unit}"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}{GAP}min" + (f" {whole % 60}{GAP}s" if whole % 60 else "")
    return f"{whole // 3600}{GAP}h" + (f" {whole % 3600 // 60}{GAP}min" if whole % 3600 >= 60 else "")


def times(ratio: float) -> str:
    """A factor: 14×, 9.2×, 1.3×; above ten without decimals."""
    return f"{ratio:,.0f}×".replace(",", GAP) if ratio >= 9.95 else f"{ratio:.1f}×"


def quantity(value: object, unit: str = "") -> str:
    """A metric's value with its unit.

    Args:
        value: a number; text is returned as it is, None and NaN as words.
        unit: ``%`` (the value is a share in [0, 1]), ``count``, ``bytes``, ``flops``, ``ms``, ``s``, or any suffix.
    """
    if isinstance(value, bool | str):
        return str(value)
    exact = finite(value)
    if exact is None:
        return "not finite" if isinstance(value, float) else DASH if value is None else str(value)
    known: dict[str, Callable[[float], str]] = {
        "%": percent,
        "count": scaled,
        "bytes": lambda v: scaled(v, "B"),
        "flops": lambda v: scaled(v, "FLOPs"),
        "ms": lambda v: seconds(v / 1e3),
        "s": seconds,
    }
    if unit in known:
        return known[unit](exact)
    return f"{number(exact)}{GAP}{unit}" if unit else number(exact)


def tick(value: float, unit: str = "") -> str:
    """A value beside an axis: as :func:`quantity`, without zeros that end the decimals."""
    return _trimmed(quantity(round(value, 12), unit))


def difference(value: float, other: float, unit: str = "") -> str:
    """What separates ``value`` from ``other``, with its sign: +1.2 points, −0.031, +12 %."""
    gap = value - other
    sign = "+" if gap > 0 else MINUS if gap < 0 else "±"
    if unit == "%":
        points = abs(100 * gap)
        return f"{sign}{points:.1f} points" if points >= 0.05 or not gap else f"{sign}{points:.2f} points"
    if unit in ("count", "bytes", "flops", "ms", "s") and other > 0:
        return f"{sign}{number(abs(gap) / other * 100, 2)}{GAP}%"
    return f"{sign}{number(abs(gap), 2)}"


def _alike(value: float, width: float) -> str:
    """A value and its spread to the same decimals, which are those that the spread leaves a meaning."""
    if not 1e-6 < width < 1e9:
        return f"{number(value)} ± {number(width, 2)}"
    first = f"{width:.0e}"
    decimals = max(0, -int(first.split("e")[1]) + (first[0] == "1"))
    return f"{value:,.{decimals}f} ± {width:,.{decimals}f}".replace(",", GAP).replace("-", MINUS)


def _prefix(value: float) -> tuple[float, str]:
    return next(((size, prefix) for size, prefix in SI if abs(value) >= size * 0.9995), (1.0, ""))


def _short_time(size: float) -> tuple[float, str]:
    """The factor and the unit for a time below a minute."""
    return (1e6, "µs") if size < 5e-5 else (1e3, "ms") if size < 1 else (1.0, "s")


def _common(value: float, unit: str) -> tuple[float, str]:
    """The factor and the suffix that a value and its spread are written with."""
    if unit in ("ms", "s"):
        own = 1e-3 if unit == "ms" else 1.0
        scale, name = _short_time(abs(value) * own)
        return own * scale, name
    if unit in ("count", "bytes", "flops"):
        size, prefix = _prefix(value)
        return 1 / size, prefix + {"count": "", "bytes": "B", "flops": "FLOPs"}[unit]
    return 1.0, unit


def _trimmed(text: str) -> str:
    """A text without the zeros that end its decimals."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda m: "" if m[1] == "." else m[1], text)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (N - 1), or None of fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and standard deviation in the same unit: 97.2 ± 0.3 %, 0.41 ± 0.02."""
    centre, width = mean(values), deviation(values)
    if width is None:
        return quantity(centre, unit)
    if unit == "%":
        return f"{100 * centre:.1f} ± {100 * width:.1f}{GAP}%".replace("-", MINUS)
    scale, suffix = _common(centre, unit)
    if width == 0:
        return quantity(centre, unit)
    return f"{_alike(centre * scale, width * scale)}{GAP if suffix else ''}{suffix}"


def wilson(share: float, samples: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval of a share observed on ``samples`` independent samples (95 % by default)."""
    centre = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
