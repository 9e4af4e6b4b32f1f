"""Text as token blocks, or as prompts with completions, for language models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.corpora import CORPORA, corpus_file, read_documents, read_pairs
from limbeck.data.grammar import generate
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register

GRAMMAR_CHARACTERS = 100_000


class TokenRows:
    """Rows of ``context`` tokens with their labels: a :class:`~limbeck.data.base.Source`.

    Attributes:
        spec, fingerprint: as every source has.
        tokenizer: turns the ids back into text.
        ids: int64 [N], a stable name for each row.
    """

    def __init__(self, input_ids: Tensor, labels: Tensor, mask: Tensor, ids: Tensor, spec: DataSpec, tokenizer: Any):
        self.spec, self.tokenizer, self.ids = spec, tokenizer, ids
        self._input_ids, self._labels, self._mask = input_ids, labels, mask
        digest = hashlib.blake2b(str(spec.tokenizer_hash).encode(), digest_size=8)
        for rows in (input_ids, labels, mask, ids):
            digest.update(rows.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._input_ids)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask``, ``labels`` (int64 [B, context]), ``id`` and ``view``.

        Labels equal the input ids and are -100 where no loss is taken; they are not shifted.
        """
        return {
            "input_ids": self._input_ids[indices].long(),
            "attention_mask": self._mask[indices].long(),
            "labels": self._labels[indices].long(),
            "id": self.ids[indices],
            "view": view,
        }


@register("data")
def text(
    *,
    path: Path | None = None,
    test_path: Path | None = None,
    corpus: Literal["grammar", "shakespeare", "wikitext2", "gsm8k"] | None = None,
    field: str = "text",
    prompt_field: str | None = None,
    completion_field: str | None = None,
    tokenizer: Literal["char", "bpe"] = "char",
    tokenizer_path: Path | None = None,
    vocab_size: int = 512,
    context: int = 64,
    characters: int | None = None,
    train_characters: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    licence: str | None = None,
) -> Data:
    """Text for language models: contiguous blocks of tokens, or prompts with completions.

    A text is cut, in this order, into training, validation and test part (never shuffled: neighbouring text is
    alike). With ``prompt_field`` and ``completion_field`` a row is one prompt and its completion, padded to
    ``context``; only the completion and the end-of-text token after it are learnt. Rows whose prompt leaves no room
    are dropped and counted in ``Data.extra["dropped"]``.

    Args:
        path: .txt, .txt.gz, .jsonl or .jsonl.gz; documents are joined by the end-of-text token.
        test_path: a file of its own for the test part.
        corpus: a corpus by name instead of ``path``; ``grammar`` is made by the package, the rest are found under
            ``LIMBECK_DATA``.
        field: the field of a JSON line that holds a document.
        prompt_field, completion_field: the fields of a JSON line that hold prompt and completion.
        tokenizer: made from the text: one token per character, or byte-level BPE of ``vocab_size`` tokens.
        tokenizer_path: a saved tokenizer instead (a folder with tokenizer.json).
        vocab_size: of the BPE tokenizer.
        context: tokens in a row.
        characters: use only that much of the text, from its beginning (the grammar makes 100 000 by default).
        train_characters: use only that much of the training part, from its beginning, for a student with less text
            than its teacher had; the tokenizer is made from all of it, and what is judged stays the same.
        val_fraction, test_fraction: shares of the text.
        licence: of the text, as its owner states it.

    Raises:
        UserError: a file, field or corpus is missing, or there is too little text.
    """
    chosen = _Choice(path, test_path, corpus, field, prompt_field, completion_field, characters, licence)
    _check(chosen, context, val_fraction, test_fraction)
    train, test = chosen.read()
    parts = _split(train, test, val_fraction, test_fraction)
    if "train" not in parts:
        raise UserError(f"data 'text': there is no text to train on in {path or corpus}")
    words = tokenizers.load_tokenizer(tokenizer_path) if tokenizer_path else _make(tokenizer, parts, vocab_size)
    spec = DataSpec(
        task="language",
        shape=(context,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence=chosen.stated_licence,
    )
    parts["train"] = _head(parts["train"], train_characters)
    rows, dropped = _rows(parts, spec, words)
    extra = {"tokenizer": words, "dropped": dropped}
    return Data(spec, train=rows["train"], val=rows.get("val"), test=rows.get("test"), extra=extra)


# ---------------------------------------------------------------------------------------------------------------------
# What to read

Item = str | tuple[str, str]
"""A document, or a prompt with its completion."""


@dataclass(frozen=True)
class _Choice:
    path: Path | None
    test_path: Path | None
    corpus: str | None
    field: str
    prompt_field: str | None
    completion_field: str | None
    characters: int | None
    licence: str | None

    @property
    def stated_licence(self) -> str | None:
        if self.licence or self.corpus is None:
            return self.licence
        return "public domain" if self.corpus == "grammar" else CORPORA[self.corpus].licence

    def read(self) -> tuple[list[Item], list[Item] | None]:
        """Training items and, where they have a file of their own, test items."""
        if self.corpus == "grammar":
            return [generate(self.characters or GRAMMAR_CHARACTERS)], None
        files, prompt, completion = [self.path, self.test_path], self.prompt_field, self.completion_field
        if self.corpus:
            known = CORPORA[self.corpus]
            files = [corpus_file(self.corpus, f) if f else None for f in (known.train, known.test)]
            prompt, completion = known.prompt_field, known.completion_field
        train, test = (self._items(f, prompt, completion) if f else None for f in files)
        return _head(train or [], self.characters), test

    def _items(self, file: Path, prompt: str | None, completion: str | None) -> list[Item]:
        if prompt and completion:
            return list(read_pairs(file, prompt, completion))
        return list(read_documents(file, self.field))


def _check(chosen: _Choice, context: int, val_fraction: float, test_fraction: float) -> None:
    if (chosen.path is None) == (chosen.corpus is None):
        raise UserError(f"data 'text' needs one of path and corpus (corpora: grammar, {', '.join(CORPORA)})")
    if chosen.corpus and chosen.test_path:
        raise UserError("data 'text': test_path goes with path; a corpus has its own test part")
    if (chosen.prompt_field is None) != (chosen.completion_field is None):
        raise UserError("data 'text' needs both prompt_field and completion_field, or neither")
    if context < 2:
        raise UserError(f"data 'text': context must be at least 2 tokens, got {context}")
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError("data 'text': val_fraction and test_fraction must be >= 0 and leave some text to train on")


def _head(items: Sequence[Item], characters: int | None) -> list[Item]:
    """The first items that together have that many characters, the last of them cut if it is a document."""
    if characters is None:
        return list(items)
    kept: list[Item] = []
    left = characters
    for item in items:
        if left <= 0:
            break
        kept.append(item[:left] if isinstance(item, str) else item)
        left -= len(item) if isinstance(item, str) else sum(map(len, item))
    return kept


def _split(train: list[Item], test: list[Item] | None, validation: float, held_out: float) -> dict[str, list[Item]]:
    """Training, validation and test part in the order of the text; empty parts are left out."""
    shares = [1 - validation - (held_out if test is None else 0), validation]
    if len(train) == 1 and isinstance(train[0], str):
        document = train[0]
        a, b = (round(len(document) * share) for share in (shares[0], sum(shares)))
        pieces: list[list[Item]] = [[document[:a]], [document[a:b]], [document[b:]]]
    else:
        a, b = (round(len(train) * share) for share in (shares[0], sum(shares)))
        pieces = [train[:a], train[a:b], train[b:]]
    if test is not None:
        pieces[2] = test
    named = zip(("train", "val", "test"), pieces, strict=True)
    return {name: items for name, items in named if any(items)}


def _make(kind: str, parts: dict[str, list[Item]], vocab_size: int) -> Any:
    """A tokenizer made from the text. Merges are learnt from the training part; the alphabet is the whole text's."""
    texts = {
        name: [t for item in items for t in ([item] if isinstance(item, str) else item)]
        for name, items in parts.items()
    }
    if kind == "char":
        return tokenizers.char_tokenizer(t for part in texts.values() for t in part)
    return tokenizers.bpe_tokenizer(texts["train"], vocab_size)


# ---------------------------------------------------------------------------------------------------------------------
# From text to rows


def _rows(parts: dict[str, list[Item]], spec: DataSpec, words: Any) -> tuple[dict[str, TokenRows], int]:
    rows: dict[str, TokenRows] = {}
    first, dropped = 0, 0
    for name, items in parts.items():
        if isinstance(items[0], tuple):
            rows[name] = pair_rows(items, first, spec, words)
            dropped += len(items) - len(rows[name])
            first += len(items)
        else:
            rows[name] = _block_rows(items, first, spec, words)
            first += len(rows[name])
        if not len(rows[name]):
            raise UserError(f"the {name} part of the text gives no row of {spec.shape[0]} tokens: give more text")
    return rows, dropped


def _block_rows(documents: list[Any], first: int, spec: DataSpec, words: Any) -> TokenRows:
    """Contiguous blocks; the remainder at the end is left out. A block's id is its number over all parts."""
    context = spec.shape[0]
    tokens = torch.tensor(_stream(documents, words), dtype=torch.int32)
    blocks = tokens[: len(tokens) // context * context].view(-1, context)
    ids = torch.arange(first, first + len(blocks))
    return TokenRows(blocks, blocks, torch.ones_like(blocks, dtype=torch.bool), ids, spec, words)


def _stream(documents: list[str], words: Any) -> list[int]:
    if len(documents) == 1:
        return tokenizers.encode_long(words, documents[0])
    end = tokenizers.end_of_text(words)
    return [i for document in tokenizers.encode(words, documents) for i in (*document, end)]


def pair_rows(pairs: list[Any], first: int, spec: DataSpec, words: Any) -> TokenRows:
    """One row per pair, cut at ``context``; a pair's id is its number over all parts, kept when others are dropped."""
    context, end = spec.shape[0], tokenizers.end_of_text(words)
    prompts = tokenizers.encode(words, [p for p, _ in pairs], special=True)
    completions = tokenizers.encode(words, [c for _, c in pairs])
    kept = [i for i, prompt in enumerate(prompts) if len(prompt) < context and prompt + completions[i]]
    pad = end if words.pad_token_id is None else int(words.pad_token_id)
    input_ids = torch.full((len(kept), context), pad, dtype=torch.int32)
    labels = torch.full_like(input_ids, IGNORE)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, i in enumerate(kept):
        whole = torch.tensor([*prompts[i], *completions[i], end][:context], dtype=torch.int32)
        input_ids[row, : len(whole)] = whole
        labels[row, len(prompts[i]) : len(whole)] = whole[len(prompts[i]) :]
        mask[row, : len(whole)] = True
    return TokenRows(input_ids, labels, mask, first + torch.tensor(kept, dtype=torch.int64), spec, words)
