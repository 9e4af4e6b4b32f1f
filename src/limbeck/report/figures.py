"""From matplotlib to inline SVG that takes its colours and its font from the page.

A figure is drawn with a stand-in for each colour of the palette; here the stand-ins become ``var(--name)``, text stays
text, and everything that a page does not need (names, metadata, digits) is dropped. One unit is one CSS pixel, and
figures are small enough to be read on a phone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from limbeck.report.palette import COLOURS, sentinel

WIDTH = 372
TEXT = 12.0
SMALL = 11.0
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "path.simplify_threshold": 0.3,
}

P = ParamSpec("P")


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes:
        key: its name within the page.
        title: what it shows, a short heading.
        svg: the drawing, inline.
        caption: what to see in it.
        shape: ``""`` or ``"square"``.
    """

    key: str
    title: str
    svg: Markup
    caption: str = ""
    shape: str = ""


def chart(draw: Callable[P, Chart | None]) -> Callable[P, Chart | None]:
    """Make a function draw in the house style, whatever the user's matplotlib settings are."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Chart | None:
        with _house_style():
            return draw(*args, **kwargs)

    return inner


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of that many pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def axes(figure: Figure, *, left: float, right: float, top: float, bottom: float, grid: str = "y") -> Axes:
    """Axes with these margins in pixels: no box, faint grid lines along one direction, muted tick labels."""
    width, height = figure.get_size_inches() * 72
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    ax = figure.add_axes(box, facecolor="none")
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, pad=6, labelsize=SMALL, labelcolor=sentinel("muted"))
    if grid:
        ax.grid(axis=grid, color=sentinel("grid"), linewidth=1)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    return ax


def write(
    place: Axes | Figure, x: float, y: float, text: str, colour: str = "ink", *, size: float = SMALL,
    bold: bool = False, **options: Any,
) -> Text:  # fmt: skip
    """Text at (x, y) pixels from the lower left corner of a figure, or at data coordinates of axes."""
    if bold:
        options["weight"] = "bold"
    if isinstance(place, Figure):
        width, height = place.get_size_inches() * 72
        return place.text(x / width, y / height, text, color=sentinel(colour), fontsize=size, **options)
    return place.text(x, y, text, color=sentinel(colour), fontsize=size, **options)


def width_of(text: str, size: float = SMALL) -> float:
    """The width of a text in pixels, in the widest of the usual interface fonts."""
    font = _font()
    font.set_size(size, 72)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def shorten(text: str, pixels: float, size: float = SMALL) -> str:
    """The text, its middle cut out where it is wider than that: long names often differ at their end."""
    short, kept = text, len(text)
    while kept and width_of(short, size) > pixels:
        kept -= 1
        head = kept - kept * 2 // 5
        short = text[:head].rstrip() + "…" + text[len(text) - (kept - head) :].lstrip()
    return short


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near ``places`` that keep ``gap`` between neighbours, within [low, high] as far as they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    wanted = np.array([places[i] for i in order], dtype=np.float64)
    gap = min(gap, (high - low) / max(1, len(places) - 1)) if len(places) > 1 else gap
    steps = gap * np.arange(len(places))
    shifted = np.clip(_rising(wanted - steps), low, max(low, high - gap * (len(places) - 1)))
    found = [0.0] * len(places)
    for i, place in zip(order, shifted + steps, strict=True):
        found[i] = float(place)
    return found


def pixels(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a data point lies, in pixels from the lower left corner."""
    across, up = ax.transData.transform((x, y))
    return float(across), float(up)


def inline(figure: Figure, key: str, says: str) -> Markup:
    """The figure as an ``<svg>`` element for a page.

    Args:
        figure: drawn with :func:`limbeck.report.palette.sentinel` colours.
        key: the figure's name within its page; keeps the ids of several figures apart.
        says: what it shows, for who cannot see it.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    width, height = (round(float(v)) for v in root.attrib["viewBox"].split()[2:])
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', buffer.getvalue()))
    _tidy(root, key, used)
    attributes = {"class": "chart", "viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": says}
    root.attrib.clear()
    root.attrib.update(attributes)
    # everything in it was escaped by ElementTree
    return Markup(ElementTree.tostring(root, encoding="unicode"))


@contextmanager
def _house_style() -> Iterator[None]:
    with matplotlib.style.context(["default", STYLE]):
        yield


def _font() -> FT2Font:
    return get_font(fontManager.findfont(FontProperties(family="DejaVu Sans")))


def _rising(values: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence (least squares): pool neighbours that are out of order."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.array([value for value, count in pools for _ in range(int(count))])


# ---------------------------------------------------------------------------------------------------------------------
# Tidying what matplotlib writes

_SENTINELS = {sentinel(name): f"var(--{name})" for name in COLOURS}
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_DROPPED = ("metadata", "style", "title")
_MEASURES = ("d", "x", "y", "width", "height", "transform", "points", "cx", "cy", "r")


def _tidy(element: ElementTree.Element, key: str, used: set[str]) -> None:
    """Strip names, digits, fonts and empty groups from an element and all it holds."""
    element.tag = _local(element.tag)
    attributes = {_local(name): value for name, value in element.attrib.items()}
    element.attrib.clear()
    element.attrib.update(_attributes(attributes, key, used))
    element.tail = None
    if element.tag != "text":
        element.text = None
    kept: list[ElementTree.Element] = []
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            continue
        _tidy(child, key, used)
        if child.tag == "g" and not child.attrib:
            kept.extend(child)
        elif len(child) or child.tag not in ("g", "defs"):
            kept.append(child)
    element[:] = kept


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _attributes(given: dict[str, str], key: str, used: set[str]) -> dict[str, str]:
    found = {}
    for name, value in given.items():
        if name == "id":
            if value in used:
                found[name] = f"{key}-{value}"
        elif name in ("href", "clip-path"):
            found[name] = value.replace("#", f"#{key}-")
        elif name == "style":
            found[name] = _css(value)
        elif name in _MEASURES:
            value = re.sub(r"\s*rotate\(-?0 [^)]*\)", "", value)
            value = _NUMBER.sub(_rounded, " ".join(value.split()))
            if value:
                found[name] = re.sub(r" ?([MLCQZz]) ?", r"\1", value) if name == "d" else value
    return found


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _css(style: str) -> str:
    pairs = [part.split(":", 1) for part in style.split(";") if ":" in part]
    kept = []
    for name, value in ((n.strip(), v.strip()) for n, v in pairs):
        if name == "font":  # the shorthand that older matplotlib writes: [style] [weight] size family
            kept += _font_parts(value)
            continue
        if name == "font-family" or (name, value) in (("stroke-linejoin", "round"), ("stroke-linecap", "butt")):
            continue
        kept.append(f"{name}:{_SENTINELS.get(value, value)}")
    return ";".join(kept)


def _font_parts(shorthand: str) -> list[str]:
    before, size, _ = re.split(r"([\d.]+px)", shorthand, maxsplit=1)
    weight = re.search(r"bold|[1-9]00", before)
    return [*([f"font-weight:{weight[0]}"] if weight else []), f"font-size:{size}"]
