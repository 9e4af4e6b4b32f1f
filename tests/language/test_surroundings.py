import pytest
import torch

from limbeck.data.graph_nodes import graph_nodes
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.surroundings import Alignment, Surroundings, contrast, nearest_class, read_nodes
from limbeck.models.causal import causal_lm

WORLD = {"per_class": 2, "nodes": 30, "test_size": 10, "classes": 3, "words": 4, "length": 5}


def reader(context=64, **facts):
    torch.manual_seed(0)
    prompts = graph_nodes(form="prompts", **WORLD)
    sizes = {"vocab_size": prompts.spec.vocab_size, "context": context}
    model = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, data=prompts, **sizes)
    model.tokenizer = facts.get("tokenizer", prompts.extra["tokenizer"])
    return Teacher(model, {"hidden_states"}, "teacher")


def test_a_vector_is_the_last_state_at_the_last_token_of_a_prompt():
    teacher, source = reader(), graph_nodes(**WORLD).train
    found = read_nodes(teacher, source, hops=2)
    assert found.shape == (20, 3, 16)
    for node, hop in ((0, 0), (3, 1), (19, 2)):
        ids = torch.tensor([teacher.tokenizer(source.prompts.text(node, hop))["input_ids"]])
        states = teacher.module(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(found[node, hop], states[0, -1], atol=1e-5)


def test_a_teacher_that_cannot_read_is_refused():
    source = graph_nodes(**WORLD).train
    with pytest.raises(UserError, match="teacher has no tokenizer"):
        read_nodes(reader(tokenizer=None), source, hops=1)
    with pytest.raises(UserError, match="teacher reads 8 tokens, and a prompt has"):
        read_nodes(reader(context=8), source, hops=1)


def test_a_node_without_label_is_of_the_nearest_class():
    vectors = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [0.1, 5.0], [3.0, 1.0], [-1.0, 0.5]])
    label = torch.tensor([2, 2, 7, -100, -100, -100])
    assert nearest_class(vectors, label).tolist() == [2, 2, 7, 7, 2, 7]
    with pytest.raises(UserError, match="fewer than two classes have a label"):
        nearest_class(vectors, torch.tensor([2, -100, -100, -100, -100, -100]))


def test_draws_are_of_other_classes_and_equally_likely():
    ids, label = torch.tensor([9, 4, 7, 1, 3]), torch.tensor([1, 0, 1, 2, 0])
    around = Surroundings(ids, torch.arange(5.0).view(5, 1, 1), label)
    rows = around.rows(ids)
    assert around.vectors[rows].flatten().tolist() == [0, 1, 2, 3, 4]
    share = torch.arange(600).div(600).expand(5, -1)
    for node, drawn in enumerate(around.draw(rows, share)):
        found = around.vectors[drawn].flatten().long()
        others = (label != label[node]).nonzero().flatten()
        assert torch.equal(found.unique(), others)
        counts = torch.bincount(found, minlength=5)[others]
        assert (counts == 600 // len(others)).all()
    assert int(around.draw(rows, torch.full((5,), 1 - 2.0**-24)).max()) < 5
    with pytest.raises(UserError, match="of one class"):
        Surroundings(ids, torch.zeros(5, 1, 1), torch.zeros(5, dtype=torch.int64))


def test_the_contrast_is_the_cross_entropy_of_the_own_column():
    torch.manual_seed(0)
    scores, own, drawn = torch.randn(3, 6), torch.tensor([2, 0, 5]), torch.tensor([[1, 1], [3, 4], [0, 2]])
    for i, value in enumerate(contrast(scores, own, drawn)):
        s = scores[i].double().exp()
        assert float(value) == pytest.approx(-float((s[own[i]] / (s[own[i]] + s[drawn[i]].sum())).log()), rel=1e-5)


def test_layers_are_weighed_by_a_softmax_that_learns():
    torch.manual_seed(0)
    align, vectors = Alignment([3, 4], 5, 2), torch.randn(6, 2, 5)
    states, own, drawn = (torch.randn(2, 3), torch.randn(2, 4)), torch.tensor([0, 3]), torch.randint(6, (2, 2, 3))
    align.scores.data = torch.tensor([0.5, -1.0])
    values = align(states, vectors, own, drawn, 0.5)
    total, weights = torch.zeros(2), torch.tensor([0.5, -1.0]).softmax(0)
    for layer in range(2):
        for b in range(2):
            mine = align.own[layer](states[layer][b])
            theirs = [align.theirs[layer](vectors[u, layer]) for u in (own[b], *drawn[b, layer])]
            cosines = torch.stack([torch.cosine_similarity(mine, t, dim=0) for t in theirs])
            total[b] += weights[layer] * -torch.log_softmax(cosines / 0.5, 0)[0]
    assert torch.allclose(values, total, atol=1e-5)
    values.sum().backward()
    assert align.scores.grad.abs().min() > 0
