"""Some classes of a data set: for teachers that know others than the student, and for tasks within a task."""

from __future__ import annotations

from dataclasses import replace

import torch

from limbeck.data.arrays import ArraySource
from limbeck.data.base import Data, DataSpec, Source
from limbeck.data.images import digits, fashion_mnist
from limbeck.data.labels import balanced_order
from limbeck.errors import UserError
from limbeck.registry import TransformBlock, register
from limbeck.vision.data.grouped import relabelled


@register("data")
def digits_subset(
    *,
    classes: list[int],
    renumber: bool = True,
    train_size: int | None = None,
    test_size: int = 360,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """Some of the ten digits. The splits are those of ``digits``, so no row of one is in another's test split.

    Args:
        classes: the digits, in the order of their new numbers.
        renumber: number the classes 0, 1, ... anew; otherwise they keep their numbers and there are ten.
        train_size: rows of these digits to train on; by default all. Smaller sets are part of larger ones.
        test_size: rows of all ten digits that the test split is taken from.
        val_size: rows of all ten digits that the split to select on is taken from.
        augment: transforms of the train images.
        split_seed: of the stratified split.
    """
    whole = digits(test_size=test_size, val_size=val_size, augment=augment, split_seed=split_seed)
    return only(whole, classes, renumber=renumber, train_size=train_size, seed=split_seed, name="digits_subset")


@register("data")
def fashion_subset(
    *,
    classes: list[int],
    renumber: bool = True,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """Some of the ten classes of ``fashion_mnist``, whose splits these are.

    Args:
        classes: their numbers, in the order of the new ones.
        renumber: number the classes 0, 1, ... anew; otherwise they keep their numbers and there are ten.
        train_size: rows of these classes to train on; by default all. Smaller sets are part of larger ones.
        test_size: rows of all ten classes that the test split is taken from; by default all.
        val_size: rows of all ten classes that the split to select on is taken from.
        augment: transforms of the train images.
        split_seed: of the stratified choice of rows.
    """
    whole = fashion_mnist(test_size=test_size, val_size=val_size, augment=augment, split_seed=split_seed)
    return only(whole, classes, renumber=renumber, train_size=train_size, seed=split_seed, name="fashion_subset")


def only(whole: Data, classes: list[int], *, renumber: bool, train_size: int | None, seed: int, name: str) -> Data:
    """The rows of some classes in every split; they keep their ids.

    Raises:
        UserError: fewer than two classes, one that is not there or twice, or too few rows.
    """
    known = whole.spec.classes or 0
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(known)):
        raise UserError(f"{name}: classes must be at least two different ones of 0..{known - 1}, not {classes}")
    number = torch.full((known,), -1)
    number[classes] = torch.arange(len(classes)) if renumber else torch.tensor(classes)
    names = tuple(whole.spec.class_names[k] for k in classes)
    spec = replace(whole.spec, classes=len(classes), class_names=names) if renumber else whole.spec
    test, val = (_of_classes(s, number, spec) for s in (whole.test, whole.val))
    train = _of_classes(whole.train, number, spec)
    return Data(spec, train if train is None else _first(train, train_size, seed, name), test, val)


def _of_classes(source: Source | None, number: torch.Tensor, spec: DataSpec) -> ArraySource | None:
    if not isinstance(source, ArraySource):
        return None
    return relabelled(source.take((number[source.tensors["label"]] >= 0).nonzero().squeeze(1)), number, spec)


def _first(source: ArraySource, count: int | None, seed: int, name: str) -> ArraySource:
    if count is None:
        return source
    if not 1 <= count <= len(source):
        raise UserError(f"{name}: train_size must lie in 1..{len(source)}, not {count}")
    return source.take(balanced_order(source.tensors["label"], seed)[:count])
