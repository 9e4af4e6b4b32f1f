"""Queries, documents and what is relevant: lists to learn rankings from, plain texts, and a test over all documents."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Data
from limbeck.data.catalogue import catalogue
from limbeck.data.corpora import corpus_file, read_documents, read_fields, read_text
from limbeck.data.snippets import snippets
from limbeck.data.texts import Collection, TextRows, Texts, Words, words_of
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register

Names = Mapping[str, str]
Relevance = Mapping[str, Mapping[str, float]]
CISI = ("retrieval/cisi_docs.jsonl.gz", "retrieval/cisi_queries.jsonl.gz", "retrieval/cisi_qrels.tsv.gz")
FILES = ("documents.jsonl", "queries.jsonl", "qrels.tsv")


@register("data")
def retrieval(
    *,
    corpus: Literal["catalogue", "cisi", "headings"] | None = None,
    path: Path | None = None,
    rows: Literal["lists", "texts", "snippets"] = "lists",
    negatives: int = 7,
    documents: int = 200,
    queries: int = 400,
    test_queries: int = 60,
    labelled: int | None = None,
    scores: Path | None = None,
    query_prefix: str = "",
    document_prefix: str = "",
    mask_token: bool = False,
    rate: float = 0.15,
    tokenizer: Literal["word", "char", "bpe"] = "word",
    tokenizer_path: Path | None = None,
    vocab_size: int = 2000,
    context: int = 32,
    seed: int = 0,
    licence: str | None = None,
) -> Data:
    """Retrieval: each training row is a query and documents, or one text; the test ranks all documents for a query.

    A list is a query, a relevant document and ``negatives`` others, drawn anew in each view among those that are not
    relevant; its ``label`` is 0, the place of the relevant one. With ``rows: texts`` the rows are the training queries
    and all documents, without any label. With ``rows: snippets`` a row is two pieces of text, one after the other, of
    one document or (as often) of two: ``same`` is 1 or 0, some tokens are hidden, and ``label`` [2 context] has them.
    A document's pieces are its two halves; the catalogue tells of each thing twice. The test split's rows are lists in
    any case, and it has the whole ``collection``.

    Args:
        corpus: ``catalogue`` is made by the package; ``cisi`` (odd queries train, even ones test) and ``headings`` (the
            headings of WikiText-2 ask for the paragraphs below them) are found under ``LIMBECK_DATA``.
        path: or a folder with documents.jsonl and queries.jsonl (fields id and text) and qrels.tsv (query, document,
            and a grade if not all are 1, separated by tabs); every fifth query is for the test.
        rows: what training rows are.
        negatives: documents of a list that are not relevant.
        documents: of the catalogue, how many; of the others at most so many, those that are relevant first.
        queries: of the catalogue, how many to train on; of the others at most so many.
        test_queries: to judge on, at most.
        labelled: use the relevance of the first so many training queries alone for lists; by default of all.
        scores: a teacher's scores of pairs, .tsv (query, document, score) or .jsonl (query_id, document_id, score): the
            lists then have ``teacher_scores`` and draw their documents among those that have a score.
        query_prefix, document_prefix: put before each text, as some encoders want it.
        mask_token: give the tokenizer marks for hidden tokens; where one encoder learns from snippets and then from
            lists, both need them.
        rate: share of the tokens of snippets that are hidden, as in data ``masked_text``.
        tokenizer: made from the texts: frequent words, characters, or byte-level BPE.
        tokenizer_path: a saved tokenizer instead (a folder with tokenizer.json).
        vocab_size: of a tokenizer made from the texts, at most.
        context: tokens of a text at most.
        seed: of the catalogue.
        licence: of the texts, as their owner states it.

    Raises:
        UserError: a file is missing or wrong, too few documents are left for a list, or snippets without a mask.
    """
    if (corpus is None) == (path is None):
        raise UserError("data 'retrieval' needs one of corpus (catalogue, cisi, headings) and path (a folder)")
    if rows == "snippets" and not mask_token:
        raise UserError("data 'retrieval': rows of snippets have hidden tokens: give mask_token: true, in every phase")
    if min(negatives, documents, queries, test_queries) < 1:
        raise UserError("data 'retrieval': negatives, documents, queries and test_queries must be at least 1")
    if corpus == "catalogue":
        made = catalogue(documents, queries + test_queries, seed)
        found = Judged(made.documents, made.queries, made.relevance, made.retold)
        names = list(found.queries)
        parts = names[:queries], names[queries:]
    else:
        found = _cisi() if corpus == "cisi" else _headings() if corpus == "headings" else _folder(path)  # type: ignore[arg-type]
        train, test = _split(found, odd=corpus == "cisi")
        parts = train[:queries], test[:test_queries]
        found = found.cut([*parts[0], *parts[1]], documents)
    found = found.prefixed(query_prefix, document_prefix)
    every = [*found.documents.values(), *(found.queries[q] for q in parts[0])]
    if mask_token and found.retold is not None:
        every += found.retold.values()
    words = words_of(tokenizer, tokenizer_path, every, vocab_size, context)
    if mask_token:
        tokenizers.with_marks(words.tokenizer)
    stated = licence or {"catalogue": "made by limbeck", "headings": "CC BY-SA"}.get(corpus or "")
    known = read_scores(scores) if scores is not None else None
    maker = _Maker(found, words, negatives, stated, known)
    train_rows: Any = maker.texts(parts[0]) if rows == "texts" else None
    if rows == "lists":
        train_rows = maker.lists(parts[0][:labelled])
    elif rows == "snippets":
        train_rows = snippets(found.pieces(), words, maker.spec, rate, seed)
    test_rows = maker.lists(parts[1], judged=True) if parts[1] else None
    return Data(train_rows.spec, train=train_rows, test=test_rows, extra={"tokenizer": words.tokenizer})


@dataclass(frozen=True)
class Judged:
    """Texts by name, and how relevant documents are to queries."""

    documents: Names
    queries: Names
    relevance: Relevance
    retold: Names | None = None

    def pieces(self) -> list[tuple[str, str]]:
        """Two pieces of text for each document: it and what tells of the same, or its halves."""
        if self.retold is not None:
            return [(text, self.retold[name]) for name, text in self.documents.items()]
        words = [text.split() for text in self.documents.values()]
        halves = [(w[: (len(w) + 1) // 2], w[(len(w) + 1) // 2 :]) for w in words if len(w) > 1]
        return [(" ".join(a), " ".join(b)) for a, b in halves]

    def cut(self, queries: Sequence[str], documents: int) -> Judged:
        """Some queries, and at most so many documents: what is relevant to these queries comes first."""
        needed = {d for q in queries for d in self.relevance[q]}
        order = sorted(self.documents, key=lambda d: d not in needed)
        kept = {d: self.documents[d] for d in order[:documents]}
        relevance = {q: {d: g for d, g in self.relevance[q].items() if d in kept} for q in queries}
        return Judged(kept, {q: self.queries[q] for q in queries}, relevance)

    def prefixed(self, query: str, document: str) -> Judged:
        """With something before each text."""
        documents = {k: document + v for k, v in self.documents.items()}
        retold = None if self.retold is None else {k: document + v for k, v in self.retold.items()}
        return Judged(documents, {k: query + v for k, v in self.queries.items()}, self.relevance, retold)


class _Maker:
    """Rows out of what is judged."""

    def __init__(
        self,
        found: Judged,
        words: Words,
        negatives: int,
        licence: str | None,
        known: Mapping[tuple[str, str], float] | None,
    ) -> None:
        self.found, self.words, self.negatives = found, words, negatives
        self.spec = words.spec(classes=None, licence=licence)
        self.documents = words.table([*found.documents.values()], [*found.documents])
        self.places = {name: i for i, name in enumerate(found.documents)}
        self.known = known

    def texts(self, queries: Sequence[str]) -> TextRows:
        """One text a row: all documents, then the queries."""
        asked = self.words.table([self.found.queries[q] for q in queries])
        both = joined(self.documents, asked)
        every = torch.arange(len(both))
        return TextRows(both, every, every, self.spec, tokenizer=self.words.tokenizer)

    def lists(self, queries: Sequence[str], *, judged: bool = False) -> TextRows:
        """A query, a relevant document and others that are not, for every relevant pair."""
        there = [q for q in queries if self.found.relevance.get(q)]
        if not there:
            raise UserError("data 'retrieval': no query has a relevant document")
        asked = self.words.table([self.found.queries[q] for q in there], there)
        relevance = torch.zeros(len(there), len(self.documents))
        for i, q in enumerate(there):
            for d, grade in self.found.relevance[q].items():
                relevance[i, self.places[d]] = grade
        pairs = relevance.nonzero()
        known = None if self.known is None or judged else self._scores(there)
        if known is not None:
            pairs = pairs[known[pairs[:, 0], pairs[:, 1]].isfinite()]
        draw = Lists(pairs, relevance, self.negatives, known)
        both = joined(self.documents, asked)
        columns = {"label": torch.zeros(len(pairs), dtype=torch.int64)}
        ids = pairs[:, 0] * len(self.documents) + pairs[:, 1]
        collection = Collection(asked, self.documents, relevance) if judged else None
        return ListRows(
            both, draw, ids, self.spec, columns, tokenizer=self.words.tokenizer, facts=self.negatives,
            collection=collection,
        )  # fmt: skip

    def _scores(self, queries: Sequence[str]) -> Tensor:
        assert self.known is not None
        table = torch.full((len(queries), len(self.documents)), torch.nan)
        for i, q in enumerate(queries):
            for d, place in self.places.items():
                if (q, d) in self.known:
                    table[i, place] = self.known[q, d]
        if not table.isfinite().any():
            raise UserError("data 'retrieval': scores: no pair of a training query and a document has a score")
        return table


class Lists:
    """Which texts a list has: documents come first in the table, queries after them.

    Args:
        pairs: int64 [R, 2], the query and the relevant document of each row.
        relevance: float32 [Q, N].
        negatives: documents of a list that are not relevant.
        known: a teacher's scores [Q, N], NaN where there is none.

    Raises:
        UserError: some query has fewer documents that are not relevant.
    """

    def __init__(self, pairs: Tensor, relevance: Tensor, negatives: int, known: Tensor | None) -> None:
        self.pairs, self.negatives, self.known = pairs, negatives, known
        self.barred = relevance > 0 if known is None else (relevance > 0) | known.isnan()
        few = int((~self.barred[pairs[:, 0]]).sum(1).min()) if len(pairs) else 0
        if few < negatives:
            raise UserError(f"data 'retrieval': negatives is {negatives}, and a query has only {few} to draw from")

    def documents(self, indices: Tensor, view: int) -> Tensor:
        """The relevant document of some rows, then others, without repetition, int64 [B, 1 + negatives]."""
        pairs = self.pairs[indices]
        drawn = uniform(pairs[:, 0] * self.barred.shape[1] + pairs[:, 1], (self.barred.shape[1],), ("others", view))
        others = drawn.masked_fill(self.barred[pairs[:, 0]], 2.0).topk(self.negatives, dim=1, largest=False).indices
        return torch.cat([pairs[:, 1:], others], 1)

    def __call__(self, indices: Tensor, view: int) -> Tensor:
        """Query and documents as places in the table, int64 [B, 2 + negatives]."""
        query = self.pairs[indices, :1] + self.barred.shape[1]
        return torch.cat([query, self.documents(indices, view)], 1)

    def scores(self, indices: Tensor, view: int) -> Tensor:
        """The teacher's scores of the documents of some rows."""
        assert self.known is not None
        return self.known[self.pairs[indices, :1], self.documents(indices, view)]


class ListRows(TextRows):
    """Lists of documents, with the scores that a file has for them."""

    _rows: Lists

    def batch(self, indices: Tensor, view: int = 0) -> dict[str, object]:
        """Rows, with ``teacher_scores`` [B, n] where there are some."""
        found = super().batch(indices, view)
        if self._rows.known is not None:
            found["teacher_scores"] = self._rows.scores(indices, view)
        return found


def joined(first: Texts, second: Texts) -> Texts:
    """One table: the texts of the first, then those of the second."""
    return Texts(
        torch.cat([first.input_ids, second.input_ids]), torch.cat([first.attention_mask, second.attention_mask])
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_scores(path: Path) -> dict[tuple[str, str], float]:
    """A teacher's scores by (query, document), from lines of three columns or from JSON lines.

    Raises:
        UserError: no such file, a line that is not a query, a document and a finite number, or a pair given twice.
    """
    if str(path).endswith((".jsonl", ".jsonl.gz")):
        lines = [[row["query_id"], row["document_id"], row["score"]] for row in _fields(path)]
    else:
        lines = list(csv.reader(read_text(path).splitlines(), delimiter="\t"))
    scores: dict[tuple[str, str], float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            query, document, score = line
            value = float(score)
        except ValueError:
            raise UserError(f"{path} line {number}: expected a query, a document and a score, got {line}") from None
        if value != value or abs(value) == float("inf") or (query, document) in scores:
            raise UserError(f"{path} line {number}: the score of {query} and {document} is not finite, or given twice")
        scores[query, document] = value
    return scores


def _fields(path: Path) -> list[dict[str, str]]:
    return read_fields(path, ("query_id", "document_id", "score"))


def _folder(path: Path) -> Judged:
    documents, queries = (_named(path / name) for name in FILES[:2])
    return Judged(documents, queries, _relevance(path / FILES[2], documents, queries))


def _named(path: Path, field: str = "text") -> dict[str, str]:
    rows = read_fields(path, ("id", field))
    return {row["id"]: row[field] for row in rows}


def _relevance(path: Path, documents: Names, queries: Names) -> Relevance:
    found: dict[str, dict[str, float]] = {q: {} for q in queries}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        cells = line.split("\t")
        if number == 1 and not {cells[0]} & found.keys():
            continue  # names of the columns
        if len(cells) not in (2, 3) or cells[0] not in found or cells[1] not in documents:
            raise UserError(f"{path} line {number}: expected a query, a document (and a grade), both known: {line!r}")
        grade = float(cells[2]) if len(cells) == 3 else 1.0
        if grade > 0:
            found[cells[0]][cells[1]] = grade
    return found


def _cisi() -> Judged:
    places = [corpus_file("cisi", name) for name in CISI]
    documents = {r["id"]: f"{r['title']} . {r['text']}" for r in read_fields(places[0], ("id", "title", "text"))}
    queries = _named(places[1])
    return Judged(documents, queries, _relevance(places[2], documents, queries))


def _headings() -> Judged:
    """The headings of WikiText-2's articles with the paragraphs below them."""
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevance: dict[str, dict[str, float]] = {}
    title, heading = "", ""
    for line in read_documents(corpus_file("wikitext2", "text/wikitext2_valid.txt.gz"))[0].split("\n"):
        marked = re.fullmatch(r" *((?:= )+)(.*?)((?: =)+) *", line)
        if marked:
            heading = marked[2]
            title = heading if marked[1] == "= " else title
        elif line.strip() and title:
            asked = title if heading == title else f"{title} {heading}"
            documents[f"d{len(documents)}"] = line.strip()
            query = next((q for q, text in queries.items() if text == asked), f"q{len(queries)}")
            queries[query] = asked
            relevance.setdefault(query, {})[f"d{len(documents) - 1}"] = 1.0
    return Judged(documents, queries, relevance)


def _split(found: Judged, *, odd: bool) -> tuple[list[str], list[str]]:
    """Queries to train and to judge on, of those that have relevant documents: by odd names, or every fifth."""
    there = [q for q in found.queries if found.relevance.get(q)]
    if odd:
        return [q for q in there if int(q) % 2], [q for q in there if int(q) % 2 == 0]
    return [q for i, q in enumerate(there) if i % 5 != 4], there[4::5]
