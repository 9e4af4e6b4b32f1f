"""Texts, or pairs of texts, with a class each."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.corpora import corpus_file, json_lines
from limbeck.data.rewording import Rewording
from limbeck.data.worlds import WORLDS, Example
from limbeck.errors import UserError
from limbeck.registry import register

Row = tuple[str, str | None, str]
"""A text, perhaps a second one, and its class by name."""


@dataclass(frozen=True)
class Named:
    """A labelled set by name: files of its parts under the data folder, and the columns to read."""

    files: Mapping[str, str]
    text: str | int
    label: str | int
    second: str | int | None = None
    licence: str | None = None


_SST2 = {part: f"text/sst2_{file}.tsv.gz" for part, file in {"train": "train", "val": "dev", "test": "test"}.items()}
_SICK = {part: f"text/sick_{file}.tsv.gz" for part, file in {"train": "train", "val": "trial", "test": "test"}.items()}
NAMED = {
    "sst2": Named(_SST2, text=1, label=0),
    "trec": Named({"train": "text/trec_train.tsv.gz", "test": "text/trec_test.tsv.gz"}, text=1, label=0),
    "sick": Named(_SICK, "sentence_A", "entailment_judgment", "sentence_B", licence="CC BY-NC-SA 3.0"),
    "clinc150": Named({"all": "text/clinc150_full.json.gz"}, text=0, label=1, licence="CC BY 3.0"),
}
"""Labelled sets by name; the columns of a file without a header by number."""


class TextRows:
    """Token rows with a class each: a :class:`~limbeck.data.base.Source`.

    Attributes:
        spec, fingerprint: as every source has.
        tokenizer: turns the ids back into text.
        ids: int64 [N].
        reword: changes the words of each row anew for every view; None leaves them.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], spec: DataSpec, words: Any, reword: Rewording | None = None
    ) -> None:
        self.reword = reword
        self.spec, self.tokenizer, self.ids, self.label = spec, words, columns["id"], columns["label"]
        self._tokens, self._mask, self._kinds = (columns[k] for k in ("tokens", "mask", "kinds"))
        digest = hashlib.blake2b(str(spec.tokenizer_hash).encode(), digest_size=8)
        for rows in columns.values():
            digest.update(rows.contiguous().numpy().tobytes())
        digest.update(repr(reword).encode() if reword else b"")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def reworded(self, shares: Mapping[str, float], seed: int) -> TextRows:
        """These rows, reworded by :class:`~limbeck.data.rewording.Rewording`."""
        columns = {
            "id": self.ids,
            "label": self.label,
            "tokens": self._tokens,
            "mask": self._mask,
            "kinds": self._kinds,
        }
        return TextRows(columns, self.spec, self.tokenizer, Rewording(shares, self.tokenizer, self._tokens, seed=seed))

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask``, ``token_type_ids`` [B, T], ``label``, ``id`` and ``view``."""
        tokens, mask, kinds = (rows[indices].long() for rows in (self._tokens, self._mask, self._kinds))
        if self.reword is not None:
            tokens, mask, kinds = self.reword(tokens, mask, kinds, self.ids[indices], view)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": kinds,
            "label": self.label[indices],
            "id": self.ids[indices],
            "view": view,
        }


@register("data")
def labelled_text(
    *,
    corpus: Literal["nli", "topics", "sst2", "trec", "sick", "clinc150"] | None = None,
    path: Path | None = None,
    test_path: Path | None = None,
    field: str = "text",
    pair_field: str | None = None,
    label_field: str = "label",
    tokenizer: Literal["word", "char", "bpe"] = "word",
    tokenizer_path: Path | None = None,
    vocab_size: int = 4000,
    context: int = 48,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.2,
    ambiguity: float = 0.0,
    reword: dict[str, float] | None = None,
    seed: int = 0,
    licence: str | None = None,
) -> Data:
    """Texts or pairs of texts with a class each, for encoders.

    A row is ``<cls> text <sep>``, or ``<cls> text <sep> second <sep>`` with token types 0 and 1, padded to ``context``
    and cut there (the longer text first). ``nli`` and ``topics`` are made by the package; the other sets are found
    under ``LIMBECK_DATA``.

    Args:
        corpus: a set by name.
        path: or .tsv, .jsonl (or .gz of them) with named columns.
        test_path: a file of its own for the test part.
        field, pair_field, label_field: the columns of the text, the second text and the class.
        tokenizer: made from all training rows, or all words of a made world: words, characters or byte-level BPE.
        tokenizer_path: a saved tokenizer instead (a folder with tokenizer.json).
        vocab_size: of words and BPE.
        context: tokens in a row.
        train_size: use only so many training rows (the worlds make 2000 by default).
        test_size: use only so many test rows (the worlds make 500 by default).
        val_fraction, test_fraction: shares of a file without a part of its own for them.
        ambiguity: share of doubtful rows in ``nli`` and ``topics``.
        reword: share of the words of each training row that are replaced by a ``neighbour`` or at ``random``, that
            ``swap`` places, are left out (``delete``) or put in (``insert``), anew in every epoch.
        seed: of the worlds, and of what is reworded.
        licence: of the text, as its owner states it.

    Raises:
        UserError: a file or column is missing, or there are fewer than two classes.
    """
    if (corpus is None) == (path is None):
        raise UserError(f"data 'labelled_text' needs one of path and corpus (corpora: {', '.join((*WORLDS, *NAMED))})")
    if corpus in WORLDS:
        parts = _world(str(corpus), train_size, test_size, ambiguity, seed)
    elif corpus:
        parts = _named(str(corpus))
    else:
        columns = (field, pair_field, label_field)
        parts = {"train": _read(Path(str(path)), columns)}
        if test_path:
            parts["test"] = _read(test_path, columns)
    parts = _split(parts, val_fraction, test_fraction)
    sizes = {"train": train_size, "test": test_size}
    world = WORLDS.get(str(corpus))
    # Of all training rows, also of those that are left out: a teacher that sees more of them has the same words.
    texts = [world.words] if world else [t for a, b, _ in parts["train"] for t in (a, b) if t is not None]
    parts = {name: rows[: sizes.get(name)] for name, rows in parts.items() if rows}
    names = world.classes if world else tuple(sorted({r[2] for r in parts.get("train", [])}))
    if len(names) < 2:
        raise UserError("data 'labelled_text': the training part has fewer than two classes")
    words = _words(tokenizer, tokenizer_path, vocab_size, texts)
    spec = DataSpec(
        task="classification",
        shape=(context,),
        classes=len(names),
        class_names=names,
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence=licence or (NAMED[corpus].licence if corpus in NAMED else "public domain" if corpus else None),
    )
    rows, first = {}, 0
    for name, items in parts.items():
        rows[name] = _rows(items, first, names, spec, words)
        first += len(items)
    if reword:
        rows["train"] = rows["train"].reworded(reword, seed)
    return Data(spec, rows["train"], rows.get("test"), rows.get("val"), extra={"tokenizer": words})


# ---------------------------------------------------------------------------------------------------------------------
# What to read


def _world(
    name: str, train_size: int | None, test_size: int | None, ambiguity: float, seed: int
) -> dict[str, list[Row]]:
    if not 0 <= ambiguity <= 1:
        raise UserError(f"data 'labelled_text': ambiguity must be between 0 and 1, got {ambiguity}")
    make, names = WORLDS[name].make, WORLDS[name].classes
    count, held_out = train_size or 2000, test_size or 500

    def rows(examples: Sequence[Example]) -> list[Row]:
        return [(text, second, names[label]) for text, second, label in examples]

    # What is judged has no doubtful labels.
    return {"train": rows(make(count, ambiguity, seed)), "test": rows(make(held_out, 0.0, seed + 1_000_003))}


def _named(name: str) -> dict[str, list[Row]]:
    known = NAMED[name]
    if name == "clinc150":
        whole = json.loads(gzip.decompress(corpus_file(name, known.files["all"]).read_bytes()))
        return {part: [(text, None, intent) for text, intent in whole[part]] for part in ("train", "val", "test")}
    columns = (known.text, known.second, known.label)
    return {part: _read(corpus_file(name, file), columns) for part, file in known.files.items()}


def _read(path: Path, columns: tuple[str | int | None, ...]) -> list[Row]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return [_row(row, columns, f"{path} line {n}") for n, row in json_lines(path)]
    if not path.name.endswith((".tsv", ".tsv.gz")):
        raise UserError(f"{path}: labelled texts are read from .tsv, .jsonl, or .gz of them")
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    cells = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if isinstance(columns[0], int):
        table = [dict(enumerate(line)) for line in cells if line]
        return [_row(row, columns, f"{path} line {n}") for n, row in enumerate(table, start=1)]
    named = [dict(zip(cells[0], line, strict=False)) for line in cells[1:] if line] if cells else []
    return [_row(row, columns, f"{path} line {n}") for n, row in enumerate(named, start=2)]


def _row(row: Mapping[Any, Any], columns: tuple[str | int | None, ...], where: str) -> Row:
    missing = [str(c) for c in columns if c is not None and row.get(c) is None]
    if missing:
        raise UserError(f"{where}: no column {missing[0]}; the line has {', '.join(map(str, row)) or 'nothing'}")
    text, second, label = (None if c is None else str(row[c]) for c in columns)
    return str(text), second, str(label)


def _split(parts: dict[str, list[Row]], validation: float, held_out: float) -> dict[str, list[Row]]:
    """Validation and test part cut off the end of the training part where they have no rows of their own."""
    if min(validation, held_out) < 0 or validation + held_out >= 1:
        raise UserError(
            "data 'labelled_text': val_fraction and test_fraction must be >= 0 and leave some rows to train on"
        )
    rows = parts["train"]
    own = {"val": 0.0 if "val" in parts else validation, "test": 0.0 if "test" in parts else held_out}
    a, b = (round(len(rows) * share) for share in (1 - sum(own.values()), 1 - own["test"]))
    return {"train": rows[:a], "val": parts.get("val", rows[a:b]), "test": parts.get("test", rows[b:])}


# ---------------------------------------------------------------------------------------------------------------------
# From text to rows


def _words(kind: str, path: Path | None, vocab_size: int, texts: Sequence[str]) -> Any:
    if path is not None:
        words = tokenizers.load_tokenizer(path)
    else:
        made = {"word": tokenizers.word_tokenizer, "bpe": tokenizers.bpe_tokenizer}
        words = made[kind](texts, vocab_size) if kind in made else tokenizers.char_tokenizer(texts)
    return tokenizers.with_marks(words)


def _rows(items: Sequence[Row], first: int, names: tuple[str, ...], spec: DataSpec, words: Any) -> TextRows:
    context, number = spec.shape[0], {name: i for i, name in enumerate(names)}
    unknown = sorted({r[2] for r in items} - set(names))
    if unknown:
        raise UserError(f"data 'labelled_text': class '{unknown[0]}' does not occur in the training part")
    one = tokenizers.encode(words, [r[0] for r in items])
    two = tokenizers.encode(words, [r[1] or "" for r in items])
    tokens = torch.full((len(items), context), int(words.pad_token_id), dtype=torch.int32)
    mask, kinds = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        paired = items[i][1] is not None
        a, b = fitted(a, b, context - (3 if paired else 2))
        head = [words.cls_token_id, *a, words.sep_token_id]
        row = [*head, *b, words.sep_token_id] if paired else head
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        mask[i, : len(row)] = True
        kinds[i, len(head) : len(row)] = 1
    label, ids = torch.tensor([number[r[2]] for r in items]), torch.arange(first, first + len(items))
    return TextRows({"tokens": tokens, "mask": mask, "kinds": kinds, "label": label, "id": ids}, spec, words)


def fitted(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Two texts cut at their ends until both fit, the longer one first.

    Raises:
        UserError: there is no room for anything.
    """
    if room < 1:
        raise UserError("data 'labelled_text': the context is too short for any text")
    over = max(0, len(a) + len(b) - room)
    most = max(len(a), len(b)) - over
    if over and most >= min(len(a), len(b)):
        return (a[:most], b) if len(a) >= len(b) else (a, b[:most])
    if over:
        return a[: room - room // 2], b[: room // 2]
    return a, b
