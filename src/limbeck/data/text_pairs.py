"""Sentence pairs with a score of how alike they are, or with classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from limbeck.data.base import Data
from limbeck.data.catalogue import sentence_pairs
from limbeck.data.corpora import corpus_file, read_fields, read_text
from limbeck.data.texts import TextRows, Words, words_of
from limbeck.errors import UserError
from limbeck.registry import register

CLASSES = ("the same", "one differs", "three differ")
SICK = ("sick_train", "sick_test")


@dataclass(frozen=True)
class Pair:
    """Two sentences, a score in [0, 1] where there is one, and a class where there is one."""

    a: str
    b: str
    score: float | None = None
    label: str | None = None


@register("data")
def text_pairs(
    *,
    corpus: Literal["catalogue", "sts", "sick"] | None = None,
    path: Path | None = None,
    test_path: Path | None = None,
    first: str = "a",
    second: str = "b",
    score: str | None = "score",
    label: str | None = None,
    scale: float = 1.0,
    train_size: int | None = None,
    test_size: int | None = None,
    tokenizer: Literal["word", "char", "bpe"] = "word",
    tokenizer_path: Path | None = None,
    vocab_size: int = 2000,
    context: int = 32,
    seed: int = 0,
    licence: str | None = None,
) -> Data:
    """Pairs of sentences: rows of two texts with ``score`` (in [0, 1]), ``label`` (a class) or both.

    Args:
        corpus: ``catalogue`` is made by the package (classes: how many of four traits differ); ``sts`` (2012-2014
            train, 2015 test; no classes) and ``sick`` (relatedness, and entailment as classes) are found under
            ``LIMBECK_DATA``.
        path: or a .tsv (with names of columns) or .jsonl file.
        test_path: a file of its own for the test; by default every fifth pair of ``path``.
        first, second: columns of a file of one's own with the sentences.
        score: the column of the score, None where there is none.
        label: the column of the class, None where there is none.
        scale: what a full score is in the file.
        train_size, test_size: use at most so many pairs.
        tokenizer: made from the training texts: frequent words, characters, or byte-level BPE.
        tokenizer_path: a saved tokenizer instead (a folder with tokenizer.json).
        vocab_size: of a tokenizer made from the texts, at most.
        context: tokens of a text at most.
        seed: of the catalogue.
        licence: of the texts, as their owner states it.

    Raises:
        UserError: a file or a column is missing, a score is out of its scale, or there is no pair.
    """
    if (corpus is None) == (path is None):
        raise UserError("data 'text_pairs' needs one of corpus (catalogue, sts, sick) and path (a file)")
    if corpus == "catalogue":
        train, test = (_made(n or d, seed + k) for k, (n, d) in enumerate(((train_size, 2000), (test_size, 500))))
    elif corpus is not None:
        train, test = _sts() if corpus == "sts" else _sick()
    else:
        columns = _Columns(first, second, score, label, scale)
        train = columns.read(path)  # type: ignore[arg-type]
        test = columns.read(test_path) if test_path else train[4::5]
        train = train if test_path else [p for i, p in enumerate(train) if i % 5 != 4]
    train, test = train[:train_size], test[:test_size]
    if not train or not test:
        raise UserError("data 'text_pairs': there are no pairs to train on, or none to judge on")
    words = words_of(tokenizer, tokenizer_path, [t for p in train for t in (p.a, p.b)], vocab_size, context)
    stated = licence or {"catalogue": "made by limbeck", "sick": "CC BY-NC-SA 3.0"}.get(corpus or "")
    names = tuple(sorted({p.label for p in train if p.label is not None}))
    spec = words.spec(classes=len(names) or None, class_names=names, licence=stated)
    made = [_rows(part, n, words, spec, names) for part, n in ((train, 0), (test, len(train)))]
    return Data(spec, train=made[0], test=made[1], extra={"tokenizer": words.tokenizer})


def _rows(pairs: Sequence[Pair], start: int, words: Words, spec: object, names: tuple[str, ...]) -> TextRows:
    table = words.table([t for p in pairs for t in (p.a, p.b)])
    columns = {}
    if all(p.score is not None for p in pairs):
        columns["score"] = torch.tensor([p.score for p in pairs], dtype=torch.float32)
    if names:
        unknown = sorted({str(p.label) for p in pairs} - set(names))
        if unknown:
            raise UserError(f"data 'text_pairs': class {unknown[0]} of the test is not among those of the training")
        columns["label"] = torch.tensor([names.index(str(p.label)) for p in pairs])
    ids = torch.arange(start, start + len(pairs))
    rows = torch.arange(2 * len(pairs)).view(-1, 2)
    return TextRows(table, rows, ids, spec, columns, tokenizer=words.tokenizer)  # type: ignore[arg-type]


def _made(count: int, seed: int) -> list[Pair]:
    named = {1.0: CLASSES[0], 0.75: CLASSES[1], 0.25: CLASSES[2]}
    return [Pair(a, b, score, named[score]) for a, b, score in sentence_pairs(count, seed)]


def _sts() -> tuple[list[Pair], list[Pair]]:
    rows = _table(corpus_file("sts", "text/sts_2012_2015.tsv.gz"), ("split", "score", "a", "b"), escape="\\")
    parts: dict[str, list[Pair]] = {"train": [], "test": []}
    for row in rows:
        parts[row["split"]].append(Pair(row["a"], row["b"], float(row["score"]) / 5))
    return parts["train"], parts["test"]


def _sick() -> tuple[list[Pair], list[Pair]]:
    columns = _Columns("sentence_A", "sentence_B", "relatedness_score", "entailment_judgment", 5.0)
    train, test = (columns.read(corpus_file("sick", f"text/{name}.tsv.gz")) for name in SICK)
    return train, test


@dataclass(frozen=True)
class _Columns:
    """Where a file has what."""

    first: str
    second: str
    score: str | None
    label: str | None
    scale: float

    def read(self, path: Path) -> list[Pair]:
        names = tuple(n for n in (self.first, self.second, self.score, self.label) if n is not None)
        rows = read_fields(path, names) if str(path).endswith((".jsonl", ".jsonl.gz")) else _table(path, names)
        found = []
        for number, row in enumerate(rows, start=1):
            value = None if self.score is None else _number(row[self.score], path, number) / self.scale
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{path} pair {number}: the score {row[self.score]} is not from 0 to {self.scale:g}")  # type: ignore[index]
            found.append(
                Pair(row[self.first], row[self.second], value, None if self.label is None else row[self.label])
            )
        return found


def _number(text: str, path: Path, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path} pair {number}: the score is a number, not {text!r}") from None


def _table(path: Path, names: tuple[str, ...], escape: str | None = None) -> list[dict[str, str]]:
    """The named columns of a .tsv file whose first line has their names.

    Raises:
        UserError: a column is missing.
    """
    lines = read_text(path).splitlines()
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar=escape)
    missing = [n for n in names if n not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column '{missing[0]}'; there is {', '.join(reader.fieldnames or ())}")
    return [{n: row[n] or "" for n in names} for row in reader]
