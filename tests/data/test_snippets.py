import pytest
import torch

from limbeck.data.catalogue import catalogue
from limbeck.data.retrieval import retrieval
from limbeck.errors import UserError

SMALL = {"corpus": "catalogue", "documents": 40, "queries": 20, "test_queries": 10, "context": 26, "negatives": 2}


@pytest.fixture(scope="module")
def data():
    return retrieval(**SMALL, rows="snippets", mask_token=True)


def pieces(words, ids, mask):
    """The two texts of a row that hides nothing, decoded."""
    text = words.decode(ids[mask.bool()])
    return [part.strip() for part in text.split(words.eos_token) if part.strip()]


def test_half_of_the_rows_are_of_one_document_and_say_so(data):
    made = catalogue(40, 30)
    thing = {text: name for source in (made.documents, made.retold) for name, text in source.items()}
    rows, shares = data.train.rows, []
    assert len(rows) == 80
    for view in range(6):
        batch = rows.batch(torch.arange(80), view)
        assert batch["input_ids"].shape == (80, 52)
        for i in range(80):
            a, b = pieces(data.extra["tokenizer"], batch["input_ids"][i], batch["attention_mask"][i])
            assert a != b and (thing[a] == thing[b]) == bool(batch["same"][i])
        shares.append(batch["same"].float().mean())
    assert abs(sum(shares) / 6 - 0.5) < 0.07


def test_every_other_snippet_comes(data):
    rows = data.train.rows
    views = [rows.partners(torch.arange(80), v) for v in range(1500)]
    second, same = (torch.stack(parts) for parts in zip(*views, strict=True))
    assert set(second[same[:, 5] == 1, 5].tolist()) == {4}
    assert set(second[same[:, 5] == 0, 5].tolist()) == set(range(80)) - {4, 5}


def test_tokens_are_hidden_anew_in_each_view_and_the_label_has_them(data):
    for view in (0, 3):
        batch, plain = (s.batch(torch.arange(30), view) for s in (data.train, data.train.rows))
        hidden = batch["label"] != -100
        assert torch.equal(batch["label"][hidden], plain["input_ids"][hidden])
        assert torch.equal(batch["input_ids"][~hidden], plain["input_ids"][~hidden])
        assert torch.equal(batch["same"], plain["same"]) and not hidden[plain["attention_mask"] == 0].any()
        assert 0.08 < hidden.sum() / plain["attention_mask"].sum() < 0.2
    alone = data.train.batch(torch.tensor([7]), 3)
    assert torch.equal(alone["input_ids"][0], data.train.batch(torch.arange(30), 3)["input_ids"][7])


def test_lists_have_the_same_words_and_the_test_is_the_same(data):
    lists = retrieval(**SMALL, mask_token=True)
    assert lists.spec.tokenizer_hash == data.spec.tokenizer_hash and lists.spec.vocab_size == data.spec.vocab_size
    assert lists.test.fingerprint == data.test.fingerprint != data.train.fingerprint
    assert retrieval(**SMALL).spec.vocab_size < lists.spec.vocab_size


def test_documents_of_a_folder_are_halved(tmp_path):
    texts = {"d0": "a b c d e", "d1": "f g h i", "d2": "k", "d3": "l m"}
    (tmp_path / "documents.jsonl").write_text("".join(f'{{"id": "{k}", "text": "{v}"}}\n' for k, v in texts.items()))
    (tmp_path / "queries.jsonl").write_text("".join(f'{{"id": "q{i}", "text": "a"}}\n' for i in range(6)))
    (tmp_path / "qrels.tsv").write_text("".join(f"q{i}\td{i % 4}\n" for i in range(6)))
    made = retrieval(path=tmp_path, rows="snippets", mask_token=True, negatives=1, context=8)
    rows = made.train.rows
    found = [made.extra["tokenizer"].decode(ids[m.bool()], skip_special_tokens=True) for ids, m in zip(
        rows.table.input_ids, rows.table.attention_mask, strict=True
    )]  # fmt: skip
    assert found == ["a b c", "d e", "f g", "h i", "l", "m"] and rows.of.tolist() == [0, 0, 1, 1, 2, 2]


def test_what_cannot_be_paired_is_refused(tmp_path):
    with pytest.raises(UserError, match="mask_token: true"):
        retrieval(**SMALL, rows="snippets")
    with pytest.raises(UserError, match=r"rate must be in \(0, 1\)"):
        retrieval(**SMALL, rows="snippets", mask_token=True, rate=1.0)
