"""A distilled data set as files that need no library: arrays, and a picture to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.engine.checkpoint import atomic, write_json
from limbeck.export.store import Stored

ARRAYS = "images.npz"
PICTURE = "images.png"
TRAINING = "training.json"
SIDE = 48
"""Pixels that a small image is enlarged to at least, in the picture."""


def write_images(folder: Path, stored: Stored, about: Mapping[str, Any] | None = None) -> list[Path]:
    """Write a set of images as ``images.npz`` and, where they are grey or coloured, ``images.png``.

    The arrays are ``images`` (float32 [N, ...], as networks are trained on them), ``labels`` (int64 [N], or float32
    [N, K] where they are soft), ``classes`` (names) and, where the data was normalised, ``mean`` and ``std`` per
    channel: ``images * std + mean`` are pixels in [0, 1]. ``data: {name: npz, path: images.npz}`` reads the file.
    ``training.json`` says how the set is to be learnt.

    Args:
        folder: where to write.
        stored: the set.
        about: what is known of the student beside ``stored.about``: ``learnt_by`` is how it was judged.
    """
    with torch.no_grad():
        images, labels = (t.detach().cpu().numpy() for t in stored.module())
    spec = stored.spec or {}
    arrays = {"images": images.astype(np.float32), "labels": _labels(labels), **_facts(spec)}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    written = [atomic(folder / ARRAYS, write)]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        pixels = grid(to_pixels(arrays["images"], spec), _columns(labels))
        written.append(atomic(folder / PICTURE, lambda path: _save_png(path, pixels)))
    return [*written, write_training(folder, stored, about)]


def write_training(folder: Path, stored: Stored, about: Mapping[str, Any] | None = None) -> Path:
    """Write how the set is to be learnt: what it asks for itself, then what its run was judged by."""
    own = getattr(stored.module, "training_recipe", dict[str, Any])
    judged = (about or stored.about).get("learnt_by") or {}
    path = folder / TRAINING
    write_json(path, {**judged, **own()})
    return path


def to_pixels(images: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Pixels in [0, 1] of normalised images [N, C, H, W]; what lies outside is cut off."""
    mean, std = (np.reshape(spec.get(k) or default, (-1, 1, 1)) for k, default in (("mean", 0.0), ("std", 1.0)))
    return np.clip(images * std + mean, 0.0, 1.0).astype(np.float32)


def grid(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in rows of ``columns``, enlarged by whole factors, with a white line between: [H', W', 3]."""
    count, _, height, width = pixels.shape
    factor = max(1, -(-SIDE // max(height, width)))
    tiles = pixels.repeat(factor, axis=2).repeat(factor, axis=3).transpose(0, 2, 3, 1)
    high, wide = height * factor + 1, width * factor + 1
    page = np.ones((-(-count // columns) * high + 1, columns * wide + 1, 3), dtype=np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * high + 1, i % columns * wide + 1
        page[top : top + high - 1, left : left + wide - 1] = tile
    return page


def _save_png(path: Path, pixels: np.ndarray) -> None:
    from matplotlib.image import imsave

    imsave(path, pixels, format="png", metadata={"Software": ""})


def _columns(labels: np.ndarray) -> int:
    """A row for each class where all classes have as many images, else a square."""
    hard = labels if labels.ndim == 1 else labels.argmax(1)
    counts = np.unique(hard, return_counts=True)[1]
    even = len(set(counts.tolist())) == 1 and bool((np.diff(hard) >= 0).all())
    if even and len(hard) > len(counts):
        return int(counts[0])
    return min(len(hard), 10) if len(hard) <= 100 else int(np.ceil(np.sqrt(len(hard))))


def _labels(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float32)


def _facts(spec: Mapping[str, Any]) -> dict[str, np.ndarray]:
    facts = {"classes": [str(name) for name in spec.get("class_names") or ()]}
    facts |= {k: list(spec.get(k) or ()) for k in ("mean", "std")}
    return {k: np.array(v, dtype=None if k == "classes" else np.float32) for k, v in facts.items() if v}
