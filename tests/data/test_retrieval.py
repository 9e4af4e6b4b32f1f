import gzip
import json

import pytest
import torch

from limbeck.data.catalogue import TRAITS, catalogue, sentence_pairs
from limbeck.data.retrieval import read_scores, retrieval
from limbeck.errors import UserError

SMALL = {"corpus": "catalogue", "documents": 30, "queries": 20, "test_queries": 10, "negatives": 3, "context": 16}


@pytest.fixture(scope="module")
def data():
    return retrieval(**SMALL)


def texts(source, ids, mask):
    return source.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)


def test_a_list_is_a_query_a_relevant_document_and_others(data):
    made = catalogue(30, 30)
    batch = data.train.batch(torch.arange(len(data.train)))
    assert batch["input_ids"].shape[1:] == (5, 16) and not batch["label"].any()
    documents = {texts(data.train, *data.train.texts[torch.tensor(i)]): f"d{i}" for i in range(30)}
    queries = {text: name for name, text in made.queries.items()}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        relevant = made.relevance[queries[texts(data.train, ids[0], mask[0])]]
        found = [documents[texts(data.train, i, m)] for i, m in zip(ids[1:], mask[1:], strict=True)]
        assert found[0] in relevant and not set(found[1:]) & set(relevant) and len(set(found)) == 4


def test_others_are_drawn_anew_in_each_view_and_are_the_same_for_a_view(data):
    rows = torch.arange(8)
    first, again, other = (data.train.batch(rows, view)["input_ids"] for view in (0, 0, 1))
    assert torch.equal(first, again) and torch.equal(first[:, :2], other[:, :2])
    assert not torch.equal(first[:, 2:], other[:, 2:])
    cut = torch.cat([data.train.batch(rows[:3], 1)["input_ids"], data.train.batch(rows[3:], 1)["input_ids"]])
    assert torch.equal(cut, other)


def test_the_collection_says_what_is_relevant(data):
    made, judged = catalogue(30, 30), data.test.collection
    for q, name in enumerate(judged.queries.names):
        relevant = {d for d, there in zip(judged.documents.names, judged.relevance[q], strict=True) if there}
        assert relevant == set(made.relevance[name])
    assert len(judged.documents) == 30 and judged.queries.names[0] == "q20"


def test_a_document_is_relevant_where_it_has_all_that_is_asked_for():
    made = catalogue(40, 40, seed=3, synonyms=0.0)
    value = {word: (k, v) for k, kind in enumerate(TRAITS) for v, words in enumerate(kind) for word in words}
    has = {d: {value[w] for w in text.split() if w in value} for d, text in made.documents.items()}
    for q, text in made.queries.items():
        asked = {value[w] for w in text.split() if w in value}
        assert {d for d, traits in has.items() if asked <= traits} == set(made.relevance[q])


def test_plain_texts_are_all_documents_and_training_queries():
    data = retrieval(**SMALL, rows="texts")
    assert len(data.train) == 50 and data.train.batch(torch.arange(2))["input_ids"].shape == (2, 16)
    assert "label" not in data.train.batch(torch.arange(2))


def test_a_score_file_gives_the_teachers_scores(tmp_path):
    made = catalogue(30, 30)
    table = {(q, d): i * 0.5 + j for i, q in enumerate(list(made.queries)[:20]) for j, d in enumerate(made.documents)}
    file = tmp_path / "scores.tsv"
    file.write_text("".join(f"{q}\t{d}\t{s}\n" for (q, d), s in table.items()))
    assert read_scores(file) == table
    lines = tmp_path / "scores.jsonl"
    lines.write_text(
        "".join(json.dumps({"query_id": q, "document_id": d, "score": s}) + "\n" for (q, d), s in table.items())
    )
    assert read_scores(lines) == table
    plain, scored = retrieval(**SMALL), retrieval(**SMALL, scores=file)
    batch = scored.train.batch(torch.arange(6), 2)
    assert torch.equal(batch["input_ids"], plain.train.batch(torch.arange(6), 2)["input_ids"])
    documents = scored.train._rows.documents(torch.arange(6), 2)
    queries = scored.train._rows.pairs[:6, 0]
    there = [q for q in list(made.queries)[:20] if made.relevance[q]]
    wanted = [
        [table[there[q], f"d{d}"] for d in row] for q, row in zip(queries.tolist(), documents.tolist(), strict=True)
    ]
    torch.testing.assert_close(batch["teacher_scores"], torch.tensor(wanted))


def test_a_folder_of_ones_own(tmp_path):
    for name, count in (("documents", 12), ("queries", 10)):
        lines = [json.dumps({"id": f"{name[0]}{i}", "text": f"{name} number {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels.tsv").write_text("query\tdocument\tgrade\n" + "".join(f"q{i}\td{i}\t2\n" for i in range(10)))
    data = retrieval(path=tmp_path, negatives=2, context=8)
    assert len(data.train) == 8 and len(data.test.collection.queries) == 2
    assert data.test.collection.relevance.max() == 2
    (tmp_path / "qrels.tsv").write_text("q0\tnobody\n")
    with pytest.raises(UserError, match="line 1: expected a query, a document"):
        retrieval(path=tmp_path, negatives=2, context=8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corpus": None}, "one of corpus"),
        ({"negatives": 0}, "must be at least 1"),
        ({"negatives": 40}, r"a query has only \d+ to draw from"),
        ({"context": 3}, "at least 4 tokens"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        retrieval(**{**SMALL, **change})


def test_scores_that_are_none_are_refused(tmp_path):
    file = tmp_path / "scores.tsv"
    file.write_text("q1\td1\tmuch\n")
    with pytest.raises(UserError, match="line 1: expected a query, a document and a score"):
        read_scores(file)
    file.write_text("q1\td1\tnan\n")
    with pytest.raises(UserError, match="not finite"):
        read_scores(file)


def test_cisi_is_split_by_the_numbers_of_its_queries(tmp_path, monkeypatch):
    folder = tmp_path / "retrieval"
    folder.mkdir()
    documents = [{"id": str(i), "title": f"t{i}", "text": "of many words", "author": "x"} for i in range(1, 9)]
    queries = [{"id": str(i), "text": f"what is t{i}"} for i in range(1, 7)]
    for name, rows in (("docs", documents), ("queries", queries)):
        with gzip.open(folder / f"cisi_{name}.jsonl.gz", "wt") as f:
            f.write("\n".join(map(json.dumps, rows)))
    with gzip.open(folder / "cisi_qrels.tsv.gz", "wt") as f:
        f.write("query_id\tdoc_id\n" + "\n".join(f"{i}\t{i}" for i in range(1, 5)))
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    data = retrieval(corpus="cisi", negatives=2, context=8)
    assert data.test.collection.queries.names == ("2", "4") and len(data.train) == 2


def test_pairs_say_how_many_traits_they_share():
    value = {word: (k, v) for k, kind in enumerate(TRAITS) for v, words in enumerate(kind) for word in words}
    for a, b, score in sentence_pairs(50, seed=1):
        one, two = ({value[w] for w in text.split() if w in value} for text in (a, b))
        assert len(one & two) / 4 == score
