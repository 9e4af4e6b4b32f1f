"""Arrays from ``.npz`` files, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import as_inputs, channel_stats, from_splits
from limbeck.data.base import Data, DataSpec
from limbeck.data.labels import carve, encode, shares
from limbeck.errors import UserError
from limbeck.registry import TransformBlock, nearest, register

INPUTS = ("x", "X", "images", "image", "data", "inputs", "input", "features")
LABELS = ("y", "Y", "labels", "label", "target", "targets")
SPLITS = {"train": ("train", "training"), "test": ("test",), "val": ("val", "valid", "validation")}


@register("data")
def npz(
    *,
    path: Path,
    inputs: str | None = None,
    labels: str | None = None,
    class_names: list[str] | None = None,
    normalise: bool = True,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """Classification data in one ``.npz`` file.

    Arrays are found by name: ``x_train``, ``y_train``, ``x_test``, ``y_test`` (also ``train_x``, ``images``,
    ``labels``, ``target``...; ``val`` likewise), or ``x`` and ``y`` alone, from which a stratified test split is cut.

    Args:
        path: the file.
        inputs: name of the input arrays without the split (``x`` for ``x_train``); by default found.
        labels: name of the label arrays without the split.
        class_names: names of the classes; by default the array ``classes`` of the file, or the labels themselves.
        normalise: bring inputs to mean 0 and deviation 1 by the train split: images per channel, other values each.
        test_fraction: share cut off for testing where the file has no test arrays.
        val_fraction: share of the train arrays cut off for validation where the file has no val arrays.
        augment: transforms of the train images.
        split_seed: of the split.

    Raises:
        UserError: no such file, no such arrays, or arrays that do not fit together.
    """
    arrays = load_npz(path)
    named = class_names or (arrays["classes"].tolist() if "classes" in arrays else None)
    pairs = find_pairs(arrays, inputs, labels, str(path))
    coded, words = encode({split: y for split, (_, y) in pairs.items()}, named)
    tensors = {split: as_inputs(x, f"the {split} inputs of {path}") for split, (x, _) in pairs.items()}
    same_length(tensors, coded, str(path))
    splits = complete({s: (tensors[s], coded[s]) for s in pairs}, test_fraction, val_fraction, split_seed, str(path))
    return tensor_data(splits, words, normalise, augment, str(path))


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, all read.

    Raises:
        UserError: it is missing, is no ``.npz`` file, or holds pickled objects.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz without pickle: {error}") from error


def find_pairs(
    arrays: Mapping[str, np.ndarray], inputs: str | None, labels: str | None, where: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and labels by split; a single pair counts as train.

    Raises:
        UserError: inputs or labels of the train split are not there, or a split has only one of them.
    """
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, words in SPLITS.items():
        x = _find(arrays, (inputs,) if inputs else INPUTS, words, alone=split == "train")
        y = _find(arrays, (labels,) if labels else LABELS, words, alone=split == "train")
        if x and y:
            pairs[split] = arrays[x], arrays[y]
        elif split == "train" or x or y:
            asked = (inputs or "x") if not x else (labels or "y")
            hint = nearest(asked, arrays)
            says = f"; did you mean '{hint}'?" if hint else ""
            listed = ", ".join(sorted(arrays))
            raise UserError(f"{where} has no {split} array called like '{asked}' (it has {listed}){says}")
    return pairs


def _find(arrays: Mapping[str, Any], stems: Iterable[str], splits: Iterable[str], alone: bool) -> str | None:
    for stem in stems:
        names = [f"{a}_{b}" for split in splits for a, b in ((stem, split), (split, stem))]
        for name in [*names, *([stem] if alone else [])]:
            if name in arrays:
                return name
    return None


def same_length(inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], where: str) -> None:
    """Raises :class:`UserError` where a split has another number of inputs than of labels."""
    for split, x in inputs.items():
        if len(x) != len(labels[split]):
            raise UserError(f"the {split} split of {where} has {len(x)} inputs but {len(labels[split])} labels")


def complete(
    splits: Mapping[str, tuple[Tensor, Tensor]], test_fraction: float, val_fraction: float, seed: int, where: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """The splits, with a missing test or val cut off train (stratified, seeded)."""
    x, y = splits["train"]
    wanted = shares(len(x), 0 if "test" in splits else test_fraction, 0 if "val" in splits else val_fraction)
    if not any(wanted.values()):
        return dict(splits)
    rows = carve(y, seed, **wanted, what=where)
    cut = {split: (x[r], y[r]) for split, r in rows.items() if len(r)}
    return {**cut, **{split: pair for split, pair in splits.items() if split != "train"}}


def tensor_data(
    splits: Mapping[str, tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    normalise: bool,
    augment: Any,
    where: str,
) -> Data:
    """Data of splits in memory, normalised by their train split: uint8 images after the gather, other values now."""
    inputs = splits["train"][0]
    spec = DataSpec(shape=tuple(inputs.shape[1:]), classes=len(class_names), class_names=class_names)
    if normalise and inputs.dtype == torch.uint8:
        mean, std = channel_stats(inputs)
        spec = replace(spec, mean=mean, std=std)
    elif normalise:
        splits = _standardised(splits)
    return from_splits(splits, spec, augment, where)


def _standardised(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    train = splits["train"][0].double()
    over = (0, 2, 3) if train.dim() == 4 else (0,)
    mean = train.mean(dim=over, keepdim=True)
    std = train.std(dim=over, keepdim=True, unbiased=False)
    std[std < 1e-12] = 1.0
    return {split: (((x.double() - mean) / std).float(), y) for split, (x, y) in splits.items()}
