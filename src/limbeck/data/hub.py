"""Tables of the ``datasets`` package that were saved to disk."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import as_inputs
from limbeck.data.base import Data
from limbeck.data.folder import SPLITS, Pictures, image_spec, picture_data, read_image
from limbeck.data.labels import encode
from limbeck.data.npz import LABELS, complete, tensor_data
from limbeck.errors import UserError, needs_extra
from limbeck.losses import IGNORE
from limbeck.registry import TransformBlock, nearest, register


@register("data")
def datasets_dir(
    *,
    path: Path,
    inputs: list[str] | None = None,
    label: str | None = None,
    image_size: int | None = None,
    grayscale: bool = False,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """A ``Dataset`` or ``DatasetDict`` saved with ``save_to_disk``: pictures or numbers, and a label column.

    Pictures are decoded when asked for; columns of numbers are read at once, joined and standardised by the train
    rows. Of a ``DatasetDict`` the splits train, test and validation are used (validation is for testing where there is
    no test). Nothing is downloaded and no code from the folder is run. Needs the extra ``datasets``.

    Args:
        path: the folder.
        inputs: the columns to predict from; by default the one column of pictures, else all columns of numbers.
        label: the column to predict; by default the one of type ``ClassLabel``, or one called like a label.
        image_size: pictures are scaled and cut to this square; by default the first one's shorter side.
        grayscale: one channel instead of three.
        mean: per channel of pictures in [0, 1]; by default ImageNet's.
        std: likewise.
        test_fraction: share for testing where there is a single split.
        val_fraction: share for validation, likewise.
        augment: transforms of the train pictures.
        split_seed: of the split.

    Raises:
        UserError: no such folder or column, columns of another type, fewer than two classes.
    """
    tables = load_tables(path)
    train = tables["train"]
    target = label_column(train, label, path)
    columns = input_columns(train, inputs, target, path)
    codes, names = read_labels(tables, target)
    if is_image(train.features[columns[0]]):
        size = image_size or shorter_side(train, columns[0])
        spec = image_spec(size, grayscale, names, mean, std)
        pictures: dict[str, Pictures] = {s: Cells(t, columns[0], size, grayscale) for s, t in tables.items()}
        return picture_data(pictures, codes, spec, test_fraction, val_fraction, augment, split_seed, str(path))
    values = {split: numeric(table, columns, f"{path} ({split})") for split, table in tables.items()}
    splits = {split: (values[split], codes[split]) for split in tables}
    splits = complete(splits, test_fraction, val_fraction, split_seed, str(path))
    return tensor_data(splits, names, True, augment, str(path))


class Cells:
    """A column of pictures."""

    def __init__(self, table: Any, column: str, size: int, grayscale: bool) -> None:
        self.table = undecoded(table, column)
        self.column, self.size, self.grayscale = column, size, grayscale

    def picture(self, row: int) -> np.ndarray:
        """Decode one cell.

        Raises:
            UserError: it is empty, damaged or no picture; says which row.
        """
        return read_image(self._open(row), self.size, self.grayscale, f"in row {row} of column '{self.column}'")

    def content(self, row: int) -> bytes:
        """The undecoded bytes."""
        cell = self.table[row][self.column]
        return (cell["bytes"] or str(cell["path"]).encode()) if cell else b""

    def _open(self, row: int) -> Any:
        cell = self.table[row][self.column]
        if not cell:
            raise UserError(f"row {row} of column '{self.column}' has no picture")
        return io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]


def undecoded(table: Any, column: str) -> Any:
    """The table with that column alone, its pictures as bytes."""
    from datasets import Image

    return table.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))


def shorter_side(table: Any, column: str) -> int:
    """Of the first picture, in pixels."""
    width, height = table.with_format(None)[0][column].size
    return int(min(width, height))


def load_tables(path: Path) -> dict[str, Any]:
    """The saved tables by split (train, test, val); a single one counts as train.

    Raises:
        UserError: there is nothing saved, or no train split.
    """
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise needs_extra("datasets", "datasets") from error
    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds nothing that datasets' save_to_disk wrote: {error}") from error
    if not isinstance(loaded, DatasetDict):
        return {"train": loaded}
    tables = {split: loaded[word] for split, words in SPLITS.items() for word in reversed(words) if word in loaded}
    if "train" not in tables:
        raise UserError(f"{path} has the splits {', '.join(loaded)}, but no train")
    if "test" not in tables and "val" in tables:
        tables["test"] = tables.pop("val")
    return tables


def label_column(table: Any, wanted: str | None, path: Path) -> str:
    """The name of the label column.

    Raises:
        UserError: there is none, or no such one.
    """
    if wanted is not None:
        return _column(table, wanted, path)
    typed = [name for name, feature in table.features.items() if type(feature).__name__ == "ClassLabel"]
    named = [name for name in LABELS if name in table.features]
    if len(typed) == 1 or (not typed and named):
        return typed[0] if typed else named[0]
    listed = ", ".join(table.features)
    raise UserError(f"which column of {path} is the label? say label: NAME, one of {listed}")


def input_columns(table: Any, wanted: Sequence[str] | None, label: str, path: Path) -> list[str]:
    """Names of the columns to predict from: one of pictures, or some of numbers.

    Raises:
        UserError: there is none, no such one, or pictures are mixed with something else.
    """
    if wanted:
        names = [_column(table, name, path) for name in wanted]
    else:
        others = {name: feature for name, feature in table.features.items() if name != label}
        images = [name for name, feature in others.items() if is_image(feature)]
        names = images or [name for name, feature in others.items() if is_numeric(feature)]
    if not names or (len(names) > 1 and any(is_image(table.features[n]) for n in names)) or label in names:
        listed = ", ".join(table.features)
        raise UserError(f"inputs of {path} must be one column of pictures or some of numbers, of {listed}")
    return names


def is_image(feature: Any) -> bool:
    """Whether a column holds pictures."""
    return type(feature).__name__ == "Image"


def is_numeric(feature: Any) -> bool:
    """Whether a column holds numbers, or lists or arrays of them."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return any(getattr(feature, "dtype", "").startswith(kind) for kind in ("int", "uint", "float", "bool"))


def numeric(table: Any, columns: Sequence[str], where: str) -> Tensor:
    """Columns of numbers side by side: one array column keeps its shape, several are flattened. float32 or uint8.

    Raises:
        UserError: a column that is no array of numbers of one shape.
    """
    values = table.with_format("numpy", columns=list(columns))[:]
    arrays = [np.asarray(values[name]) for name in columns]
    for name, array in zip(columns, arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise UserError(f"column '{name}' of {where} does not hold numbers of one shape in every row")
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return as_inputs(arrays[0], f"column '{columns[0]}' of {where}")
    return torch.from_numpy(np.concatenate([a.reshape(len(a), -1).astype(np.float32) for a in arrays], axis=1))


def read_labels(tables: Mapping[str, Any], column: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Class indices by split, and the classes' names; a ``ClassLabel`` of -1 is unlabelled."""
    names = getattr(tables["train"].features[column], "names", None)
    words: dict[str, Any] = {split: list(table.with_format(None)[column]) for split, table in tables.items()}
    if names:
        words = {split: np.array([IGNORE if v in (None, -1) else v for v in vs]) for split, vs in words.items()}
    return encode(words, names)


def _column(table: Any, name: str, path: Path) -> str:
    if name not in table.features:
        hint = nearest(name, table.features)
        says = f"; did you mean '{hint}'?" if hint else f" (it has {', '.join(table.features)})"
        raise UserError(f"{path} has no column '{name}'{says}")
    return name
