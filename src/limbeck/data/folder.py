"""Folders of pictures, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import FIRST_ID, Prepare, build_transform, check_labels
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.labels import carve, encode, shares
from limbeck.data.transforms import Augmentation
from limbeck.errors import UserError, needs_extra
from limbeck.registry import TransformBlock, nearest, register

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
END = 4096
"""Bytes at each end of a file that its fingerprint covers."""
# Of ImageNet's pictures, which networks from elsewhere were mostly trained on.
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


@register("data")
def folder(
    *,
    path: Path,
    image_size: int,
    grayscale: bool = False,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """Pictures in one folder per class: ``path/cat/1.jpg``, or ``path/train/cat/1.jpg`` and ``path/test/...``.

    With a ``train`` folder its neighbours ``test`` and ``val`` are the other splits (``val`` is for testing where
    there is no ``test``); without one, splits are cut by seed, stratified. A picture is scaled so that its shorter side
    is ``image_size`` and cut to the central square. The id of a picture is its place among its split's paths in sorted
    order (so adding a picture changes the ids after it, and the fingerprint with them). Needs the extra ``images``.

    Args:
        path: the folder.
        image_size: side of the square pictures, in pixels.
        grayscale: one channel instead of three.
        mean: per channel of pictures in [0, 1], for normalising; by default ImageNet's.
        std: likewise.
        test_fraction: share for testing, without a ``train`` folder.
        val_fraction: share for validation, likewise.
        augment: transforms of the train pictures.
        split_seed: of the split.

    Raises:
        UserError: no such folder, no pictures, fewer than two classes, a test class that train lacks. A picture that
            cannot be decoded raises it when it is read.
    """
    found = _split_folders(path)
    files = {split: list_images(where) for split, where in found.items()}
    codes, names = encode({s: [f.relative_to(found[s]).parts[0] for f in fs] for s, fs in files.items()})
    pictures: dict[str, Pictures] = {s: Files(path, fs, image_size, grayscale) for s, fs in files.items()}
    spec = image_spec(image_size, grayscale, names, mean, std)
    return picture_data(pictures, codes, spec, test_fraction, val_fraction, augment, split_seed, str(path))


class Pictures(Protocol):
    """Pictures that are decoded one by one."""

    def picture(self, row: int) -> np.ndarray:
        """Decoded row: uint8 [C, S, S]."""
        ...

    def content(self, row: int) -> bytes:
        """Bytes that change when the picture changes."""
        ...


@dataclass(frozen=True)
class Files:
    """Picture files; their content, for a fingerprint, is the path, the size, the first and the last 4 KiB."""

    root: Path
    files: Sequence[Path]
    size: int
    grayscale: bool

    def picture(self, row: int) -> np.ndarray:
        """Decode one file.

        Raises:
            UserError: it is damaged or no picture; names it.
        """
        return read_image(self.files[row], self.size, self.grayscale)

    def content(self, row: int) -> bytes:
        """What the fingerprint covers of one file."""
        file = self.files[row]
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(END)
            stream.seek(max(len(first), size - END))
            return f"{file.relative_to(self.root).as_posix()} {size} ".encode() + first + stream.read()


class PictureSource:
    """Rows of pictures that are decoded when they are asked for.

    Args:
        pictures: what decodes them.
        rows: those that belong to this source, in its order: int64 [N].
        labels: their classes, int64 [N].
        spec: facts, with mean and std.
        transform: augmentation.
        seed: of its draws.
        first_id: id of the first row; ids count on from there.
    """

    slow = True

    def __init__(
        self,
        pictures: Pictures,
        rows: Tensor,
        labels: Tensor,
        spec: DataSpec,
        transform: Augmentation | None = None,
        seed: int = 0,
        first_id: int = 0,
    ) -> None:
        check_labels(labels, spec.classes, "the pictures")
        self.pictures = pictures
        self.rows = rows
        self.labels = labels
        self.spec = spec
        self.first_id = first_id
        self.prepare = Prepare(spec, transform, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows ``indices`` in a view.

        Raises:
            UserError: a picture cannot be decoded; names it.
        """
        decoded = [self.pictures.picture(row) for row in self.rows[indices].tolist()]
        ids = indices + self.first_id
        inputs = self.prepare(torch.from_numpy(np.stack(decoded)), ids, view)
        return {"input": inputs, "label": self.labels[indices], "id": ids, "view": view}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures' content, the labels, the spec and the augmentation."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows.tolist():
            digest.update(hashlib.blake2b(self.pictures.content(row), digest_size=16).digest())
        digest.update(self.labels.numpy().tobytes())
        digest.update(repr((self.spec, self.prepare, self.first_id)).encode())
        return digest.hexdigest()


def image_spec(
    size: int, grayscale: bool, names: tuple[str, ...], mean: Sequence[float] | None, std: Sequence[float] | None
) -> DataSpec:
    """Facts about square pictures, normalised as ImageNet's are unless mean and std say otherwise.

    Raises:
        UserError: a size below 1, a std of 0, or mean and std of another number of channels.
    """
    channels = 1 if grayscale else 3
    means = tuple(mean or (GREY_MEAN if grayscale else RGB_MEAN))
    stds = tuple(std or (GREY_STD if grayscale else RGB_STD))
    if size < 1:
        raise UserError(f"image_size must be at least 1; got {size}")
    if len(means) != channels or len(stds) != channels or min(stds) <= 0:
        raise UserError(f"mean and std need {channels} values each, std above 0; got {list(means)} and {list(stds)}")
    return DataSpec(shape=(channels, size, size), classes=len(names), class_names=names, mean=means, std=stds)


def picture_data(
    pictures: Mapping[str, Pictures],
    labels: Mapping[str, Tensor],
    spec: DataSpec,
    test_fraction: float,
    val_fraction: float,
    augment: Any,
    seed: int,
    where: str,
) -> Data:
    """Data of pictures by split; a single split is cut into train, test and val (stratified, seeded)."""
    rows = {split: torch.arange(len(values)) for split, values in labels.items()}
    if len(labels) == 1:
        count = len(labels["train"])
        cut = carve(labels["train"], seed, **shares(count, test_fraction, val_fraction), what=where)
        rows = {split: r.sort().values for split, r in cut.items() if len(r)}
    transform = build_transform(augment)
    made = {}
    for split, picked in rows.items():
        origin = split if split in pictures else "train"
        used = transform if split == "train" else None
        made[split] = PictureSource(
            pictures[origin], picked, labels[origin][picked], spec, used, first_id=FIRST_ID[split]
        )
    return Data(spec, made["train"], made.get("test"), made.get("val"))


def read_image(file: Any, size: int, grayscale: bool, name: str | None = None) -> np.ndarray:
    """A picture file (path or stream) as uint8 [C, size, size].

    Raises:
        UserError: it cannot be decoded; says which (``name``, by default the path).
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise needs_extra("pillow", "images") from error
    try:
        with Image.open(file) as picture:
            picture.draft("L" if grayscale else "RGB", (2 * size, 2 * size))  # lets JPEG skip detail that is not kept
            return square(picture, size, grayscale)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {name or file} cannot be decoded: {error}") from error


def square(picture: Any, size: int, grayscale: bool) -> np.ndarray:
    """A Pillow picture, upright, its shorter side scaled to ``size``, its central square: uint8 [C, size, size]."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture).convert("L" if grayscale else "RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    array = np.array(picture, dtype=np.uint8)
    return array[None] if grayscale else np.ascontiguousarray(array.transpose(2, 0, 1))


def list_images(where: Path) -> list[Path]:
    """All picture files in the class folders of ``where``, by sorted relative path.

    Raises:
        UserError: there are none.
    """
    classes = [d for d in where.iterdir() if d.is_dir() and not d.name.startswith(".")]
    found = [f for d in classes for f in d.rglob("*") if f.suffix.lower() in ENDINGS and not f.name.startswith(".")]
    if not found:
        raise UserError(f"{where} has no pictures in class folders (like {where.name}/cat/1.jpg)")
    return sorted(found, key=lambda f: f.relative_to(where).as_posix())


def _split_folders(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        hint = nearest(path.name, [d.name for d in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise UserError(f"there is no folder {path}" + (f"; did you mean '{path.parent / hint}'?" if hint else ""))
    found = {
        split: path / word for split, words in SPLITS.items() for word in reversed(words) if (path / word).is_dir()
    }
    if "train" not in found:
        return {"train": path}
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    return found
