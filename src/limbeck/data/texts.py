"""Rows of several texts: a query with documents, two sentences, or one text alone. What they are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, DataSpec
from limbeck.errors import UserError

Kind = Literal["word", "char", "bpe"]


@dataclass(frozen=True)
class Texts:
    """A table of tokenised texts: ``input_ids`` and ``attention_mask`` int64 [M, T], and their names."""

    input_ids: Tensor
    attention_mask: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_ids[rows], self.attention_mask[rows]


@dataclass(frozen=True)
class Collection:
    """What retrieval is judged on: queries against all documents.

    Attributes:
        queries, documents: the texts.
        relevance: float32 [Q, N], how relevant each document is; 0 is not.
    """

    queries: Texts
    documents: Texts
    relevance: Tensor


class TextRows:
    """Rows of one text [B, T] or of several [B, n, T] out of a table: a :class:`~limbeck.data.base.Source`.

    Args:
        texts: the table.
        rows: int64 [R] or [R, n], which texts a row has; or what gives them for the ids of rows and a view.
        ids: int64 [R], a stable name for each row.
        spec: of the data.
        columns: further values of each row, [R, ...].
        tokenizer: turns the ids back into text.
        facts: what else the rows depend on, for the fingerprint.
        collection: what retrieval is judged on.

    Attributes:
        pairs: whether rows are pairs whose similarity can be judged, by their ``score``.
    """

    def __init__(
        self,
        texts: Texts,
        rows: Tensor | Callable[[Tensor, int], Tensor],
        ids: Tensor,
        spec: DataSpec,
        columns: Mapping[str, Tensor] | None = None,
        *,
        tokenizer: Any = None,
        facts: object = None,
        collection: Collection | None = None,
    ) -> None:
        self.spec, self.tokenizer, self.ids = spec, tokenizer, ids
        self.columns = dict(columns or {})
        self.texts, self._rows = texts, rows
        self.collection = collection
        self.pairs = "score" in self.columns
        digest = hashlib.blake2b(repr((spec.tokenizer_hash, facts)).encode(), digest_size=8)
        judged = () if collection is None else (*_tensors(collection.queries), collection.relevance)
        drawn = self.rows(torch.arange(len(ids)), 0)
        for values in (*_tensors(texts), drawn, ids, *self.columns.values(), *judged):
            digest.update(values.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, indices: Tensor, view: int = 0) -> Tensor:
        """Which texts some rows have under a view."""
        return self._rows(indices, view) if callable(self._rows) else self._rows[indices]

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids`` and ``attention_mask`` int64 [B, T] or [B, n, T], the columns, ``id`` and ``view``."""
        ids, mask = self.texts[self.rows(indices, view)]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            **{name: values[indices] for name, values in self.columns.items()},
            "id": self.ids[indices],
            "view": view,
        }


def _tensors(texts: Texts) -> tuple[Tensor, Tensor]:
    return texts.input_ids, texts.attention_mask


@dataclass
class Words:
    """A tokenizer, and how texts are cut: each begins and ends with the end-of-text mark where we made it.

    Attributes:
        tokenizer: a fast tokenizer of transformers.
        context: tokens of a text at most.
    """

    tokenizer: Any
    context: int
    _memo: dict[str, Tensor] = field(default_factory=dict)

    def table(self, texts: Sequence[str], names: Sequence[str] = ()) -> Texts:
        """The texts as a table, padded to ``context``.

        Raises:
            UserError: a text without a token.
        """
        backend = self.tokenizer.backend_tokenizer
        backend.enable_truncation(self.context)
        found = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=True)]
        backend.no_truncation()
        empty = next((i for i, ids in enumerate(found) if not ids), None)
        if empty is not None:
            raise UserError(f"text number {empty} is empty, and the tokenizer has no mark to put around it")
        pad = self.tokenizer.pad_token_id or 0
        ids = np.full((len(found), self.context), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(found):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return Texts(torch.from_numpy(ids), torch.from_numpy(mask), tuple(names))

    def spec(self, *, classes: int | None, class_names: tuple[str, ...] = (), licence: str | None) -> DataSpec:
        """Facts of data of such texts."""
        return DataSpec(
            task="embedding",
            shape=(self.context,),
            classes=classes,
            class_names=class_names,
            vocab_size=len(self.tokenizer),
            tokenizer_hash=tokenizers.tokenizer_hash(self.tokenizer),
            licence=licence,
        )


def words_of(kind: Kind, path: Path | None, texts: Sequence[str], vocab_size: int, context: int) -> Words:
    """The tokenizer that is saved at ``path``, or one made from texts.

    One that is made puts the end-of-text mark before and after each text: a place for what is pooled from the first or
    the last token, and no text is empty.

    Raises:
        UserError: too short a context, or no tokenizer at the path.
    """
    if context < 4:
        raise UserError(f"texts need a context of at least 4 tokens, not {context}")
    made = tokenizers.load_tokenizer(path) if path else tokenizers.marked(_made(kind, texts, vocab_size))
    # What others who load the tokenizer cut texts at.
    made.model_max_length = context
    return Words(made, context)


def _made(kind: Kind, texts: Sequence[str], vocab_size: int) -> Any:
    if kind == "char":
        return tokenizers.char_tokenizer(texts)
    if kind == "bpe":
        return tokenizers.bpe_tokenizer(texts, vocab_size)
    return tokenizers.word_tokenizer(texts, vocab_size)
