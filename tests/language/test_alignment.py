from itertools import combinations, product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.language.alignment import Pieces, Reader, align, readable, vocabulary_match
from toolkit.words import HARD, KINDS, LOSSLESS, PIECES, words

MARK = "▁".encode()
READERS = {kind: Reader(words(kind)) for kind in KINDS}
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def check(first, second, text, spans):
    """In order, next to one another, covering the text, and none of them can be cut in two."""
    raw = text.encode()
    at = (0, 0, 0)
    for span in spans:
        assert (span.first[0], span.second[0], span.bytes[0]) == at
        at = (span.first[1], span.second[1], span.bytes[1])
        assert span.bytes[0] < span.bytes[1]
        inside = set(range(span.bytes[0] + 1, span.bytes[1]))
        assert not inside & first.cuts.keys() & second.cuts.keys()
    assert at[2] == (len(raw) if first.ids and second.ids else 0)


@pytest.mark.parametrize(("one", "two"), combinations(LOSSLESS, 2))
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_spans_of_tokenizers_that_keep_the_text_say_the_same_bytes(one, two, text):
    first, second = READERS[one].encode(text), READERS[two].encode(text)
    spans = align(first, second)
    check(first, second, text, spans)
    for span in spans:
        if span.hole:
            continue
        said = [
            b"".join(part or b"" for part in READERS[kind].bytes_of(pieces.ids[a:b]))
            for kind, pieces, (a, b) in ((one, first, span.first), (two, second, span.second))
        ]
        wanted = text.encode()[slice(*span.bytes)]
        # A space may be put before the text; and the mark that stands for a space is read as one.
        if "metaspace" in (one, two):
            said, wanted = [s.replace(MARK, b" ") for s in said], wanted.replace(MARK, b" ")
        assert all(s == wanted or (span.bytes[0] == 0 and s == b" " + wanted) for s in said)
    assert not any(span.hole for span in spans) or "char" in (one, two)


@pytest.mark.parametrize(("one", "two"), product(KINDS, KINDS))
def test_hard_texts_are_covered_whatever_the_tokenizers(one, two):
    for text in HARD:
        first, second = READERS[one].encode(text), READERS[two].encode(text)
        spans = align(first, second)
        check(first, second, text, spans)
        if one == two:
            # Nothing is closer to a tokenisation than itself: as many spans as there are places to cut.
            assert len(spans) == len(first.cuts) - 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_what_a_tokenizer_does_not_say_is_a_hole(kind, text):
    """Every byte that is not space is in a token of its own text, or in a hole."""
    spans = align(READERS[kind].encode(text), READERS["byte_bpe"].encode(text))
    unknown = READERS[kind].unknown
    for span in spans:
        ids = READERS[kind].encode(text).ids[slice(*span.first)]
        if not ids or unknown in ids:
            assert span.hole


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_the_text_of_given_tokens_is_that_of_the_tokenizer(kind, text):
    reader = READERS[kind]
    ids = reader.encode(text).ids
    if reader.unknown in ids:
        assert reader.pieces(ids) is None
        return
    raw, pieces = reader.pieces(ids)
    said = [text.encode(), b" " + text.encode()]
    assert raw in ([s.replace(MARK, b" ") for s in said] if kind == "metaspace" else said)
    assert pieces.size == len(raw) and pieces.ids == tuple(ids)


def test_tokens_that_end_inside_a_character_are_joined():
    """A byte-level token is a piece of an emoji; character offsets give both pieces the whole of it."""
    reader = READERS["byte_bpe"]
    text = "👍🏽🧿"
    pieces = reader.encode(text)
    assert len(pieces.ids) > 3 and pieces.size == 12
    spans = align(pieces, READERS["char"].encode(text))
    assert [text.encode()[slice(*s.bytes)].decode() for s in spans] == ["👍", "🏽", "🧿"]
    assert max(b - a for a, b in (s.first for s in spans)) > 1


def test_a_normaliser_that_changes_the_length_moves_nothing():
    """NFC makes one character of two, NFKC three of one: what follows is still aligned."""
    for kind, text in (("nfc_bpe", "nai\u0308ve cat sat"), ("unigram", "ﷺ the cat ﬁ sat")):
        spans = align(READERS[kind].encode(text), READERS["byte_bpe"].encode(text))
        raw = text.encode()
        assert any(raw[slice(*s.bytes)].decode().strip() in ("cat", "sat", "s", "c") for s in spans if not s.hole)
        assert all(raw[slice(*s.bytes)].decode() for s in spans), "no span is cut inside a character"


def test_texts_of_unlike_length_are_refused():
    with pytest.raises(UserError, match="cover 3 and 4 bytes"):
        align(READERS["char"].encode("the"), READERS["char"].encode("the "))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"not a fast tokenizer.*tokenizer\.json"):
        Reader(SimpleNamespace())


def test_a_tokenisation_without_tokens_has_no_span():
    empty = Pieces((), (), (), 0)
    assert align(empty, empty) == []


def test_the_same_bytes_are_matched_however_they_are_spelt():
    meta, level = READERS["metaspace"], READERS["byte_bpe"]
    pairs = dict(vocabulary_match(meta, level))
    ours, theirs = words("metaspace").get_vocab(), words("byte_bpe").get_vocab()
    assert pairs[ours["▁the"]] == theirs["Ġthe"]
    assert pairs[ours["<0xC3>"]] == theirs["Ã"]
    assert pairs[ours["</s>"]] == theirs["<eos>"], "by what it means"
    assert ours["<unk>"] not in pairs and ours["<s>"] not in pairs
    # Each of the characters has one match: the letter, and not also the byte that it is spelt with.
    assert len(set(pairs.values())) == len(pairs)


@given(st.binary(max_size=12))
@settings(max_examples=100, deadline=None)
def test_runs_of_text_and_of_what_is_none_cover_the_bytes(raw):
    at, text = 0, b""
    for start, end, run in readable(raw):
        assert start == at < end
        assert run is None or run.encode() == raw[start:end]
        text, at = text + (run.encode() if run is not None else raw[start:end]), end
    assert text == raw
