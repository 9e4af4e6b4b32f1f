"""What generators and language models make: points over the teacher's density, images, texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import imsave
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from limbeck.report.figures import Chart, axes, canvas, chart, inline
from limbeck.report.palette import sentinel
from limbeck.report.results import Floats, Run, clean, per_arm, points

POINTS = 900
IMAGES = 100
BYTES = 240_000
"""What all images of a page may take together."""
TEXTS = 12
LONGEST = 1200
WAYS = {"text": "", "greedy": "likeliest", "sampled": "sampled"}
CELLS = 56
REFERENCES = ("teacher", "data", "real", "target")


@dataclass(frozen=True)
class Picture:
    """One image for a page: a PNG as a data address, its size in pixels, its label (if any) and what to say of it."""

    source: str
    width: int
    height: int
    label: str
    alt: str


@dataclass(frozen=True)
class Gallery:
    """The images of one arm."""

    title: str
    colour: str
    pictures: tuple[Picture, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Answer:
    """What one arm wrote: texts, each with a word on how it was made (empty where there is only one)."""

    label: str
    colour: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Passage:
    """One prompt, how each arm goes on, and what the data says."""

    prompt: str
    answers: tuple[Answer, ...]
    truth: str = ""


def sample_charts(run: Run) -> list[Chart]:
    """One panel for each set of sampled points, all to the same scale, over the density of the teacher's."""
    clouds = {k: p for k, v in per_arm(run, "samples").items() if (p := points(v)) is not None and p.shape[1] >= 2}
    reference = next((clouds[k] for k in REFERENCES if k in clouds), None)
    if not clouds:
        return None or []
    window = _window(list(clouds.values()) if reference is None else [reference])
    order = sorted(clouds, key=lambda k: k in REFERENCES)
    found = [_panel(run, key, clouds[key], reference, window) for key in order]
    return [c for c in found if c is not None]


def way_charts(run: Run) -> list[Chart]:
    """One panel for each arm that says which way its samples take from noise, all to the same scale."""
    told = {key: ways for key, value in per_arm(run, "ways").items() if (ways := _ways(value)) is not None}
    if not told:
        return []
    window = _window([way.reshape(-1, 2) for way in told.values()])
    order = sorted(told, key=lambda k: k in REFERENCES)
    found = [_way_panel(run, number, key, told[key], window) for number, key in enumerate(order)]
    return [c for c in found if c is not None]


def _ways(value: object) -> Floats | None:
    """Ways [N, L, 2], or None for what is none."""
    try:
        ways = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return ways if ways.ndim == 3 and ways.shape[2] == 2 and len(ways) and np.isfinite(ways).all() else None


@chart
def _way_panel(run: Run, number: int, key: str, ways: Floats, window: Floats) -> Chart | None:
    figure = canvas(300, 300)
    ax = axes(figure, left=2, right=2, top=2, bottom=2, grid="")
    ax.set(xlim=window[0], ylim=window[1])
    ax.set_axis_off()
    for way in ways:
        ax.plot(way[:, 0], way[:, 1], color=sentinel("rule"), linewidth=1)
    _dust(ax, ways[:, -1], _colour(run, key))
    label = _who(run, key)
    says = f"the ways of {len(ways)} samples of {label} from noise, in {ways.shape[1] - 1} steps"
    name = f"ways-{number}"
    return Chart(name, f"{label}: ways from noise", inline(figure, name, says), "", "square")


def galleries(run: Run) -> list[Gallery]:
    """The images of each arm, as inline PNG, as many as a page should hold."""
    found = []
    room = BYTES
    details = run.student.details if run.student else {}
    shown = [(_who(run, key), _colour(run, key), key, value) for key, value in per_arm(run, "images").items()]
    hurried, in_calls = details.get("hurried"), details.get("in_calls")
    shown += [("Teacher in as many calls as the student", _colour(run, "teacher"), "teacher", hurried)]
    if run.student and isinstance(in_calls, Mapping):
        colour = _colour(run, "student")
        shown += [(f"Student in {n} call{'s' * (n != '1')}", colour, "student", value) for n, value in in_calls.items()]
    for title, colour, key, value in shown:
        if not isinstance(value, list):
            continue
        kept: list[Picture] = []
        for picture in _pictures(run, key, value[:IMAGES]):
            if room < len(picture.source):
                break
            room -= len(picture.source)
            kept.append(picture)
        if kept:
            found.append(Gallery(title, colour, tuple(kept), len(value) - len(kept)))
    return found


def passages(run: Run) -> list[Passage]:
    """Sample texts by prompt, the arms' answers side by side."""
    answers: dict[str, list[Answer]] = {}
    truths: dict[str, str] = {}
    for key, value in per_arm(run, "texts").items():
        for item in value if isinstance(value, list) else []:
            written = _written(item) if isinstance(item, Mapping) else ()
            if written:
                prompt = _cut(item.get("prompt") or "")
                truths.setdefault(prompt, _cut(item.get("truth") or ""))
                answers.setdefault(prompt, []).append(Answer(_who(run, key), _colour(run, key), written))
    return [Passage(prompt, tuple(found), truths[prompt]) for prompt, found in list(answers.items())[:TEXTS]]


@chart
def _panel(run: Run, key: str, cloud: Floats, reference: Floats | None, window: Floats) -> Chart | None:
    figure = canvas(300, 300)
    ax = axes(figure, left=2, right=2, top=2, bottom=2, grid="")
    ax.set(xlim=window[0], ylim=window[1])
    ax.set_axis_off()
    ax.plot(
        [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=sentinel("rule"), linewidth=1, transform=ax.transAxes, clip_on=False
    )
    own = reference is cloud
    if reference is not None:
        _density(ax, reference, window)
    inside = ((cloud[:, :2] >= window[:, 0]) & (cloud[:, :2] <= window[:, 1])).all(axis=1)
    _dust(ax, _some(cloud[inside]), _colour(run, key))
    outside = int((~inside).sum())
    label = _who(run, key)
    behind = "" if own or reference is None else f" over the density of {_reference_name(run)}"
    says = f"{len(cloud)} samples of {label}{behind}"
    caption = f"{outside} of {len(cloud)} samples lie outside the frame." if outside else ""
    if cloud.shape[1] > 2:
        caption = f"The first two of {cloud.shape[1]} dimensions. {caption}".strip()
    return Chart(
        f"samples-{_slug(run, key)}", label, inline(figure, f"samples-{_slug(run, key)}", says), caption, "square"
    )


def _window(clouds: list[Floats]) -> Floats:
    """Limits [2, 2] that hold nearly all points, the same scale on both axes."""
    every = np.concatenate([c[:, :2] for c in clouds])
    low, high = np.quantile(every, [0.002, 0.998], axis=0)
    half = 0.58 * max(float((high - low).max()), 1e-6)
    centre = (low + high) / 2
    return np.stack([centre - half, centre + half], axis=1)


def _density(ax: Axes, cloud: Floats, window: Floats) -> None:
    """Filled contours of a smoothed histogram, as a quiet background."""
    counted, *edges = np.histogram2d(cloud[:, 0], cloud[:, 1], bins=CELLS, range=window)
    smooth = _blurred(_blurred(counted, 0), 1)
    if not smooth.max() > 0:
        return
    centres = [(e[:-1] + e[1:]) / 2 for e in edges]
    levels = smooth.max() * np.array([0.04, 0.15, 0.35, 0.65, 1.01])
    for low, high, alpha in zip(levels, levels[1:], (0.07, 0.14, 0.22, 0.30), strict=False):
        ax.contourf(*centres, smooth.T, levels=[low, high], colors=[sentinel("teacher")], alpha=alpha)


def _blurred(image: Floats, axis: int, sigma: float = 1.4) -> Floats:
    reach = np.arange(-5, 6)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    return np.apply_along_axis(np.convolve, axis, image, kernel / kernel.sum(), mode="same")


def _some(cloud: Floats) -> Floats:
    """At most ``POINTS`` of the points, evenly from the list."""
    return cloud[np.linspace(0, len(cloud) - 1, POINTS).round().astype(int)] if len(cloud) > POINTS else cloud


def _dust(ax: Axes, cloud: Floats, colour: str) -> None:
    """Points as one path of strokes without length: a tenth of the bytes of as many markers."""
    if not len(cloud):
        return
    corners = np.repeat(cloud[:, :2], 2, axis=0)
    codes = np.tile([Outline.MOVETO, Outline.LINETO], len(cloud))
    patch = PathPatch(Outline(corners, codes), facecolor="none", edgecolor=sentinel(colour), linewidth=2.6, alpha=0.8)
    patch.set_capstyle("round")
    patch.get_path().should_simplify = False
    ax.add_patch(patch)


def _written(item: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    kinds = [(word, _cut(item[key])) for key, word in WAYS.items() if item.get(key)]
    return tuple(kinds) if len(kinds) > 1 else tuple(("", text) for _, text in kinds)


def _cut(text: object) -> str:
    """A text for reading, cut where it is too long for a page."""
    whole = clean(text)
    return whole if len(whole) <= LONGEST else whole[:LONGEST].rstrip() + " …"


def _pictures(run: Run, key: str, items: list[Any]) -> Iterator[Picture]:
    names, who = _image_labels(run, key), _who(run, key)
    for i, item in enumerate(items):
        picture = _picture(item, names, i, who)
        if picture is not None:
            yield picture


def _picture(item: Any, names: list[str], i: int, who: str) -> Picture | None:
    label = clean(item["label"]) if isinstance(item, Mapping) and item.get("label") is not None else ""
    label = label or (names[i] if i < len(names) else "")
    pixels = _pixels(item.get("image") if isinstance(item, Mapping) else item)
    if pixels is None:
        return None
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": None})  # type: ignore[dict-item]
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(
        source, pixels.shape[1], pixels.shape[0], label, f"{who}, image {i + 1}{': ' if label else ''}{label}"
    )


def _pixels(value: object) -> np.ndarray | None:
    """An image [H, W], [C, H, W] or [H, W, C] in [0, 1] as bytes [H, W, 3], or None."""
    try:
        image = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size or not np.isfinite(image).all():
        return None
    return np.broadcast_to(np.rint(255 * image.clip(0, 1)).astype(np.uint8), (*image.shape[:2], 3)).copy()


def _image_labels(run: Run, key: str) -> list[str]:
    for name in ("image_labels", "labels"):
        value = per_arm(run, name).get(key)
        if isinstance(value, list):
            known = run.class_names
            return [known[v] if isinstance(v, int) and 0 <= v < len(known) else clean(v) for v in value]
    return []


def _who(run: Run, key: str) -> str:
    return next((arm.label for arm in run.arms if arm.key == key), clean(key).replace("_", " ").capitalize())


def _colour(run: Run, key: str) -> str:
    found = next((arm.style.colour for arm in run.arms if arm.key == key), None)
    return found or {"teacher": "teacher", "student": "student"}.get(key, "alone")


def _reference_name(run: Run) -> str:
    keys = per_arm(run, "samples")
    return _who(run, next(k for k in REFERENCES if k in keys)).lower()


def _slug(run: Run, key: str) -> str:
    """The key's place among all: an id that holds nothing a recipe wrote."""
    return str(list(per_arm(run, "samples")).index(key))
