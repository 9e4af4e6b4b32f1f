import math

import pytest
import torch

from limbeck.data.retrieval import retrieval
from limbeck.engine.method import Parts
from limbeck.errors import UserError
from limbeck.language.methods.mose import MoSE, info_nce, same_pairs
from limbeck.language.models.exits import exit_encoder
from limbeck.models.embedding import text_encoder


@pytest.fixture(scope="module")
def data():
    return retrieval(corpus="catalogue", documents=20, queries=12, test_queries=4, negatives=2, context=26)


def sizes(data):
    return {"hidden": 16, "heads": 2, "vocab_size": data.spec.vocab_size, "context": 26, "data": data}


def network(data, every=1, **more):
    torch.manual_seed(0)
    return exit_encoder(layers=3, every=every, **sizes(data), **more).eval()


def ready(data, **arguments):
    method = MoSE(**arguments)
    method.setup(Parts(network(data), {}, data.spec))
    return method


def test_each_exit_is_told_apart_by_the_cards_formula(data):
    method, batch = ready(data, temperature=0.2, explicit=0.5), data.train.batch(torch.arange(5))
    terms = method.terms(batch)
    given = method.student.vectors(batch["input_ids"], batch["attention_mask"])
    found = [x.detach().double() for x in given]
    alike = same_pairs(batch)
    for layer, vectors in zip((1, 2, 3), found, strict=True):
        q, d = vectors[:, 0], vectors[:, 1]
        total = 0.0
        for i in range(5):
            for a, b in ((q, d), (d, q)):
                kept = [j for j in range(5) if j == i or not alike[i, j]]
                e = {j: math.exp(float(torch.cosine_similarity(a[i], b[j], dim=0)) / 0.2) for j in kept}
                total -= math.log(e[i] / sum(e.values())) / 2
        term = terms[f"exit_{layer}"]
        assert float(term.sum.detach()) == pytest.approx(total, rel=1e-4)
        assert (int(term.count), term.weight) == (5, pytest.approx(layer / 3))
        if layer < 3:
            apart = 1 - torch.cosine_similarity(vectors, found[-1], dim=-1)
            assert float(terms[f"explicit_{layer}"].sum.detach()) == pytest.approx(float(apart.mean(1).sum()), rel=1e-3)
            assert terms[f"explicit_{layer}"].weight == pytest.approx(0.5 * layer / 3)
    assert "explicit_3" not in terms


def test_even_weights(data):
    terms = ready(data, weights="even").terms(data.train.batch(torch.arange(4)))
    assert {name: t.weight for name, t in terms.items()} == {"exit_1": 1, "exit_2": 1, "exit_3": 1}


def test_the_explicit_part_does_not_move_the_last_exit(data):
    method = ready(data, explicit=1.0)
    terms = method.terms(data.train.batch(torch.arange(4)))
    terms["explicit_1"].sum.backward()
    assert method.student.dense.weight.grad is None
    assert method.student.heads[0].weight.grad.abs().sum() > 0


def test_another_right_document_is_no_negative():
    q, d = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    alike = torch.eye(3, dtype=torch.bool)
    alike[0, 2] = alike[2, 0] = True
    two = info_nce(q[:2], d[:2], alike[:2, :2], 0.5)
    assert torch.allclose(info_nce(q, d, alike, 0.5)[0], two[0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_encoder_cut_at_an_exit_gives_what_the_exit_gives(data, layers):
    whole, batch = network(data), data.test.batch(torch.arange(3))
    cut = whole.at(layers)
    texts = batch["input_ids"], batch["attention_mask"]
    assert len(cut.backbone.encoder.layer) == cut.config.num_hidden_layers == layers
    assert torch.allclose(cut(*texts)["embedding"], whole.vectors(*texts)[layers - 1], atol=1e-6)


def test_as_an_encoder_it_is_its_last_exit(data):
    whole, batch = network(data, every=2), data.test.batch(torch.arange(3))
    texts = batch["input_ids"], batch["attention_mask"]
    assert whole.exits == (1, 3)
    assert torch.allclose(whole.encode(*texts)[0], whole(*texts)["embedding"], atol=1e-6)


def test_a_student_without_exits_and_an_exit_that_is_not_there_are_refused(data):
    with pytest.raises(UserError, match="must be an exit_encoder, not TextEncoder"):
        MoSE().setup(Parts(text_encoder(layers=1, **sizes(data)), {}, data.spec))
    with pytest.raises(UserError, match=r"after \[1, 3\] layers, not after 2"):
        network(data, every=2).at(2)


def test_a_query_without_a_label_is_nobodys_pair(data):
    method, batch = ready(data), data.train.batch(torch.arange(5))
    some = {**batch, "label": batch["label"].clone()}
    some["label"][3:] = -100
    fewer = {name: value[:3] for name, value in batch.items() if torch.is_tensor(value)}
    for name, term in method.terms(some).items():
        alone = method.terms(fewer)[name]
        assert float(term.sum.detach()) == pytest.approx(float(alone.sum.detach()), rel=1e-5)
        assert int(term.count) == int(alone.count) == 3
