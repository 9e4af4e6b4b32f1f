import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.minilm import MiniLM
from limbeck.models.encoder import encoder


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=12, test_size=4, context=14)


def network(data, seed, layers, hidden=16, heads=2):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 20, "classes": 4}
    net = encoder(hidden=hidden, layers=layers, heads=heads, data=data, **sizes).eval()
    for layer in net.bert.encoder.layer:
        # Fresh attention is nearly uniform; such relations all look alike.
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            part.weight.data.mul_(20)
    return net


def ready(data, student=None, **arguments):
    method = MiniLM(**arguments)
    teacher = Teacher(network(data, 1, 4), {"logits", "hidden_states"}, "teacher")
    own = {"layers": 2, "hidden": 8, **(student or {})}
    method.setup(Parts(network(data, 0, **own), {"teacher": teacher}, data.spec))
    return method


def projected(net, batch, layer):
    """Query, key and value [B, T, D] of a layer, by running BERT's own modules on its hidden states."""
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    states = net(**given, output_hidden_states=True).hidden_states
    attention = net.bert.encoder.layer[layer].attention.self
    return [module(states[layer]).double() for module in (attention.query, attention.key, attention.value)]


def divergence(s, t, b, n, heads, left, right):
    """Mean over heads of the sum of KL over the n real queries, with x_left x_right^T over the n real keys."""
    total = 0.0
    for h in range(heads):
        logs = []
        for x in (s, t):
            d = x[left].shape[-1] // heads
            part = slice(h * d, (h + 1) * d)
            logs.append((x[left][b, :n, part] @ x[right][b, :n, part].T / d**0.5).log_softmax(-1))
        total = total + float((logs[1].exp() * (logs[1] - logs[0])).sum().detach()) / heads
    return total


@pytest.mark.parametrize(
    ("arguments", "student", "heads", "pairs"),
    [
        ({"version": "v1"}, {}, 2, {"attention": (0, 1), "values": (2, 2)}),
        ({"version": "v2"}, {"heads": 4}, 2, {"queries": (0, 0), "keys": (1, 1), "values": (2, 2)}),
        ({"relation_heads": 4, "teacher_layer": 1}, {}, 4, {"queries": (0, 0), "keys": (1, 1), "values": (2, 2)}),
    ],
)
def test_the_loss_is_the_cards_formula(data, arguments, student, heads, pairs):
    method, batch = ready(data, student, **arguments), data.train.batch(torch.arange(5))
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < 14
    s = projected(method.student, batch, 1)
    t = projected(method.teacher.module, batch, arguments.get("teacher_layer", 3))
    terms = method.terms(batch)
    assert set(terms) == set(pairs)
    for name, (left, right) in pairs.items():
        wanted = sum(divergence(s, t, b, int(lengths[b]), heads, left, right) for b in range(5))
        assert float(terms[name].sum.detach()) == pytest.approx(wanted, rel=1e-4)
        assert int(terms[name].count) == int(lengths.sum()) == int(method.count(batch)[terms[name].unit])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_padding_and_the_cut_do_not_matter(data, version):
    method, batch = ready(data, version=version), data.train.batch(torch.arange(4))
    filled = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}
    halves = [method.terms({k: v[i : i + 2] for k, v in batch.items() if k != "view"}) for i in (0, 2)]
    for name, term in method.terms(batch).items():
        torch.testing.assert_close(method.terms(filled)[name].sum, term.sum, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(halves[0][name].sum + halves[1][name].sum, term.sum, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(data, version):
    method = ready(data, {"layers": 4, "hidden": 16}, version=version)
    batch = data.train.batch(torch.arange(4))
    before = method.terms(batch)
    method.student.load_state_dict(method.teacher.module.state_dict())
    for name, term in method.terms(batch).items():
        assert abs(float(term.sum.detach())) < 1e-4 < float(before[name].sum.detach())


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="head by head; the student has 4, the teacher 2"):
        ready(data, {"heads": 4}, version="v1")
    with pytest.raises(UserError, match="3 relation_heads do not share the student's queries, keys or values 8 wide"):
        ready(data, relation_heads=3).terms(data.train.batch(torch.arange(2)))
    with pytest.raises(UserError, match="no layer 9"):
        ready(data, teacher_layer=9)
