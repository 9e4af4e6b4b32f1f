"""The colours of every page and figure, for light and for dark, and who wears them.

Teacher, student and "student alone" are blue, copper and grey: told apart by people who see fewer colours, by
lightness in print, and by the shape of their marker. All that are used for text keep a contrast of 4.5 to the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#fbfaf7", "#15171b"),
    "raised": ("#ffffff", "#1c1f25"),
    "tint": ("#fdf2e8", "#2a211b"),
    "ink": ("#1c1e22", "#eceae6"),
    "muted": ("#5a5e66", "#a4a8b0"),
    "rule": ("#dedad1", "#363a42"),
    "grid": ("#e9e6de", "#292d34"),
    "link": ("#1f5a96", "#8cbcf2"),
    "good": ("#1c6b3f", "#7fd0a0"),
    "bad": ("#a3271f", "#f59a8f"),
    "teacher": ("#1f5f9f", "#7db6f5"),
    "student": ("#b1470d", "#f29a5c"),
    "alone": ("#636871", "#a6abb5"),
    "c1": ("#0b766b", "#4fc4b5"),
    "c2": ("#8a2257", "#e58bb8"),
    "c3": ("#5145a8", "#a9a0f0"),
    "c4": ("#6a6400", "#cfc55c"),
    "c5": ("#7c4f35", "#d1a284"),
    "c6": ("#2f6d1f", "#92cf7c"),
}
"""Name: (on light, on dark). A page has them as ``var(--name)``."""
CATEGORICAL = tuple(f"c{i}" for i in range(1, 7))
MARKERS = "^vPXoD"


@dataclass(frozen=True)
class Style:
    """How one arm is drawn: the name of its colour, its marker, its line."""

    colour: str
    marker: str = "o"
    line: str = "-"


ROLES: Mapping[str, Style] = {
    "teacher": Style("teacher", "o", (0, (6, 2))),  # type: ignore[arg-type]
    "student": Style("student", "D", "-"),
    "alone": Style("alone", "s", (0, (2, 1.5))),  # type: ignore[arg-type]
}


def styles(names: Iterable[str], worn: Mapping[str, Style] = ROLES) -> dict[str, Style]:
    """A style for each name: the one it has in ``worn``, else the next free colour and marker."""
    found: dict[str, Style] = {}
    others = 0
    for name in dict.fromkeys(names):
        found[name] = worn.get(name) or Style(CATEGORICAL[others % len(CATEGORICAL)], MARKERS[others % len(MARKERS)])
        others += name not in worn
    return found


def sentinel(name: str) -> str:
    """The colour that a figure is drawn with in place of ``var(--name)``; unlike any other colour that occurs."""
    return f"#fe01{list(COLOURS).index(name):02x}"


def variables(dark: bool) -> str:
    """The colours as CSS declarations."""
    return ";".join(f"--{name}:{pair[dark]}" for name, pair in COLOURS.items())


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two ``#rrggbb`` colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
