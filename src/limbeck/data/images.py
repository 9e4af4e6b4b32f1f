"""Small image data sets found by name: digits comes with scikit-learn, the others lie under ``LIMBECK_DATA``."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import as_images, from_splits
from limbeck.data.base import Data, DataSpec
from limbeck.data.labels import carve
from limbeck.data.npz import load_npz
from limbeck.errors import MissingDataError, UserError, needs_extra
from limbeck.paths import cache_root, data_root
from limbeck.registry import TransformBlock, register

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


@register("data")
def digits(
    *,
    train_size: int | None = None,
    test_size: int = 360,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """1,797 handwritten digits of 8 x 8 grey pixels, as scikit-learn carries them.

    Args:
        train_size: rows to train on; by default all that are left. Smaller sets are part of larger ones.
        test_size: rows to test on, the same for every ``train_size``.
        val_size: rows to select on.
        augment: transforms of the train images.
        split_seed: of the stratified split.
    """
    images, labels = _digits()
    # Mean and deviation of the whole set, so that every split and subset is scaled alike.
    spec = _spec((1, 8, 8), [str(i) for i in range(10)], (0.3053,), (0.3760,), "CC BY 4.0")
    scaled = (images / 16.0 - spec.mean[0]) / spec.std[0]
    rows = carve(labels, split_seed, test=test_size, val=val_size, train=train_size, what="digits")
    return from_splits({split: (scaled[r], labels[r]) for split, r in rows.items()}, spec, augment, "digits")


@register("data")
def fashion_mnist(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28, from ``fashion_mnist.npz`` in LIMBECK_DATA.

    Args:
        train_size: rows of the train file to train on; by default all that ``val_size`` leaves.
        test_size: rows of the test file; by default all.
        val_size: rows of the train file to select on.
        augment: transforms of the train images.
        split_seed: of the stratified choice of rows. Smaller sets are part of larger ones.
    """
    file = load_npz(data_file("fashion_mnist.npz"))
    spec = _spec((1, 28, 28), file["classes"].tolist(), (0.2860,), (0.3530,), "MIT")
    train, test = _pair(file["x_train"], file["y_train"]), _pair(file["x_test"], file["y_test"])
    return _subsets(train, test, spec, train_size, test_size, val_size, augment, split_seed, "fashion_mnist")


@register("data")
def cifar10(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """CIFAR-10 as JPEG (lossy: not comparable with published numbers), from ``cifar10_jpeg.npz`` in LIMBECK_DATA.

    50,000 + 10,000 colour pictures, 32 x 32. They are decoded once and kept in the cache folder. Needs the extra
    ``images``. The arguments are those of ``fashion_mnist``.
    """
    path = data_file("cifar10_jpeg.npz")
    parts = decoded(path)
    spec = _spec((3, 32, 32), _names(path), CIFAR_MEAN, CIFAR_STD, None)
    train, test = ((parts[f"x_{s}"], parts[f"y_{s}"].long()) for s in ("train", "test"))
    return _subsets(train, test, spec, train_size, test_size, val_size, augment, split_seed, "cifar10")


@register("data")
def cifar100(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """CIFAR-100 in exact pixels, from ``cifar100.npz`` in LIMBECK_DATA; ``docs/recipes.md`` says how to make that file.

    50,000 + 10,000 colour pictures, 32 x 32, with their 100 fine labels. The arguments are those of ``fashion_mnist``.
    """
    file = load_npz(data_file("cifar100.npz"))
    spec = _spec((3, 32, 32), file["classes"].tolist(), CIFAR100_MEAN, CIFAR100_STD, None)
    train, test = _pair(file["x_train"], file["y_train"]), _pair(file["x_test"], file["y_test"])
    return _subsets(train, test, spec, train_size, test_size, val_size, augment, split_seed, "cifar100")


@register("data")
def cifar10_lossless(
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """The first 4,000 CIFAR-10 pictures in exact pixels, from ``cifar10_lossless_4k.npz`` in LIMBECK_DATA.

    The first three quarters of the file are for training, the last for testing. The pictures also occur among the
    train pictures of ``cifar10``: do not train on one and test on the other. The arguments are those of
    ``fashion_mnist``.
    """
    file = load_npz(data_file("cifar10_lossless_4k.npz"))
    spec = _spec((3, 32, 32), file["classes"].tolist(), CIFAR_MEAN, CIFAR_STD, None)
    images, labels = _pair(file["x"], file["y"])
    cut = len(labels) * 3 // 4
    train, test = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    return _subsets(train, test, spec, train_size, test_size, val_size, augment, split_seed, "cifar10_lossless")


def data_file(name: str) -> Path:
    """A data file by name.

    Raises:
        MissingDataError: it is not in the data folder; says what to set.
    """
    path = data_root() / name
    if not path.is_file():
        folder = data_root() if os.environ.get("LIMBECK_DATA") else f"{data_root()} (LIMBECK_DATA is not set)"
        raise MissingDataError(f"there is no {name} in {folder}: set LIMBECK_DATA to the folder that holds it")
    return path


def _digits() -> tuple[Tensor, Tensor]:
    """Pixels 0..16 as float32 [N, 1, 8, 8] and labels."""
    found = importlib.util.find_spec("sklearn")
    file = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else Path()
    file = file / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():  # importing sklearn.datasets takes a second or two, reading its file a few milliseconds
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        table = np.column_stack([bunch.data, bunch.target]).astype(np.float32)
    return torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8).copy()), torch.from_numpy(table[:, -1].astype(np.int64))


def _spec(
    shape: tuple[int, ...], names: list[str], mean: tuple[float, ...], std: tuple[float, ...], licence: str | None
) -> DataSpec:
    return DataSpec(shape=shape, classes=len(names), class_names=tuple(names), mean=mean, std=std, licence=licence)


def _pair(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return as_images(torch.from_numpy(images)), torch.from_numpy(labels.astype(np.int64))


def _subsets(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    spec: DataSpec,
    train_size: int | None,
    test_size: int | None,
    val_size: int,
    augment: Any,
    seed: int,
    name: str,
) -> Data:
    rows = carve(train[1], seed, val=val_size, train=train_size, what=f"the train file of {name}")
    judged = carve(test[1], seed, train=test_size, what=f"the test file of {name}")["train"]
    splits = {split: (train[0][r], train[1][r]) for split, r in rows.items() if split != "test"}
    return from_splits({**splits, "test": (test[0][judged], test[1][judged])}, spec, augment, name)


# ---------------------------------------------------------------------------------------------------------------------
# JPEG files packed in an array


def decoded(path: Path) -> dict[str, Tensor]:
    """``x_train``, ``x_test`` (uint8 [N, C, H, W]), ``y_train`` and ``y_test`` of a file of packed JPEGs.

    The file holds per split the JPEG files back to back (``jpeg_train``), where each starts and the last one ends
    (``offsets_train``), and labels (``y_train``). What was decoded is kept in the cache folder under the file's hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    kept = cache_root() / "decoded" / f"{path.stem}-{digest}.safetensors"
    if kept.is_file():
        try:
            return load_file(kept)
        except (OSError, SafetensorError):
            kept.unlink(missing_ok=True)
    tensors = _decode(path)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, partial)
        partial.replace(kept)
    except OSError:
        pass  # a cache that cannot be written only costs the time of decoding again
    return tensors


def _decode(path: Path) -> dict[str, Tensor]:
    file = load_npz(path)
    tensors: dict[str, Tensor] = {}
    for split in ("train", "test"):
        images = _unpack(file[f"jpeg_{split}"], file[f"offsets_{split}"], f"{path} ({split})")
        tensors[f"x_{split}"] = as_images(torch.from_numpy(images)).contiguous()
        tensors[f"y_{split}"] = torch.from_numpy(file[f"y_{split}"].astype(np.uint8))
    return tensors


def _unpack(packed: np.ndarray, offsets: np.ndarray, where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise needs_extra("pillow", "images") from error
    blob = packed.tobytes()
    images = []
    for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(blob[start:end]), formats=("JPEG",)).convert("RGB")))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"image {number} of {where} cannot be decoded: {error}") from error
    return np.stack(images)


def _names(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as file:
        names: list[str] = file["classes"].tolist()
    return names
