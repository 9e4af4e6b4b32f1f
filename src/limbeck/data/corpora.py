"""Reading text: plain files, JSON lines, and corpora that are found by name under the data folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import MissingDataError, UserError
from limbeck.paths import data_root

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Corpus:
    """A named corpus: its files under :func:`~limbeck.paths.data_root`, and the fields of prompt and completion."""

    train: str
    test: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    licence: str | None = None


CORPORA = {
    "shakespeare": Corpus("text/tiny_shakespeare.txt.gz", licence="public domain"),
    "wikitext2": Corpus("text/wikitext2_valid.txt.gz", "text/wikitext2_test.txt.gz", licence="CC BY-SA"),
    "gsm8k": Corpus("text/gsm8k_train.jsonl.gz", "text/gsm8k_test.jsonl.gz", "question", "answer", licence="MIT"),
}
"""Corpora by name. ``wikitext2`` has the valid part for training and the test part for judging (no train part)."""


def corpus_file(name: str, relative: str) -> Path:
    """The file of a named corpus.

    Raises:
        MissingDataError: it is not under the data folder; says where it was expected.
    """
    path = data_root() / relative
    if not path.is_file():
        raise MissingDataError(f"corpus '{name}': no file {path}; set LIMBECK_DATA to the folder that holds {relative}")
    return path


def read_documents(path: Path, field: str = "text") -> list[str]:
    """The documents of a text file (one: the whole file) or of a JSON-lines file (``field`` of each line).

    Raises:
        UserError: the file is missing, of an unknown kind, not UTF-8, or a line lacks the field.
    """
    if not str(path).endswith((".jsonl", ".jsonl.gz")):
        return [_read(path)]
    return [_field(row, field, path, line) for line, row in json_lines(path)]


def read_pairs(path: Path, prompt_field: str, completion_field: str) -> list[tuple[str, str]]:
    """The (prompt, completion) pairs of a JSON-lines file.

    Raises:
        UserError: the file is missing or not JSON lines, or a line lacks one of the fields.
    """
    if not str(path).endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: prompts and completions are read from .jsonl or .jsonl.gz")
    return [
        (_field(row, prompt_field, path, line), _field(row, completion_field, path, line))
        for line, row in json_lines(path)
    ]


def read_fields(path: Path, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The named fields of each line of a JSON-lines file, as text (numbers as they are spelt).

    Raises:
        UserError: the file is missing or not JSON lines, or a line lacks one of the fields.
    """
    found = []
    for line, row in json_lines(path):
        plain = {f: str(row[f]) if isinstance(row.get(f), int | float) else row.get(f) for f in fields}
        found.append({f: _field(plain, f, path, line) for f in fields})
    return found


def read_text(path: Path) -> str:
    """The whole of a text file, unpacked where it is packed.

    Raises:
        UserError: the file is missing, of an unknown kind, or not UTF-8.
    """
    return _read(path)


def _read(path: Path) -> str:
    if not str(path).endswith(SUFFIXES):
        raise UserError(f"{path}: text is read from {', '.join(SUFFIXES)}")
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSON-lines file, each with the number of its line.

    Raises:
        UserError: the file is missing, not UTF-8, or a line is no JSON object.
    """
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: expected an object with named fields, got {type(row).__name__}")
        yield number, row


def _field(row: dict[str, object], field: str, path: Path, line: int) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        had = ", ".join(sorted(row)) or "nothing"
        raise UserError(f"{path} line {line}: no text in field '{field}'; the line has {had}")
    return value
