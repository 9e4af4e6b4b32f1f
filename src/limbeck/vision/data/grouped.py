"""Digits in few classes: problems whose classes have classes inside."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import torch

from limbeck.data.arrays import ArraySource
from limbeck.data.base import Data, DataSpec, Source
from limbeck.data.images import digits
from limbeck.errors import UserError
from limbeck.registry import TransformBlock, register

DIGITS = 10


@register("data")
def digits_grouped(
    *,
    groups: list[list[int]] | None = None,
    train_size: int | None = None,
    test_size: int = 360,
    val_size: int = 0,
    augment: list[TransformBlock] | None = None,
    split_seed: int = 0,
) -> Data:
    """The digits, told apart by group only. The splits are those of ``digits``, stratified by digit.

    Args:
        groups: the digits of each class, each digit once; by default even and odd.
        train_size: rows to train on; by default all that are left. Smaller sets are part of larger ones.
        test_size: rows to test on, the same for every ``train_size``.
        val_size: rows to select on.
        augment: transforms of the train images.
        split_seed: of the stratified split.

    Raises:
        UserError: a digit is in no group, or in more than one.
    """
    groups = groups or [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    if sorted(chain.from_iterable(groups)) != list(range(DIGITS)) or len(groups) < 2:
        raise UserError(f"digits_grouped: each digit must be in one of at least two groups, not {groups}")
    whole = digits(
        train_size=train_size, test_size=test_size, val_size=val_size, augment=augment, split_seed=split_seed
    )
    class_of = torch.empty(DIGITS, dtype=torch.int64)
    for number, members in enumerate(groups):
        class_of[members] = number
    names = tuple("".join(map(str, members)) for members in groups)
    spec = replace(whole.spec, classes=len(groups), class_names=names)
    train, test, val = (relabelled(s, class_of, spec) for s in (whole.train, whole.test, whole.val))
    return Data(spec, train, test, val)


def relabelled(source: Source | None, class_of: torch.Tensor, spec: DataSpec) -> ArraySource | None:
    """A source in memory with other labels: int64 [K], the new class of each old one. None for any other source."""
    if not isinstance(source, ArraySource):
        return None
    fields = {**source.tensors, "label": class_of[source.tensors["label"]]}
    return ArraySource(fields, spec, source.prepare.transform, source.prepare.seed, source.name)
