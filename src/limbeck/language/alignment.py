"""Two tokenisations of one text, brought together: the smallest spans that both cover by whole tokens.

Positions are bytes of the text's UTF-8, because byte-level tokens end inside characters, where the character offsets
that tokenizers report say nothing. What a token stands for is read from the vocabulary and checked against the text;
only a tokenizer that changes its text (lower-casing, NFKC, word pieces) is taken at its offsets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from limbeck.errors import UserError

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LEVELS = {"ByteLevel": "bytes", "WordPiece": "words", "Metaspace": "metaspace", "ByteFallback": "metaspace"}


@dataclass(frozen=True)
class Pieces:
    """Tokens of a text and the bytes that each stands for.

    Attributes:
        ids: of the tokens.
        ends: for each token, the byte that it ends before; they never go down. What lies between two tokens (a space
            that a word piece leaves out) belongs to the second.
        whole: for each token, whether the text may be cut after it. Not inside a character that several tokens share
            without saying which byte is whose.
        size: bytes of the text.
        holes: byte intervals that the tokens do not say: unknown words, characters that the tokenizer dropped.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    whole: tuple[bool, ...]
    size: int
    holes: tuple[tuple[int, int], ...] = ()

    @property
    def cuts(self) -> dict[int, int]:
        """How many tokens lie before each byte where the text can be cut; a token of no bytes goes with the next."""
        found = {0: 0}
        for i, (end, whole) in enumerate(zip(self.ends, self.whole, strict=True)):
            if whole:
                found.setdefault(end, i + 1)
        if self.ends and self.size not in found:
            found[self.size] = len(self.ids)
        return found


@dataclass(frozen=True)
class Span:
    """Tokens ``first[0]`` up to ``first[1]`` of one tokenisation and ``second`` of the other say the same bytes.

    In a ``hole`` one of them does not say them, or has no token there.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    bytes: tuple[int, int]
    hole: bool = False


def align(first: Pieces, second: Pieces) -> list[Span]:
    """The smallest spans, in order, that both tokenisations of a text cover by whole tokens.

    Together they cover the text.

    Raises:
        UserError: the tokenisations are of texts of unlike length.
    """
    if first.size != second.size:
        raise UserError(f"two tokenisations of one text cover {first.size} and {second.size} bytes: not the same text")
    a, b = first.cuts, second.cuts
    common = sorted(a.keys() & b.keys())
    holes = (*first.holes, *second.holes)
    spans = []
    for start, end in pairwise(common):
        ours, theirs = (a[start], a[end]), (b[start], b[end])
        empty = ours[0] == ours[1] or theirs[0] == theirs[1]
        spans.append(Span(ours, theirs, (start, end), empty or any(start < y and x < end for x, y in holes)))
    return spans


# ---------------------------------------------------------------------------------------------------------------------
# What tokens stand for


class Reader:
    """Reads the bytes of a fast tokenizer's tokens.

    Args:
        tokenizer: a ``PreTrainedTokenizerFast``.

    Attributes:
        vocabulary: for each id the bytes that it stands for, wherever it is; None for special tokens and for those
            that stand for no certain bytes.
        exact: whether the bytes of a text's tokens are those of the text.

    Raises:
        UserError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            name = type(tokenizer).__name__
            raise UserError(f"{name} is not a fast tokenizer: texts can only be aligned with a tokenizer.json")
        self.tokenizer, self.backend = tokenizer, backend
        state = json.loads(backend.to_str())
        self.kind = _kind(state)
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = frozenset(special)
        self.unknown = tokenizer.unk_token_id
        self._added = {i for i in tokenizer.added_tokens_decoder if i not in special}
        continuing = (state["model"].get("continuing_subword_prefix") or "##") if self.kind == "words" else ""
        pairs = tokenizer.get_vocab().items()
        self.vocabulary: list[bytes | None] = [None] * (1 + max((i for _, i in pairs), default=-1))
        for token, i in pairs:
            if i not in special:
                self.vocabulary[i] = self._bytes(token, i, continuing)
        self._keep = lru_cache(maxsize=8192)(self._encode)

    def bytes_of(self, ids: Sequence[int]) -> list[bytes | None]:
        """What each token stands for; None where that is not certain."""
        known = self.vocabulary
        return [known[i] if 0 <= i < len(known) else None for i in ids]

    def encode(self, text: str) -> Pieces:
        """The tokens of a text, without those that the tokenizer would put around it."""
        return self._keep(text)

    def pieces(self, ids: Sequence[int]) -> tuple[bytes, Pieces] | None:
        """The text of given tokens and where each lies in it; None where the tokens do not determine it."""
        parts = self.bytes_of(ids)
        if self.kind == "words" or any(part is None for part in parts):
            return None
        sure = [part for part in parts if part is not None]
        ends = tuple(accumulate(map(len, sure)))
        whole = b"".join(sure)
        return whole, Pieces(tuple(ids), ends, (True,) * len(ids), len(whole))

    def _encode(self, text: str) -> Pieces:
        encoding = self.backend.encode(text, add_special_tokens=False)
        return self._exactly(encoding, text.encode()) or _by_offsets(encoding, text, self.unknown)

    def _exactly(self, encoding: Any, text: bytes) -> Pieces | None:
        """By the tokens' own bytes, where these are the text's, or the text's after a space that was put before it."""
        parts = self.bytes_of(encoding.ids)
        if self.kind == "words" or any(part is None for part in parts):
            return None
        sure = [part for part in parts if part is not None]
        whole = b"".join(sure)
        for put in (b"", b" "):
            if whole == put + text:
                ends = tuple(max(end - len(put), 0) for end in accumulate(map(len, sure)))
                return Pieces(tuple(encoding.ids), ends, (True,) * len(ends), len(text))
        return None

    def _bytes(self, token: str, i: int, continuing: str) -> bytes | None:
        if i in self._added:
            return token.encode()
        if self.kind == "bytes":
            table = _byte_table()
            return bytes(table[c] for c in token) if all(c in table for c in token) else None
        if self.kind == "metaspace":
            byte = _BYTE_FALLBACK.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        return token.removeprefix(continuing).encode() if continuing else token.encode()


def vocabulary_match(first: Reader, second: Reader) -> list[tuple[int, int]]:
    """Pairs of ids that stand for the same bytes, or for the same end or beginning of a text, in order of the first.

    Of several ids of one tokenizer for the same bytes the smallest counts.
    """
    theirs: dict[bytes, int] = {}
    for i, part in enumerate(second.vocabulary):
        if part:
            theirs.setdefault(part, i)
    seen: set[bytes] = set()
    pairs = []
    for i, part in enumerate(first.vocabulary):
        if part and part in theirs and part not in seen:
            seen.add(part)
            pairs.append((i, theirs[part]))
    for role in ("eos_token_id", "bos_token_id"):
        ours, other = getattr(first.tokenizer, role), getattr(second.tokenizer, role)
        if ours is not None and other is not None:
            pairs.append((int(ours), int(other)))
    return sorted(set(pairs))


def readable(raw: bytes) -> Iterator[tuple[int, int, str | None]]:
    """Runs of bytes that are UTF-8 with their text, and single runs that are not with None: (start, end, text)."""
    at = 0
    while at < len(raw):
        try:
            yield at, len(raw), raw[at:].decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield at, at + error.start, raw[at : at + error.start].decode()
            yield at + error.start, at + error.end, None
            at += error.end


def _by_offsets(encoding: Any, text: str, unknown: int | None) -> Pieces:
    """By the character offsets that a tokenizer reports: tokens that overlap are not cut apart."""
    at = [0, *accumulate(len(c.encode()) for c in text)]
    starts, ends = zip(*encoding.offsets, strict=True) if encoding.offsets else ((), ())
    reached, last = [], 0
    holes: list[tuple[int, int]] = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        # What was skipped must be space: else the tokenizer dropped something that the other tokenizer may say.
        if text[last:start].strip():
            holes.append((at[last], at[start]))
        if encoding.ids[i] == unknown:
            holes.append((at[min(start, last)], at[max(end, last)]))
        last = max(last, end)
        reached.append(last)
    if text[last:].strip():
        holes.append((at[last], at[-1]))
    # The first character that any later token begins at: no cut may lie behind it.
    later = list(accumulate(reversed([*starts, len(text)]), min))[::-1][1:]
    whole = tuple(start >= end for start, end in zip(later, reached, strict=True))
    return Pieces(tuple(encoding.ids), tuple(at[r] for r in reached), whole, at[-1], tuple(holes))


def _kind(state: dict[str, Any]) -> str:
    """How a tokenizer spells bytes: ``bytes``, ``metaspace``, ``words`` or ``plain`` text."""
    if state["model"].get("type") == "WordPiece" or state["model"].get("end_of_word_suffix"):
        return "words"
    names = [*_names(state.get("decoder")), *_names(state.get("pre_tokenizer"))]
    for name in ("ByteLevel", "Metaspace", "ByteFallback"):
        if name in names:
            return _LEVELS[name]
    spaced = json.dumps([state.get("normalizer"), state.get("decoder")], ensure_ascii=False)
    return "metaspace" if "▁" in spaced else "plain"


def _names(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for value in part.values():
            yield from _names(value)
    elif isinstance(part, list):
        for value in part:
            yield from _names(value)


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: printable ones are themselves, the rest follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
