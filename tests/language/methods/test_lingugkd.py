import pytest
import torch

from limbeck.data.graph_nodes import graph_nodes
from limbeck.data.labelled import labelled_text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.lingugkd import LinguGKD
from limbeck.models.causal import causal_lm
from limbeck.models.encoder import encoder
from limbeck.models.graph import GraphConvolutionalNetwork

WORLD = {"per_class": 2, "nodes": 40, "test_size": 10, "classes": 3, "words": 4, "length": 5}
CLOCK = Clock(step=3, total=10)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    prompts = graph_nodes(form="prompts", **WORLD)
    sizes = {"vocab_size": prompts.spec.vocab_size, "context": 64}
    model = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, data=prompts, **sizes)
    model.tokenizer = prompts.extra["tokenizer"]
    return Teacher(model, {"hidden_states"}, "teacher")


def ready(teacher, data=None, student=None, **arguments):
    data = data or graph_nodes(**WORLD)
    torch.manual_seed(1)
    student = student or GraphConvolutionalNetwork(hidden=6, classes=3, layers=2, data=data)
    method = LinguGKD(**arguments)
    method.setup(Parts(student, {"teacher": teacher}, data.spec, streams={"data": data.train}))
    return method, data.train


def test_the_loss_is_the_cards_formula(teacher):
    method, source = ready(teacher, weight=0.7, tau=0.3, negatives=4, dim=5)
    batch = source.batch(torch.tensor([0, 3, 20]))
    terms = method.terms(batch, CLOCK)
    around, align = method.frozen["surroundings"], method.learners["alignment"]
    signals = method.student(batch["input"])
    drawn = around.draw(around.rows(batch["id"]), CLOCK.uniform(batch["id"], (3, 4), "others"))
    total = 0.0
    for b, node in enumerate(batch["id"]):
        for layer, h in enumerate(signals["hidden_states"]):
            mine = align.own[layer](h[b])
            rows = [int(around.rows(node[None])[0]), *drawn[b, layer].tolist()]
            theirs = [align.theirs[layer](around.vectors[row, layer]) for row in rows]
            scores = torch.stack([torch.cosine_similarity(mine, t, dim=0) for t in theirs]).double() / 0.3
            total -= float(torch.log_softmax(scores, 0)[0].detach()) / 3  # the softmax of three equal numbers
    assert float(terms["contrast"].sum.detach()) == pytest.approx(total, rel=1e-4)
    assert (int(terms["contrast"].count), terms["contrast"].weight) == (3, 0.7)
    labelled = batch["label"] >= 0
    ce = -torch.log_softmax(signals["logits"].double(), -1)[labelled, batch["label"][labelled]].sum()
    assert float(terms["ce"].sum.detach()) == pytest.approx(float(ce.detach()), rel=1e-5)
    assert int(terms["ce"].count) == int(labelled.sum()) == 2


def test_a_node_learns_the_same_in_any_batch(teacher):
    method, source = ready(teacher)
    whole = method.terms(source.batch(torch.arange(12)), CLOCK)
    pieces = [method.terms(source.batch(rows), CLOCK) for rows in torch.arange(12).split(5)]
    for name, term in whole.items():
        assert float(term.sum.detach()) == pytest.approx(sum(float(p[name].sum.detach()) for p in pieces), rel=1e-5)


def test_only_labelled_nodes_learn_where_asked_and_without_weight_there_is_no_contrast(teacher):
    method, source = ready(teacher, unlabelled=False)
    batch = source.batch(torch.arange(12))
    assert int(method.terms(batch, CLOCK)["contrast"].count) == int((batch["label"] >= 0).sum())
    assert int(method.count(batch)["nodes"]) == int((batch["label"] >= 0).sum()) < 12
    method.weight = 0.0
    assert list(method.terms(batch, CLOCK)) == ["ce"]


def test_shuffled_nodes_have_the_vectors_of_others(teacher):
    (plain, source), (mixed, _) = ready(teacher), ready(teacher, shuffled=True)
    rows = [m.frozen["surroundings"].rows(source.nodes) for m in (plain, mixed)]
    own, others = (m.frozen["surroundings"].vectors[r] for m, r in zip((plain, mixed), rows, strict=True))
    assert (own != others).any(2).any(1).float().mean() > 0.8
    assert torch.allclose(own.sum(0), others.sum(0), atol=1e-4)


def test_what_cannot_teach_or_learn_so_is_refused(teacher):
    texts = labelled_text(corpus="topics", train_size=12, test_size=4, context=20)
    with pytest.raises(UserError, match="learns from data 'graph_nodes'"):
        ready(teacher, texts, encoder(hidden=16, layers=1, heads=2, vocab_size=90, context=20, data=texts))

    class Flat(torch.nn.Module):
        def forward(self, nodes):
            return torch.zeros(len(nodes), 3)

    with pytest.raises(UserError, match="no hidden states of nodes"):
        ready(teacher, student=Flat())
