import math

import pytest
import torch

from limbeck.data.retrieval import retrieval
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.language.methods.mose import MoSE, info_nce, same_pairs
from limbeck.language.models.exits import exit_encoder
from limbeck.models.embedding import text_encoder
from limbeck.run import run_recipe


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


@pytest.fixture(scope="module")
def snippets():
    return retrieval(
        corpus="catalogue", documents=20, queries=12, test_queries=4, context=26, rows="snippets", mask_token=True
    )


def pretraining(snippets, pooling="mean", **arguments):
    torch.manual_seed(0)
    made = exit_encoder(layers=3, pooling=pooling, **{**sizes(snippets), "context": 52}).eval()
    method = MoSE(stage="pretraining", **arguments)
    method.setup(Parts(made, {}, snippets.train.spec))
    return method


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_exit_fills_in_words_and_tells_pairs_by_the_shared_heads(snippets, pooling):
    method, batch = pretraining(snippets, pooling, explicit=0.5), snippets.train.batch(torch.arange(6), 1)
    terms, heads = method.terms(batch), method.learners["heads"].double()
    states = method.student.exit_states(batch["input_ids"], batch["attention_mask"])
    states = [s.detach().double() for s in states]
    assert heads.place.weight.shape == (3, 16) and heads.place.weight.abs().sum() > 0
    for number, layer in enumerate((1, 2, 3)):
        words = same = apart = 0.0
        count = 0
        for i in range(6):
            length = int(batch["attention_mask"][i].sum())
            added = [states[number][i, t] + heads.place.weight[number] for t in range(length)]
            for t in range(length):
                if batch["label"][i, t] == -100:
                    continue
                logits = heads.words(heads.norm(torch.nn.functional.gelu(heads.dense(added[t])))).tolist()
                words -= logits[batch["label"][i, t]] - math.log(sum(math.exp(x) for x in logits))
                count += 1
            pooled = sum(added) / length if pooling == "mean" else added[0]
            told = 1 / (1 + math.exp(-float(heads.same(pooled).detach())))
            same -= math.log(told if batch["same"][i] else 1 - told)
            own, last = (sum(states[k][i, :length]) if pooling == "mean" else states[k][i, 0] for k in (number, 2))
            apart += 1 - float(torch.cosine_similarity(own, last, dim=0))
        assert float(terms[f"words_{layer}"].sum.detach()) == pytest.approx(words, rel=1e-4)
        assert int(terms[f"words_{layer}"].count) == count == int(method.count(batch)["labelled"])
        assert float(terms[f"same_{layer}"].sum.detach()) == pytest.approx(same, rel=1e-4)
        assert terms[f"same_{layer}"].count == 6
        assert [terms[f"{n}_{layer}"].weight for n in ("words", "same")] == pytest.approx([layer / 3] * 2)
        if layer < 3:
            assert float(terms[f"explicit_{layer}"].sum.detach()) == pytest.approx(apart, abs=2e-6)
    assert "explicit_3" not in terms


def test_pretraining_moves_the_body_and_heads_of_its_own_and_can_be_cut(snippets):
    method, batch = pretraining(snippets), snippets.train.batch(torch.arange(6))
    (update,) = method.updates(batch, Clock(0, 10))
    assert set(update.role if isinstance(update.role, tuple) else [update.role]) == {"student", "heads"}
    sum(t.weight * t.sum / t.count for t in update.terms.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in method.learners["heads"].parameters())
    assert method.student.backbone.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
    assert method.student.dense.weight.grad is None, "the projections are the fine-tuning's"
    assert not method.couples_samples and MoSE().couples_samples
    halves = [method.terms({k: v[part] if torch.is_tensor(v) else v for k, v in batch.items()}) for part in
              (slice(0, 2), slice(2, 6))]  # fmt: skip
    for name, term in method.terms(batch).items():
        parts = sum(float(h[name].sum.detach()) for h in halves)
        assert parts == pytest.approx(float(term.sum.detach()), rel=1e-5)


def test_pretraining_says_what_it_lacks(data, snippets):
    method = pretraining(snippets)
    with pytest.raises(UserError, match="rows: snippets, mask_token: true"):
        method.terms(data.train.batch(torch.arange(2)))
    with pytest.raises(UserError, match="rows of snippets have 52 tokens, and the student reads 26"):
        MoSE(stage="pretraining").setup(Parts(network(snippets), {}, snippets.train.spec))
    with pytest.raises(UserError, match="give mask_token: true to the data of every phase"):
        MoSE(stage="pretraining").setup(Parts(network(data), {}, snippets.train.spec))
    with pytest.raises(UserError, match="renamed is a share"):
        MoSE(renamed=1.5)


def test_documents_get_other_names_and_queries_keep_theirs(data):
    method = MoSE(renamed=1.0)
    method.setup(Parts(network(data), {}, data.spec, streams={"data": data.train}))
    batch = data.train.batch(torch.arange(12))
    changed = method.with_other_names(batch, 0)
    assert torch.equal(changed["input_ids"][:, 0], batch["input_ids"][:, 0])
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    assert torch.equal(changed["input_ids"], method.with_other_names(batch, 0)["input_ids"])
    alone = {k: v[3:5] if torch.is_tensor(v) else v for k, v in batch.items()}
    assert torch.equal(method.with_other_names(alone, 0)["input_ids"], changed["input_ids"][3:5])
    assert MoSE().with_other_names(batch, 0) is batch


def test_two_phases_share_the_network_and_only_it_is_delivered(tmp_path):
    facts = {"corpus": "catalogue", "documents": 20, "queries": 12, "test_queries": 4, "context": 26}
    recipe = {
        "title": "Two stages",
        "data": {"name": "retrieval", **facts, "negatives": 2, "mask_token": True},
        "student": {"name": "exit_encoder", "hidden": 16, "layers": 2, "heads": 2, "context": 52},
        "method": "mose",
        "phases": [
            {"name": "reading", "data": {"rows": "snippets"}, "method": {"stage": "pretraining"}},
            {"name": "finding", "train": {"steps": 3}},
        ],
        "train": {"steps": 2, "batch_size": 4},
        "evaluate": ["retrieval"],
        "controls": False,
    }
    whole = run_recipe(recipe, runs=tmp_path, quiet=True)
    plain = run_recipe({**recipe, "phases": recipe["phases"][1:]}, runs=tmp_path, quiet=True)
    assert type(whole.student).__name__ == "ExitEncoder"
    assert not any("place" in name or name.startswith("words") for name in whole.student.state_dict())
    assert whole.results["arms"]["student"]["steps"] == 5
    pairs = zip(whole.student.parameters(), plain.student.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
