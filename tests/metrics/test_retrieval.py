"""Every number of a ranking against a search by hand, and nDCG against scikit-learn's."""

import math

import pytest
import torch
from sklearn.metrics import ndcg_score

from limbeck.data.retrieval import retrieval as catalogue
from limbeck.data.text_pairs import text_pairs
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.metrics.base import evaluate as judge
from limbeck.metrics.retrieval import binary, int8, measures, ndcg, recall, reciprocal_rank, score_all
from limbeck.models.embedding import cross_encoder, late_interaction, sparse_encoder, text_encoder

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "context": 12}


@pytest.fixture(scope="module")
def rankings():
    g = torch.Generator().manual_seed(0)
    relevance = (torch.rand(6, 30, generator=g) < 0.2).float() * torch.randint(1, 4, (6, 30), generator=g)
    relevance[0, 0] = 1
    return torch.randn(6, 30, generator=g, dtype=torch.float64), relevance


def by_hand(scores, relevance, at):
    order = sorted(range(len(scores)), key=lambda d: -scores[d])
    gained = sum(relevance[d] / math.log2(r + 2) for r, d in enumerate(order[:at]))
    best = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(relevance, reverse=True)[:at]))
    first = next((1 / (r + 1) for r, d in enumerate(order[:at]) if relevance[d]), 0.0)
    found = sum(relevance[d] > 0 for d in order[:at]) / sum(r > 0 for r in relevance)
    return gained / best, first, found


@pytest.mark.parametrize("at", [1, 5, 10, 100])
def test_measures_by_hand(rankings, at):
    scores, relevance = rankings
    for q in range(6):
        wanted = by_hand(scores[q].tolist(), relevance[q].tolist(), at)
        found = [f(scores, relevance, at)[q].item() for f in (ndcg, reciprocal_rank, recall)]
        assert found == pytest.approx(wanted, abs=1e-6)


def test_ndcg_is_that_of_scikit_learn(rankings):
    scores, relevance = rankings
    wanted = ndcg_score(relevance.numpy(), scores.numpy(), k=10)
    assert ndcg(scores, relevance).mean().item() == pytest.approx(wanted)


def test_a_query_without_a_relevant_document_is_left_out(rankings):
    scores, relevance = rankings
    more = measures(torch.cat([scores, scores[:1]]), torch.cat([relevance, torch.zeros(1, 30)]))
    assert more == pytest.approx(measures(scores, relevance))


def test_int8_has_255_steps_and_binary_two():
    x = torch.linspace(-1, 1, 1001)[:, None] * torch.tensor([1.0, 50.0])
    assert len(int8(x)[:, 0].unique()) == 255
    assert (int8(x) - x).abs().amax(0).tolist() == pytest.approx([0.5 / 127, 25 / 127], rel=1e-3)
    assert set(binary(x).unique().tolist()) == {-1.0, 1.0}


@pytest.fixture(scope="module")
def data():
    return catalogue(corpus="catalogue", documents=20, queries=8, test_queries=6, negatives=2, context=12)


def evaluation(data, model, teacher=None):
    return Evaluation(model.eval(), data.spec, data.test, data.train, teacher, batch_size=7)


def made(data, kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**SIZES, vocab_size=data.spec.vocab_size, **options)


@pytest.mark.parametrize("kind", [text_encoder, cross_encoder, late_interaction, sparse_encoder])
def test_the_search_is_exact(data, kind):
    model = made(data, kind).eval()
    judged = data.test.collection
    found = score_all(evaluation(data, model), model, judged)
    for q in range(3):
        for d in (0, 7, 19):
            one = model.score(judged.queries[torch.tensor([q])], judged.documents[torch.tensor([d])])
            assert found[q, d].item() == pytest.approx(one.item(), rel=1e-4, abs=1e-5)
    scores = judge(evaluation(data, model), ["retrieval"]).values
    assert scores == pytest.approx(measures(found, judged.relevance))


def test_a_student_that_is_its_teacher_retrieves_the_same_with_its_documents(data):
    model = made(data, text_encoder, similarity="cosine")
    teacher = Teacher(made(data, text_encoder, similarity="cosine"), {"embedding"}, "teacher")
    values = judge(evaluation(data, model, teacher), ["retrieval", "asymmetric_retrieval"]).values
    assert values["asymmetric_ndcg_10"] == pytest.approx(values["ndcg_10"])
    other = Teacher(made(data, text_encoder, dim=5), {"embedding"}, "teacher")
    with pytest.raises(UserError, match="16 dimensions, its teacher of 5"):
        judge(evaluation(data, model, other), ["asymmetric_retrieval"])


def test_whole_vectors_are_the_last_point_of_the_curve(data):
    model = made(data, text_encoder, similarity="cosine")
    found = judge(evaluation(data, model), ["retrieval", "small_vectors"])
    curve = found.details["ndcg_10_by_dimension"]
    assert list(curve) == ["8", "16"] and curve["16"] == pytest.approx(found.values["ndcg_10"])
    assert found.values["truncated_ndcg_10"] == pytest.approx((curve["8"] + curve["16"]) / 2)
    assert found.values["int8_ndcg_10"] == pytest.approx(found.values["ndcg_10"], abs=0.05)


def test_sparsity_counts(data):
    model = made(data, sparse_encoder).eval()
    judged = data.test.collection
    q, d = (
        (model.encode(*texts[torch.arange(len(texts))])[0] > 0).double() for texts in (judged.queries, judged.documents)
    )
    values = judge(evaluation(data, model), ["sparsity"]).values
    assert values["active_query"] == pytest.approx(q.sum(1).mean().item())
    pairs = [(q[i] * d[j]).sum().item() for i in range(len(q)) for j in range(len(d))]
    assert values["overlap_flops"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_speed_is_measured(data):
    found = judge(evaluation(data, made(data, text_encoder)), ["encoding_speed"]).values
    assert found["texts_per_second"] > 10


def test_correlation_of_pairs():
    pairs = text_pairs(corpus="catalogue", train_size=10, test_size=30, context=12)
    for kind in (text_encoder, cross_encoder):
        model = made(pairs, kind)
        values = judge(evaluation(pairs, model), ["pair_correlation"]).values
        batch = pairs.test.batch(torch.arange(30))
        given = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        said = (
            torch.cosine_similarity(*given["embedding"].unbind(1), dim=-1)
            if "embedding" in given
            else given["logits"][:, 0]
        )
        wanted = torch.corrcoef(torch.stack([said, batch["score"]]))[0, 1].item()
        assert values["pearson"] == pytest.approx(wanted, abs=1e-5)


def test_what_ranks_nothing_is_refused(data):
    with pytest.raises(UserError, match="cannot be searched with: Linear"):
        judge(evaluation(data, torch.nn.Linear(2, 2)), ["retrieval"])
    with pytest.raises(UserError, match="no vector of its own"):
        judge(evaluation(data, made(data, cross_encoder)), ["small_vectors"])
    pairs = text_pairs(corpus="catalogue", train_size=10, test_size=30, context=12)
    with pytest.raises(UserError, match="no collection of documents"):
        judge(evaluation(pairs, made(pairs, text_encoder)), ["retrieval"])
