import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.data.masked import masked_text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.tinybert import TinyBERT
from limbeck.models.encoder import encoder


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=12, test_size=4, context=14)


def network(data, seed, layers, hidden=16, heads=2):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 14, "classes": data.spec.classes}
    return encoder(hidden=hidden, layers=layers, heads=heads, data=data, **sizes).eval()


def ready(data, hidden=8, heads=2, **arguments):
    method = TinyBERT(**arguments)
    teacher = Teacher(network(data, 1, 4), {"logits", "hidden_states"}, "teacher")
    parts = Parts(network(data, 0, 2, hidden, heads), {"teacher": teacher}, data.spec, streams={"data": data.train})
    method.setup(parts)
    return method


def states(net, batch):
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    return net(**given, output_hidden_states=True).hidden_states


def scores(net, states, layer):
    """Attention scores [B, 2, T, T] of a layer, by BERT's own modules."""
    attention = net.bert.encoder.layer[layer].attention.self
    q, k = (m(states[layer]).double().unflatten(-1, (2, -1)).transpose(1, 2) for m in (attention.query, attention.key))
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


@pytest.mark.parametrize(
    ("layers", "pairs"), [("skip", ((1, 2), (2, 4))), ("emb_last", ((2, 4),)), ({1: 3}, ((1, 3),))]
)
def test_the_intermediate_loss_is_the_cards_formula(data, layers, pairs):
    method, batch = ready(data, layers=layers), data.train.batch(torch.arange(5))
    lengths, own, theirs = batch["attention_mask"].sum(1), method.student, method.teacher.module
    assert lengths.min() < 14
    s, t = states(own, batch), states(theirs, batch)
    wanted = {"embeddings": 0.0, "states": 0.0, "attention": 0.0}
    for b in range(5):
        n = int(lengths[b])
        maps = [("embeddings", "embedding_map", 0, 0), *(("states", "state_map", i, j) for i, j in pairs)]
        for name, through, i, j in maps:
            apart = s[i][b, :n].double() @ method.learners[through].weight.double().T - t[j][b, :n].double()
            wanted[name] += float(apart.square().sum().detach()) / 16
        for i, j in pairs:
            apart = (scores(own, s, i - 1) - scores(theirs, t, j - 1))[b, :, :n, :n]
            wanted["attention"] += float(apart.square().sum().detach()) / 2
    counts = {"embeddings": lengths.sum(), "states": lengths.sum(), "attention": lengths.square().sum()}
    for name, term in method.terms(batch).items():
        assert float(term.sum.detach()) == pytest.approx(wanted[name], rel=1e-4)
        assert int(term.count) == int(counts[name]) == int(method.count(batch)[term.unit])


def test_terms_have_weights_and_one_of_weight_zero_is_left_out(data):
    method = ready(data, embedding_weight=0.5, state_weight=0.0, attention_weight=2.0)
    terms = method.terms(data.train.batch(torch.arange(2)))
    assert {name: term.weight for name, term in terms.items()} == {"embeddings": 0.5, "attention": 2.0}


def test_the_prediction_is_a_soft_cross_entropy(data):
    method, batch = ready(data, stage="prediction", temperature=2.0), data.train.batch(torch.arange(4))
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    s, t = (net(**given).logits for net in (method.student, method.teacher.module))
    term = method.terms(batch)["prediction"]
    torch.testing.assert_close(term.sum / term.count, torch.nn.functional.cross_entropy(s / 2, (t / 2).softmax(-1)))
    assert set(method.learners) == {"student"}


def test_hidden_tokens_are_predicted_in_masked_text():
    rows = masked_text(corpus="grammar", characters=3000, context=14)
    method, batch = ready(rows, stage="prediction"), rows.train.batch(torch.arange(4))
    assert int(method.terms(batch)["prediction"].count) == int((batch["label"] != -100).sum()) > 0


@pytest.mark.parametrize("stage", ["intermediate", "prediction"])
def test_padding_and_the_cut_do_not_matter(data, stage):
    method, batch = ready(data, stage=stage), data.train.batch(torch.arange(4))
    filled = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}
    halves = [method.terms({k: v[i : i + 2] for k, v in batch.items() if k != "view"}) for i in (0, 2)]
    for name, term in method.terms(batch).items():
        torch.testing.assert_close(method.terms(filled)[name].sum, term.sum, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(halves[0][name].sum + halves[1][name].sum, term.sum, rtol=1e-4, atol=1e-5)


def test_the_maps_learn_beside_the_student_on_copies_with_other_words(data):
    method, batch = ready(data, replaced=0.9), data.train.batch(torch.arange(6))
    (update,) = method.updates(batch, Clock(0, 1, seed=5))
    assert set(update.roles) == {"student", "embedding_map", "state_map"}
    copied = method.copied(batch, 5)
    assert not torch.equal(copied["input_ids"], batch["input_ids"])
    for name, term in method.terms(copied).items():
        torch.testing.assert_close(update.evaluate()[name].sum, term.sum)
    assert ready(data).copied(batch, 5) is batch


def test_the_words_of_a_masked_language_model_are_taken_where_there_is_one(data):
    method, batch = ready(data, replaced=0.9), data.train.batch(torch.arange(6))
    torch.manual_seed(2)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 14}
    words = encoder(hidden=8, layers=1, heads=2, task="masked_lm", data=data, **sizes).eval()
    method.teachers["words"] = Teacher(words, {"logits"}, "words")
    assert not torch.equal(
        method.copied(batch, 5)["input_ids"], ready(data, replaced=0.9).copied(batch, 5)["input_ids"]
    )


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="head by head; the student has 4, the teacher 2"):
        ready(data, heads=4)
    with pytest.raises(UserError, match="candidates and copies are 1 or more"):
        TinyBERT(copies=0)
    method = ready(data, replaced=0.5)
    method._texts = {}
    with pytest.raises(UserError, match="data with a tokenizer"):
        method.copied(data.train.batch(torch.arange(2)), 0)
