"""Classification tables: one row a sample, one column the class."""

from __future__ import annotations

import csv as csv_format
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.data.arrays import from_splits
from limbeck.data.base import Data, DataSpec
from limbeck.data.features import Category, Quantity, Value, numbers, without_missing
from limbeck.data.labels import carve, encode, shares
from limbeck.errors import UserError
from limbeck.registry import nearest, register

DELIMITERS = (",", "\t", ";", "|")
MAX_CLASSES = 1000


@register("data")
def csv(
    *,
    path: Path,
    target: str,
    test_path: Path | None = None,
    columns: list[str] | None = None,
    drop: list[str] | None = None,
    categorical: list[str] | None = None,
    delimiter: str | None = None,
    max_categories: int = 100,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    split_seed: int = 0,
) -> Data:
    """A table with a header line, as ``.csv`` or ``.tsv``, also gzipped (``.gz``).

    Columns of numbers are standardised by the train rows, with missing values at the mean and a feature that flags
    them; columns of text become one-hot, with missing as a category of its own. Empty cells, NA, N/A, NaN, null, None
    and ? are missing (in the target only empty cells are, and they are an error). ``data.extra["features"]`` names the
    features.

    Args:
        path: the file.
        target: the column to predict.
        test_path: a file with the same columns to test on; by default rows are cut off ``path``, stratified.
        columns: those to predict from; by default all but the target.
        drop: columns to leave out.
        categorical: columns of numbers that are codes of categories.
        delimiter: between cells; by default found in the header (comma, tab, semicolon or bar).
        max_categories: a text column with more different texts is refused.
        test_fraction: share of rows for testing, without ``test_path``.
        val_fraction: share of the rows of ``path`` for validation.
        split_seed: of the split.

    Raises:
        UserError: no such file or column (with the nearest one there is), unreadable cells, a missing target, fewer
            than two classes.
    """
    tables = [read_csv(p, delimiter) for p in (path, test_path) if p is not None]
    choice = Choice(target, columns, drop or [], categorical or [], max_categories)
    return table_data(tables, choice, test_fraction, val_fraction, split_seed)


@register("data")
def jsonl(
    *,
    path: Path,
    target: str,
    test_path: Path | None = None,
    columns: list[str] | None = None,
    drop: list[str] | None = None,
    categorical: list[str] | None = None,
    max_categories: int = 100,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    split_seed: int = 0,
) -> Data:
    """A table with one JSON object a line (also gzipped): numbers, texts, true/false (1/0) and null (missing).

    The arguments, and what becomes of columns, are those of ``csv``.
    """
    tables = [read_jsonl(p) for p in (path, test_path) if p is not None]
    choice = Choice(target, columns, drop or [], categorical or [], max_categories)
    return table_data(tables, choice, test_fraction, val_fraction, split_seed)


@dataclass(frozen=True)
class Table:
    """Columns by name, and the line of the file that each row came from."""

    path: Path
    columns: dict[str, list[Value]]
    lines: list[int]

    def column(self, name: str) -> list[Value]:
        """The values of a column.

        Raises:
            UserError: there is none of that name; says the nearest.
        """
        if name not in self.columns:
            hint = nearest(name, self.columns)
            says = f"; did you mean '{hint}'?" if hint else f" (it has {', '.join(self.columns)})"
            raise UserError(f"{self.path} has no column '{name}'{says}")
        return self.columns[name]


@dataclass(frozen=True)
class Choice:
    """Which columns are used, and how."""

    target: str
    columns: Sequence[str] | None
    drop: Sequence[str]
    categorical: Sequence[str]
    max_categories: int

    def inputs(self, table: Table) -> list[str]:
        """Names of the columns to predict from.

        Raises:
            UserError: one that the table lacks, the target among them, or none left.
        """
        for name in (self.target, *(self.columns or ()), *self.drop, *self.categorical):
            table.column(name)
        if self.columns is not None and self.target in self.columns:
            raise UserError(f"the target '{self.target}' is also listed in columns: it would be predicted from itself")
        wanted = self.columns if self.columns is not None else [c for c in table.columns if c != self.target]
        left = [c for c in wanted if c not in self.drop]
        if not left:
            raise UserError(f"{table.path} has no column left to predict '{self.target}' from")
        return left


def table_data(tables: Sequence[Table], choice: Choice, test_fraction: float, val_fraction: float, seed: int) -> Data:
    """Data of one table, or of a train and a test table with the same columns."""
    inputs = choice.inputs(tables[0])
    words = dict(zip(("train", "test"), (_targets(t, choice.target) for t in tables), strict=False))
    codes, names = encode(words)
    if len(names) > MAX_CLASSES:
        raise UserError(f"the target '{choice.target}' has {len(names)} different values: that is no class label")
    own = torch.cat(list(codes.values()))
    count = len(tables[0].lines)
    wanted = shares(count, test_fraction if len(tables) == 1 else 0.0, val_fraction)
    rows = carve(codes["train"], seed, **wanted, what=str(tables[0].path))
    if len(tables) > 1:
        rows["test"] = torch.arange(count, len(own))
    values, features = _features(tables, inputs, choice, rows["train"].tolist())
    spec = DataSpec(shape=(len(features),), classes=len(names), class_names=names)
    splits = {split: (values[r], own[r]) for split, r in rows.items()}
    return from_splits(splits, spec, name=str(tables[0].path), extra={"features": features})


def _features(
    tables: Sequence[Table], inputs: Sequence[str], choice: Choice, train: list[int]
) -> tuple[torch.Tensor, list[str]]:
    """All rows of all tables as float32 [N, F], fitted on the train rows; and the features' names."""
    pieces, names = [], []
    for name in inputs:
        column = without_missing([v for t in tables for v in t.column(name)])
        lines = [n for t in tables for n in t.lines]
        read = None if name in choice.categorical else numbers(name, column, lines)
        fitted: Quantity | Category
        if read is None:
            fitted = Category.fit(name, [column[i] for i in train], choice.max_categories)
            pieces.append(fitted.encode(column))
        else:
            fitted = Quantity.fit(name, read[train])
            pieces.append(fitted.encode(read))
        names += fitted.features
    return torch.from_numpy(np.concatenate(pieces, axis=1)), names


def _targets(table: Table, target: str) -> list[str] | np.ndarray:
    """The labels: integers where all of them are, texts otherwise. Only an empty cell is missing: 'none' is a class."""
    column = table.column(target)
    for line, value in zip(table.lines, column, strict=True):
        if value is None:
            raise UserError(f"{table.path}, line {line}: the target '{target}' is missing")
    try:
        read = np.array([float(v) for v in column if v is not None])
    except ValueError:
        return [str(v) for v in column]
    parts = np.flatnonzero(~np.isfinite(read) | (read != np.round(read)))
    if len(parts):
        where = f"{table.path}, line {table.lines[parts[0]]}"
        says = "a class is a whole number or a text"
        raise UserError(f"{where}: the target '{target}' is the quantity {column[parts[0]]}; {says}")
    return read.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Reading files


def read_csv(path: Path, delimiter: str | None = None) -> Table:
    """A delimited file with a header.

    Raises:
        UserError: it is missing, empty or not UTF-8, a name occurs twice, or a line has another number of cells.
    """
    stream = io.StringIO(_text_of(path), newline="")
    header_line = stream.readline()
    stream.seek(0)
    reader = csv_format.reader(stream, delimiter=delimiter or max(DELIMITERS, key=header_line.count))
    header = [name.strip() for name in next(reader, [])]
    twice = {n for n in header if header.count(n) > 1}
    if twice:
        raise UserError(f"{path} has more than one column called '{sorted(twice)[0]}'")
    rows, lines = [], []
    for line, row in _rows(reader, path):
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} cells, but the header has {len(header)}")
        rows.append([cell.strip() or None for cell in row])
        lines.append(line)
    if not rows:
        raise UserError(f"{path} has no rows")
    return Table(path, {name: list(c) for name, c in zip(header, zip(*rows, strict=True), strict=True)}, lines)


def _rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv_format.Error as error:
        raise UserError(f"{path}, line {reader.line_num} cannot be read: {error}") from error


def read_jsonl(path: Path) -> Table:
    """A file of JSON objects, one a line; a key that a row lacks is missing there.

    Raises:
        UserError: a line is no flat JSON object; names it.
    """
    rows = list(_objects(path))
    if not rows:
        raise UserError(f"{path} has no rows")
    names = dict.fromkeys(key for _, row in rows for key in row)
    columns = {name: [_cell(row.get(name), name, path, line) for line, row in rows] for name in names}
    return Table(path, columns, [line for line, _ in rows])


def _objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(_text_of(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {line}: expected an object like {{"age": 3}}, got {type(row).__name__}')
        yield line, row


def _cell(value: object, name: str, path: Path, line: int) -> Value:
    if isinstance(value, bool):
        return float(value)
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str | int | float):
        return value
    raise UserError(f"{path}, line {line}: '{name}' holds a {type(value).__name__}; a cell is a number, text or null")


def _text_of(path: Path) -> str:
    if not path.is_file():
        hint = nearest(path.name, [f.name for f in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise UserError(f"there is no file {path}" + (f"; did you mean '{path.parent / hint}'?" if hint else ""))
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
