"""Data that a user's own function returns, turned into :class:`~limbeck.data.base.Data`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from limbeck.data.arrays import FIRST_ID, Prepare, as_inputs, check_labels, fingerprint
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.labels import carve, encode, shares
from limbeck.data.npz import INPUTS, LABELS, complete, same_length, tensor_data
from limbeck.data.transforms import Augmentation
from limbeck.engine.noise import key_of
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import nearest

NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
ACCEPTED = (
    "a Data, a map-style Dataset, arrays (x, y), a tuple (train, test[, val]) "
    "or a map {'train': ..., 'test': ...} of data sets or of pairs (x, y)"
)
TEST_FRACTION = 0.2
SAMPLED = 256
"""Rows that the fingerprint of a user's data set covers."""


def as_data(value: Any, where: str = "the data") -> Data:
    """``Data`` from what a user's function returned.

    Takes a ``Data``; a map-style ``Dataset`` or a pair of arrays ``(x, y)``, of which a fifth is cut off for testing
    (stratified, seed 0); a tuple ``(train, test[, val])`` or a map of either. Labels of pairs may be texts or numbers;
    labels of data sets are integers from 0. Class names come from ``.classes``. uint8 arrays are images: scaled to
    [0, 1], and pairs also normalised by their train split. Other numbers are taken as they are.

    Raises:
        UserError: anything else, with what would be right; no rows, fewer than two classes, unequal lengths.
    """
    if isinstance(value, Data):
        return _checked(value, where)
    splits = _by_split(value, where)
    if all(_is_source(v) for v in splits.values()):
        first = splits.get("train", next(iter(splits.values())))
        return _checked(Data(first.spec, splits.get("train"), splits.get("test"), splits.get("val")), where)
    if "train" not in splits:
        raise UserError(f"{where} has no train split; expected {ACCEPTED}")
    pairs = {split: _arrays(v) for split, v in splits.items()}
    if all(pair is not None for pair in pairs.values()):
        return _from_pairs({split: pair for split, pair in pairs.items() if pair is not None}, splits["train"], where)
    for split, v in splits.items():
        if not _is_dataset(v):
            raise UserError(f"the {split} split of {where} is {_described(v)}; expected {ACCEPTED}")
    return _from_datasets(splits, where)


class MapSource:
    """A map-style data set of ``(input, label, ...)`` or maps like ``{"image": ..., "label": ...}`` as a source.

    Inputs may be tensors, arrays or Pillow pictures; uint8 ones are images, scaled to [0, 1] and normalised by the
    spec. Random augmentation inside the data set repeats itself: around each item the global generators of Python,
    NumPy and PyTorch are seeded by (seed, id, view), and put back afterwards. (Generators that the data set keeps for
    itself are out of reach.) Therefore it loads in this thread, or in worker processes, never in a second thread.

    The fingerprint covers the type, the length and up to 256 rows spread evenly; a data set with a string attribute
    ``fingerprint`` is taken at its word.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        spec: facts about it.
        rows: the rows to use, int64 [N]; by default all.
        transform: augmentation by this library, on top.
        seed: of all draws.
        first_id: id of the first row; ids count on from there.
        name: names it in messages.
    """

    slow = True
    threadsafe = False

    def __init__(
        self,
        dataset: Any,
        spec: DataSpec,
        rows: Tensor | None = None,
        transform: Augmentation | None = None,
        seed: int = 0,
        first_id: int = 0,
        name: str = "the data set",
    ) -> None:
        self.dataset = dataset
        self.spec = spec
        self.rows = torch.arange(len(dataset)) if rows is None else rows
        self.first_id = first_id
        self.seed = seed
        self.name = name
        self.prepare = Prepare(spec, transform, seed)
        if len(self.rows) == 0:
            raise UserError(f"{name} has no rows")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows ``indices`` in a view.

        Raises:
            UserError: items of unlike shape, values that are not finite, labels that are no classes.
        """
        items = self._items(indices, view)
        shapes = [x.shape for x, _ in items]
        odd = next((i for i, s in enumerate(shapes) if s != shapes[0]), None)
        if odd is not None:
            says = f"{list(shapes[odd])}, row {self._row(indices, 0)} {list(shapes[0])}"
            raise UserError(f"row {self._row(indices, odd)} of {self.name} has shape {says}: make them alike")
        inputs, labels = torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])
        if inputs.is_floating_point() and not torch.isfinite(inputs).all():
            bad = int((~torch.isfinite(inputs.flatten(1))).any(dim=1).nonzero()[0])
            raise UserError(f"row {self._row(indices, bad)} of {self.name} has values that are not finite")
        check_labels(labels, self.spec.classes, self.name)
        ids = indices + self.first_id
        return {"input": self.prepare(inputs, ids, view), "label": labels, "id": ids, "view": view}

    @cached_property
    def fingerprint(self) -> str:
        """See the class."""
        own = getattr(self.dataset, "fingerprint", None)
        about = (type(self.dataset).__qualname__, len(self), self.spec, self.prepare, self.first_id)
        if isinstance(own, str):
            return fingerprint({"rows": self.rows}, own, *about)
        sampled = torch.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=torch.float64).long()
        digest = hashlib.blake2b(fingerprint({"rows": self.rows}, *about).encode(), digest_size=16)
        for x, y in self._items(sampled, 0):
            digest.update(fingerprint({"input": x}, y).encode())
        return digest.hexdigest()

    def _items(self, indices: Tensor, view: int) -> list[tuple[Tensor, int]]:
        with global_draws_kept():
            return [self._item(number, view) for number in indices.tolist()]

    def _item(self, number: int, view: int) -> tuple[Tensor, int]:
        seed_global_draws(key_of("item", self.seed, number + self.first_id, view))
        row = int(self.rows[number])
        return read_item(self.dataset[row], f"row {row} of {self.name}")

    def _row(self, indices: Tensor, place: int) -> int:
        return int(self.rows[indices[place]])


def read_item(item: Any, where: str) -> tuple[Tensor, int]:
    """Input tensor and label of one item of a data set.

    Raises:
        UserError: it is no pair and no map with an input and a label.
    """
    if isinstance(item, Mapping):
        x = next((item[k] for k in (*INPUTS, "pixel_values", "img") if k in item), None)
        y = next((item[k] for k in LABELS if k in item), None)
    else:
        x, y = item[:2] if isinstance(item, tuple | list) and len(item) >= 2 else (None, None)
    if x is None or y is None:
        raise UserError(f"{where} is {_described(item)}; expected (input, label) or {{'input': ..., 'label': ...}}")
    return _one_input(x, where), _one_label(y, where)


@contextmanager
def global_draws_kept() -> Iterator[None]:
    """Put the global generators of Python, NumPy and PyTorch (CPU) back as they were at the end."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_global_draws(key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (CPU)."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & (2**63 - 1))


# ---------------------------------------------------------------------------------------------------------------------
# What users return


def _by_split(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        strange = [k for k in value if k not in NAMES]
        if strange or not value:
            hint = nearest(str(strange[0]), NAMES) if strange else None
            says = f"; did you mean '{hint}'?" if hint else ""
            raise UserError(
                f"{where} is a map with the keys {sorted(map(str, value))}; expected train, test, val{says}"
            )
        return {NAMES[k]: v for k, v in value.items()}
    if isinstance(value, tuple | list) and not _is_pair(value):
        if not 2 <= len(value) <= 3:
            raise UserError(f"{where} is {_described(value)}; expected {ACCEPTED}")
        return dict(zip(("train", "test", "val"), value, strict=False))
    if _is_pair(value) or _is_dataset(value) or _is_source(value):
        return {"train": value}
    says = " (does the function return it?)" if value is None else ""
    raise UserError(f"{where} is {_described(value)}{says}; expected {ACCEPTED}")


def _is_source(value: Any) -> bool:
    # Not isinstance(value, Source): it would look at, and so compute, the fingerprint.
    return callable(getattr(value, "batch", None)) and isinstance(getattr(value, "spec", None), DataSpec)


def _is_dataset(value: Any) -> bool:
    if isinstance(value, IterableDataset):
        return False
    plain = Tensor | np.ndarray | list | tuple | Mapping | str
    return not isinstance(value, plain) and hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _is_array(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return True
    if hasattr(value, "__array__") and not _is_source(value):
        return True
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float | str | list | bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_array(v) for v in value)


def _arrays(value: Any) -> tuple[Any, Any] | None:
    """The pair of arrays that a value holds, if it does."""
    if _is_pair(value):
        return value[0], value[1]
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        return value.tensors[0], value.tensors[1]
    return None


def _from_pairs(pairs: Mapping[str, tuple[Any, Any]], train: Any, where: str) -> Data:
    inputs = {split: as_inputs(x, f"the {split} inputs of {where}") for split, (x, _) in pairs.items()}
    for split, x in inputs.items():
        if len(x) == 0:
            raise UserError(f"the {split} split of {where} has no rows")
    names = _class_names(train)
    codes, words = encode({split: y for split, (_, y) in pairs.items()}, names)
    same_length(inputs, codes, where)
    splits = {split: (inputs[split], codes[split]) for split in pairs}
    if len(splits) == 1:
        splits = complete(splits, TEST_FRACTION, 0.0, 0, where)
    return tensor_data(splits, words, inputs["train"].dtype == torch.uint8, None, where)


def _from_datasets(datasets: Mapping[str, Any], where: str) -> Data:
    train = datasets["train"]
    for split, dataset in datasets.items():
        if len(dataset) == 0:
            raise UserError(f"the {split} split of {where} has no rows")
    names = _class_names(train)
    labels = None if names and len(datasets) > 1 else labels_of(train, f"the train split of {where}")
    classes = len(names) if names else int(labels.max()) + 1 if labels is not None else 0
    if labels is not None:
        check_labels(labels, classes if names else None, f"the train split of {where}")
        _refuse_one_class(labels, where)
    with global_draws_kept():
        seed_global_draws(0)
        first, _ = read_item(train[0], f"row 0 of {where}")
    spec = DataSpec(shape=tuple(first.shape), classes=classes, class_names=names or tuple(map(str, range(classes))))
    rows = {split: torch.arange(len(d)) for split, d in datasets.items()}
    if labels is not None and len(datasets) == 1:
        cut = carve(labels, 0, **shares(len(train), TEST_FRACTION), what=where)
        rows = {split: r.sort().values for split, r in cut.items() if len(r)}
    made = {
        s: MapSource(datasets.get(s, train), spec, r, first_id=FIRST_ID[s], name=f"the {s} split of {where}")
        for s, r in rows.items()
    }
    return Data(spec, made["train"], made.get("test"), made.get("val"))


def labels_of(dataset: Any, where: str) -> Tensor:
    """All labels of a map-style data set: from ``.targets`` or ``.labels``, else by reading every item. int64 [N].

    Raises:
        UserError: labels that are no integers from 0 (or -100).
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, where)[torch.as_tensor(list(dataset.indices))]
    for attribute in ("targets", "labels"):
        given = getattr(dataset, attribute, None)
        if given is not None and len(given) == len(dataset):
            values = [_one_label(y, where) for y in (given.tolist() if hasattr(given, "tolist") else given)]
            break
    else:
        with global_draws_kept():
            values = [read_item(dataset[i], f"row {i} of {where}")[1] for i in range(len(dataset))]
    labels = torch.tensor(values)
    wrong = (labels < 0) & (labels != IGNORE)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(f"label {int(labels[row])} in row {row} of {where} is out of range: expected 0 or more")
    return labels


def _class_names(dataset: Any) -> tuple[str, ...]:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(str(n) for n in names) if isinstance(names, Sequence) and not isinstance(names, str) else ()


def _refuse_one_class(labels: Tensor, where: str) -> None:
    distinct = labels[labels != IGNORE].unique()
    if len(distinct) < 2:
        had = f"is {int(distinct[0])}" if len(distinct) else "is missing"
        raise UserError(f"every label of the train split of {where} {had}: a classifier needs at least two classes")


def _one_input(x: Any, where: str) -> Tensor:
    if type(x).__module__.startswith("PIL."):
        array = np.array(x if x.mode in ("L", "RGB") else x.convert("RGB"))
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    value = x if isinstance(x, Tensor) else None
    if value is None:
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise UserError(f"the input in {where} is {_described(x)}; expected a tensor, an array or a picture")
        value = torch.from_numpy(np.ascontiguousarray(array))
    if value.dtype != torch.uint8:
        return value.detach().float()
    return as_inputs(value[None])[0] if value.dim() in (2, 3) else value.detach().float()


def _one_label(y: Any, where: str) -> int:
    try:
        if int(y) == y:
            return int(y)
    except (TypeError, ValueError):
        pass
    raise UserError(f"the label {y!r} in {where} is no whole number: number the classes from 0")


def _checked(data: Data, where: str) -> Data:
    if data.train is None and data.test is None and data.val is None and data.spec.task != "generation":
        raise UserError(f"{where} has neither a train nor a test split")
    for split in ("train", "test", "val"):
        source = getattr(data, split)
        if source is not None and len(source) == 0:
            raise UserError(f"the {split} split of {where} has no rows")
    return data


def _described(value: Any) -> str:
    if isinstance(value, IterableDataset):
        return "an IterableDataset, whose rows have no numbers (a run could not be resumed)"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:4])})"
    return "None" if value is None else f"a {type(value).__name__}"
