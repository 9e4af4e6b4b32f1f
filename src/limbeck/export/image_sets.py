"""A distilled data set in layouts that other libraries read: Hugging Face ``datasets``, and a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import UserError, needs_extra
from limbeck.export.images import to_pixels, write_training
from limbeck.export.store import Stored

FORMATS = ("datasets", "image_folder")
"""Formats of a student that is data."""
LIST = "metadata.jsonl"


def export_datasets(stored: Stored, folder: Path) -> dict[str, Any]:
    """Write ``datasets.load_from_disk``'s layout: ``image`` to look at, ``values`` exactly as learned, and ``label``.

    ``values`` are float32 [C, H, W], normalised as networks are trained on them; ``label`` is a class or, for soft
    labels, a list of numbers. ``training.json`` beside them says how they are to be learnt.

    Raises:
        UserError: the package ``datasets`` is missing.
    """
    try:
        import datasets
    except ImportError:
        raise needs_extra("datasets", "datasets") from None
    images, labels, names = _content(stored)
    hard = labels.ndim == 1
    features = {
        "values": datasets.Array3D(images.shape[1:], "float32"),
        "label": datasets.ClassLabel(names=names) if hard else datasets.Sequence(datasets.Value("float32")),
    }
    rows: dict[str, Any] = {"values": list(images), "label": labels.tolist()}
    if images.shape[1] in (1, 3):
        features = {"image": datasets.Image(), **features}
        rows["image"] = _pictures(images, stored)
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(str(folder))
    write_training(folder, stored)
    again = datasets.load_from_disk(str(folder)).with_format("numpy")
    return _facts(images, np.asarray(again["values"][:], dtype=np.float32), "values")


def export_image_folder(stored: Stored, folder: Path) -> dict[str, Any]:
    """Write a folder of PNG files for each class, as ``torchvision.datasets.ImageFolder`` and others read it.

    Pixels have eight bits: what lies outside [0, 1] is cut off, and the rest rounded; the facts say by how much values
    change. ``metadata.jsonl`` lists files and labels, soft ones too, and ``training.json`` how they are to be learnt.

    Raises:
        UserError: the images are neither grey nor coloured.
    """
    from matplotlib.image import imread, imsave

    images, labels, names = _content(stored)
    if images.shape[1] not in (1, 3):
        raise UserError(f"export: image_folder: images of {images.shape[1]} channels are no pictures; use datasets")
    hard = labels if labels.ndim == 1 else labels.argmax(1)
    lines, values = [], []
    for number, (picture, label) in enumerate(zip(_pictures(images, stored), hard.tolist(), strict=True)):
        place = folder / _plain(names[label]) / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        imsave(place, picture, format="png", metadata={"Software": ""})
        line = {"file_name": place.relative_to(folder).as_posix(), "label": label, "class": names[label]}
        lines.append(json.dumps(line if labels.ndim == 1 else {**line, "soft_label": labels[number].tolist()}))
        values.append(imread(place)[:, :, : images.shape[1]].transpose(2, 0, 1))
    (folder / LIST).write_text("\n".join(lines) + "\n", encoding="utf8")
    write_training(folder, stored)
    spec = stored.spec or {}
    mean, std = (np.reshape(spec.get(k) or d, (-1, 1, 1)) for k, d in (("mean", 0.0), ("std", 1.0)))
    return _facts(images, ((np.stack(values) - mean) / std).astype(np.float32), "normalised pixels")


def _content(stored: Stored) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images [N, C, H, W], labels [N] or [N, K], and a name for each class."""
    with torch.no_grad():
        images, labels = (t.detach().cpu().numpy() for t in stored.module())
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    names = [str(n) for n in (stored.spec or {}).get("class_names") or ()]
    known = len(names) >= classes
    kept = labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float32)
    return images.astype(np.float32), kept, names if known else [str(i) for i in range(classes)]


def _pictures(images: np.ndarray, stored: Stored) -> list[np.ndarray]:
    """Uint8 [H, W, 3]."""
    pixels = (to_pixels(images, stored.spec or {}) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return list(pixels.repeat(3 // pixels.shape[3], axis=3))


def _plain(name: str) -> str:
    """A class's name as that of a folder."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "_"


def _facts(images: np.ndarray, again: np.ndarray, what: str) -> dict[str, Any]:
    """What the card tells of the export: how far what is read again is from what was learned."""
    gap = float(np.abs(images - again).max())
    checked = {
        "against": "the student's images",
        "on": f"{what} of all {len(images)} images, read again",
        "largest_difference": gap,
        "relative": gap / max(float(np.abs(images).max()), 1e-12),
    }
    return {"inputs": {"image": list(images.shape[1:])}, "checked": checked}
