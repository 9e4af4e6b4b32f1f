"""Labels: from what users have (numbers, names) to class indices 0..K-1, and the order that splits are cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import IGNORE


def encode(splits: Mapping[str, Any], names: Sequence[str] | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Class indices (int64 [N]) of each split's labels, and the classes' names.

    Integers 0..K-1 that all occur stay as they are, and so do integers below ``len(names)`` where names are given.
    Other labels (texts, booleans, integers with gaps) are numbered in sorted order of the train split, and named after
    themselves. The integer -100 marks a row without a label.

    Raises:
        UserError: labels that are no classes, fewer than two classes in train, or one that train does not have.
    """
    arrays = {split: _flat(labels, split) for split, labels in splits.items()}
    train = arrays.get("train", next(iter(arrays.values())))
    if names and _integers(train):
        known: np.ndarray = np.arange(len(names))
        words = tuple(str(n) for n in names)
    else:
        known = _known(train)
        words = tuple(str(v) for v in known.tolist())
    distinct = np.unique(train[train != IGNORE] if _integers(train) else train)
    if len(distinct) < 2:
        had = f"is '{distinct[0]}'" if len(distinct) else "is missing"
        raise UserError(f"every label of the train split {had}: a classifier needs at least two classes")
    return {split: _codes(array, known, words, split) for split, array in arrays.items()}, words


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """An order of all rows (int64 [N]) of which every prefix has the classes in their overall proportions.

    Within a class the order is a permutation drawn from the seed. The k-th of a class's n rows is placed at
    (k + 1/2) / n, so a prefix of any length holds each class to within one row of its share.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    rank = torch.cat([(torch.arange(int(n), dtype=torch.float64) + 0.5) / int(n) for n in counts])
    where = torch.empty_like(rank)
    where[by_class] = rank
    # Going through the shuffled rows breaks ties between classes at random, not always for the first class.
    return shuffled[torch.argsort(where[shuffled], stable=True)]


def carve(
    labels: Tensor, seed: int, *, test: int = 0, val: int = 0, train: int | None = None, what: str = "the data"
) -> dict[str, Tensor]:
    """Rows (int64) of stratified, disjoint splits. Test and val do not depend on ``train``; smaller trains are nested.

    Args:
        labels: class indices, int64 [N].
        seed: of the order.
        test: rows of the test split; 0 for none.
        val: rows of the val split; 0 for none.
        train: rows of the train split; by default all that remain.
        what: names the data in messages.

    Raises:
        UserError: more rows are asked for than there are, or none is left to train on.
    """
    left = len(labels) - test - val
    wanted = left if train is None else train
    if min(test, val) < 0 or wanted < 1 or wanted > left:
        asked = f"{'the rest' if train is None else train} to train, {val} to validate and {test} to test"
        raise UserError(f"{what} has {len(labels)} rows, which cannot be split into {asked}")
    order = balanced_order(labels, seed)
    return {"train": order[test + val :][:wanted], "val": order[test : test + val], "test": order[:test]}


def shares(count: int, test_fraction: float, val_fraction: float = 0.0) -> dict[str, int]:
    """Rows for test and val, from fractions: at least one where the fraction is not 0.

    Raises:
        UserError: fractions that leave nothing to train on.
    """
    if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
        raise UserError(
            f"test_fraction {test_fraction} and val_fraction {val_fraction} must be at least 0, sum below 1"
        )
    return {
        "test": max(1, round(count * test_fraction)) if test_fraction else 0,
        "val": max(1, round(count * val_fraction)) if val_fraction else 0,
    }


def _flat(labels: Any, split: str) -> np.ndarray:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"the {split} labels have shape {array.shape}; expected one class per row, shape [N]")
    if array.dtype.kind == "O":
        array = array.astype(str)
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    return _whole(array, split) if array.dtype.kind == "f" else array


def _whole(array: np.ndarray, split: str) -> np.ndarray:
    if not np.isfinite(array).all() or (array != np.round(array)).any():
        raise UserError(f"the {split} labels are not whole numbers, e.g. {array[:3].tolist()}: classes are needed")
    return array.astype(np.int64)


def _integers(array: np.ndarray) -> bool:
    return bool(array.dtype.kind in "iu")


def _known(train: np.ndarray) -> np.ndarray:
    if not _integers(train):
        return np.unique(train)
    return np.unique(train[train != IGNORE])


def _codes(array: np.ndarray, known: np.ndarray, words: tuple[str, ...], split: str) -> Tensor:
    if array.dtype.kind != known.dtype.kind and not (_integers(array) and _integers(known)):
        raise UserError(f"the {split} labels are {array.dtype}, the train labels {known.dtype}: they must be alike")
    place = np.clip(np.searchsorted(known, array), 0, max(len(known) - 1, 0))
    unlabelled = array == IGNORE if _integers(array) else np.zeros(len(array), dtype=bool)
    strange = (known[place] != array) & ~unlabelled
    if strange.any():
        row = int(strange.argmax())
        listed = ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
        raise UserError(f"the {split} label '{array[row]}' (row {row}) is none of the {len(words)} classes: {listed}")
    return torch.from_numpy(np.where(unlabelled, IGNORE, place).astype(np.int64))
