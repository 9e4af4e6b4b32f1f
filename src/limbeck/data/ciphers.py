"""Two languages that say the same: labelled texts of the package's worlds, as they are and with other letters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.text import pair_rows
from limbeck.data.worlds import WORLDS, Example
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHER = str.maketrans(LETTERS, "qwertyuiopasdfghjklzxcvbnm")
"""Language ``b``: each letter by another."""
HELD_OUT = 1_000_003
"""Added to the seed of what is judged."""


def said_in(language: str, text: str) -> str:
    """A text in language ``a``, which is its own, or in ``b``, whose words have other letters."""
    return text if language == "a" else text.translate(OTHER)


class Rows:
    """Padded rows of tokens with a label each, or one for each token: a :class:`~limbeck.data.base.Source`.

    Attributes:
        spec, fingerprint: as every source has.
        tokenizer: turns the ids back into text.
        ids: int64 [N].
        label: int64 [N], or [N, T].
    """

    def __init__(self, tokens: Tensor, mask: Tensor, label: Tensor, first: int, spec: DataSpec, words: Any) -> None:
        self.spec, self.tokenizer, self.label = spec, words, label
        self.ids = torch.arange(first, first + len(tokens))
        self._tokens, self._mask = tokens, mask
        digest = hashlib.blake2b(str(spec.tokenizer_hash).encode(), digest_size=8)
        for rows in (tokens, mask, label, self.ids):
            digest.update(rows.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask`` [B, T], ``label``, ``id`` and ``view``."""
        return {
            "input_ids": self._tokens[indices],
            "attention_mask": self._mask[indices].long(),
            "label": self.label[indices],
            "id": self.ids[indices],
            "view": view,
        }


@register("data")
def ciphers(
    *,
    form: Literal["translation", "language", "task"] = "task",
    world: Literal["topics", "nli"] = "topics",
    tokens: Literal["words", "pieces"] = "words",
    test_language: Literal["a", "b"] = "a",
    pieces: int = 384,
    context: int = 80,
    train_size: int = 1000,
    test_size: int = 500,
    ambiguity: float = 0.0,
    seed: int = 0,
) -> Data:
    """Texts in two languages, of which the second is the first with other letters: no word is in both.

    ``translation`` has each text in both languages; the label of each token is the word of language ``a`` that stands
    there, so an encoder learns one meaning for both. ``language`` is text in ``a`` for a language model. ``task`` has
    a class for each text, in ``a`` to train on and in ``test_language`` to judge on.

    Args:
        form: of the rows.
        world: what the texts are; of ``nli`` both sentences are one text.
        tokens: ``words`` of both languages, or byte-pair ``pieces`` that were learnt from the words of ``a`` alone.
        test_language: of the test part.
        pieces: tokens of the byte-pair vocabulary, at most.
        context: tokens in a row; a longer text is an error.
        train_size, test_size: texts.
        ambiguity: share of doubtful texts in the training part.
        seed: of the texts.

    Raises:
        UserError: a number is out of range, a text is too long, or translations are asked for in pieces.
    """
    if not 0 <= ambiguity <= 1 or min(train_size, test_size) < 1:
        raise UserError("data 'ciphers' needs rows to train and to judge on, and a share as ambiguity")
    if form == "translation" and tokens != "words":
        raise UserError("data 'ciphers': a translation goes word by word: say tokens: words")
    words = _tokenizer(world, tokens, pieces)
    spec = DataSpec(
        task={"translation": "masked_language", "language": "language", "task": "classification"}[form],  # type: ignore[arg-type]
        shape=(context,),
        classes=len(WORLDS[world].classes) if form == "task" else None,
        class_names=WORLDS[world].classes if form == "task" else (),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence="public domain",
    )
    make = WORLDS[world].make
    # What is judged has no doubtful labels.
    train, test = make(train_size, ambiguity, seed), make(test_size, 0.0, seed + HELD_OUT)
    first = 2 * len(train)
    if form == "language":
        parts = [_language(rows, start, spec, words) for rows, start in ((train, 0), (test, first))]
    elif form == "translation":
        parts = [_translation(rows, start, spec, words) for rows, start in ((train, 0), (test, first))]
    else:
        parts = [_task(train, "a", 0, spec, words), _task(test, test_language, first, spec, words)]
    return Data(spec, parts[0], parts[1], extra={"tokenizer": words})


def _tokenizer(world: str, kind: str, pieces: int) -> Any:
    known = sorted(set(WORLDS[world].words.split()))
    if kind == "words":
        return tokenizers.known_words([said_in(language, word) for word in known for language in "ab"])
    return tokenizers.bpe_tokenizer([" ".join(known)], pieces)


def _text(example: Example) -> str:
    return " ".join(part for part in example[:2] if part)


def _padded(texts: Sequence[str], spec: DataSpec, words: Any) -> tuple[Tensor, Tensor]:
    """Tokens int64 [N, T] and what of them is there, bool."""
    rows, context = tokenizers.encode(words, texts), spec.shape[0]
    longest = max(map(len, rows))
    if longest > context:
        raise UserError(f"data 'ciphers': a text has {longest} tokens: say context: {longest} or more")
    tokens = torch.full((len(rows), context), int(words.pad_token_id))
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids in rows])
    return tokens, torch.arange(context) < lengths[:, None]


def _task(examples: Sequence[Example], language: str, first: int, spec: DataSpec, words: Any) -> Rows:
    tokens, mask = _padded([said_in(language, _text(e)) for e in examples], spec, words)
    return Rows(tokens, mask, torch.tensor([label for _, _, label in examples]), first, spec, words)


def _translation(examples: Sequence[Example], first: int, spec: DataSpec, words: Any) -> Rows:
    texts = [_text(e) for e in examples]
    meant, mask = _padded(texts, spec, words)
    other, _ = _padded([said_in("b", text) for text in texts], spec, words)
    label = meant.masked_fill(~mask, IGNORE)
    return Rows(torch.cat([meant, other]), mask.repeat(2, 1), label.repeat(2, 1), first, spec, words)


def _language(examples: Sequence[Example], first: int, spec: DataSpec, words: Any) -> Any:
    texts = [_text(e) for e in examples]
    _padded(texts, spec, words)  # refuses what would be cut
    return pair_rows([("", text) for text in texts], first, spec, words)
