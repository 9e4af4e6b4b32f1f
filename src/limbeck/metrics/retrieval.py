"""How well texts are found: exact search over all documents, and how alike the scores of pairs are to people's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from limbeck.data.texts import Collection, Texts
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register

AT, DEEP = 10, 100
"""How far down a ranking is looked."""


# ---------------------------------------------------------------------------------------------------------------------
# Formulas


def ndcg(scores: Tensor, relevance: Tensor, at: int = AT) -> Tensor:
    """nDCG of rankings by ``scores`` [Q, N] with gains ``relevance`` [Q, N], for each query [Q].

    ``sum_r rel(r) / log2(1 + r)`` over the first ``at`` places, divided by that of the best order. Ties keep the order
    of the documents. A query without a relevant document is NaN.
    """
    ranked = ranked_relevance(scores, relevance)[:, :at]
    best = relevance.sort(-1, descending=True).values[:, :at]
    return _discounted(ranked) / _discounted(best)


def reciprocal_rank(scores: Tensor, relevance: Tensor, at: int = AT) -> Tensor:
    """One over the place of the first relevant document, 0 where there is none among the first ``at``: [Q]."""
    hits = ranked_relevance(scores, relevance)[:, :at] > 0
    place = hits.long().argmax(1) + 1
    return torch.where(hits.any(1), 1.0 / place, 0.0)


def recall(scores: Tensor, relevance: Tensor, at: int = AT) -> Tensor:
    """Share of a query's relevant documents that are among the first ``at``: [Q]; NaN where there is none."""
    found = (ranked_relevance(scores, relevance)[:, :at] > 0).sum(1)
    return found / (relevance > 0).sum(1)


def ranked_relevance(scores: Tensor, relevance: Tensor) -> Tensor:
    """The relevance of documents in the order of their scores, [Q, N].

    Raises:
        UserError: scores that are not finite, or unlike shapes.
    """
    if scores.shape != relevance.shape or not torch.isfinite(scores).all():
        says = f"scores {list(scores.shape)} and relevance {list(relevance.shape)}"
        raise UserError(f"a ranking needs a finite score for every query and document; got {says}")
    return relevance.gather(1, scores.argsort(dim=-1, descending=True, stable=True))


def _discounted(gains: Tensor) -> Tensor:
    places = torch.arange(2, gains.shape[1] + 2, dtype=torch.float64)
    return (gains.double() / torch.log2(places)).sum(1)


def int8(vectors: Tensor, like: Tensor | None = None) -> Tensor:
    """Vectors [N, D] rounded to 255 steps per coordinate, scaled by the largest magnitude in ``like`` (or in them)."""
    largest = (vectors if like is None else like).abs().amax(0).clamp(min=1e-12)
    return (vectors / largest * 127).round().clamp(-127, 127) * largest / 127


def binary(vectors: Tensor) -> Tensor:
    """The signs of vectors, -1 or 1; their dot product ranks as the Hamming distance does."""
    return torch.where(vectors > 0, 1.0, -1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


@register(
    "metric",
    task={"embedding"},
    default=True,
    needs={"collection"},
    better={"ndcg_10": "higher", "mrr_10": "higher", "recall_10": "higher", "recall_100": "higher"},
    labels={
        "ndcg_10": ("nDCG@10", "%"),
        "mrr_10": ("MRR@10", "%"),
        "recall_10": ("Recall@10", "%"),
        "recall_100": ("Recall@100", "%"),
    },
)
def retrieval(evaluation: Evaluation) -> Scores:
    """nDCG, MRR and recall over all documents of the test's collection, by exact search.

    Raises:
        UserError: the test split has no collection of documents, or the model gives no scores for texts.
    """
    collection = _collection(evaluation)
    scores = score_all(evaluation, evaluation.model, collection)
    return Scores(measures(scores, collection.relevance), {"documents": len(collection.documents)})


def measures(scores: Tensor, relevance: Tensor) -> dict[str, float]:
    """The values of :func:`retrieval`, means over the queries that have a relevant document."""
    kept = (relevance > 0).any(1)
    scores, relevance = scores[kept], relevance[kept]
    return {
        "ndcg_10": float(ndcg(scores, relevance).mean()),
        "mrr_10": float(reciprocal_rank(scores, relevance).mean()),
        "recall_10": float(recall(scores, relevance).mean()),
        "recall_100": float(recall(scores, relevance, DEEP).mean()),
    }


@register(
    "metric",
    task={"embedding"},
    needs={"collection", "teacher"},
    better={"asymmetric_ndcg_10": "higher", "asymmetric_recall_10": "higher"},
    labels={
        "asymmetric_ndcg_10": ("nDCG@10, documents by the teacher", "%"),
        "asymmetric_recall_10": ("Recall@10, documents by the teacher", "%"),
    },
)
def asymmetric_retrieval(evaluation: Evaluation) -> Scores:
    """Retrieval with queries encoded by the student and documents by the teacher (LEAF, arXiv 2509.12539).

    Raises:
        UserError: no collection, or vectors of unlike dimensions.
    """
    collection, teacher = _collection(evaluation), evaluation.teacher
    if teacher is None:
        raise UserError("asymmetric_retrieval needs a teacher to encode the documents")
    queries = vectors(evaluation, evaluation.model, collection.queries)
    documents = vectors(evaluation, teacher.module, collection.documents)
    if queries.shape[1] != documents.shape[1]:
        says = f"{evaluation.title} gives vectors of {queries.shape[1]} dimensions, its teacher of {documents.shape[1]}"
        raise UserError(f"asymmetric_retrieval: {says}")
    # The student may not have learnt lengths; directions are what both share.
    found = measures(_cosines(queries, documents), collection.relevance)
    return Scores({f"asymmetric_{k}": found[k] for k in ("ndcg_10", "recall_10")})


@register(
    "metric",
    task={"embedding"},
    needs={"collection"},
    better={"truncated_ndcg_10": "higher", "int8_ndcg_10": "higher", "binary_ndcg_10": "higher"},
    labels={
        "truncated_ndcg_10": ("nDCG@10, truncated vectors", "%"),
        "int8_ndcg_10": ("nDCG@10, int8 vectors", "%"),
        "binary_ndcg_10": ("nDCG@10, binary vectors", "%"),
    },
)
def small_vectors(evaluation: Evaluation, *, dims: tuple[int, ...] = (8, 16, 32)) -> Scores:
    """Retrieval with vectors that take less room: only their first coordinates, 8 bits or one bit per coordinate.

    Vectors are cut first and scaled to length 1 after that. ``truncated_ndcg_10`` is the mean over ``dims`` (those
    above the vectors' dimension are left out); the details have the curve.

    Args:
        evaluation: what is judged.
        dims: the dimensions to cut to.

    Raises:
        UserError: no collection, or no dimension that the vectors have.
    """
    collection = _collection(evaluation)
    queries, documents = (
        vectors(evaluation, evaluation.model, texts) for texts in (collection.queries, collection.documents)
    )

    def judged(change: Callable[[Tensor], Tensor]) -> float:
        return measures(_cosines(change(queries), change(documents)), collection.relevance)["ndcg_10"]

    kept = [m for m in dims if 1 <= m <= queries.shape[1]]
    if not kept:
        raise UserError(f"small_vectors: the vectors have {queries.shape[1]} dimensions, none of {list(dims)}")
    curve = {m: judged(lambda x, m=m: x[:, :m]) for m in kept}  # type: ignore[misc]
    values = {
        "truncated_ndcg_10": sum(curve.values()) / len(curve),
        "int8_ndcg_10": judged(lambda x: int8(F.normalize(x, dim=-1), F.normalize(documents, dim=-1))),
        "binary_ndcg_10": judged(binary),
    }
    return Scores(values, {"ndcg_10_by_dimension": {str(m): value for m, value in curve.items()}})


@register(
    "metric",
    task={"embedding"},
    default=True,
    needs={"pairs"},
    better={"spearman": "higher", "pearson": "higher"},
    labels={"spearman": ("Spearman correlation", ""), "pearson": ("Pearson correlation", "")},
)
def pair_correlation(evaluation: Evaluation) -> Scores:
    """Correlation of a model's scores of pairs with the given ones: ranks (Spearman) and values (Pearson).

    A model that gives one score per pair is judged by it, any other by the cosine of its two vectors.

    Raises:
        UserError: the test pairs have no scores, or all scores of one side are equal.
    """
    said, known = [], []
    for batch in evaluation.batches():
        if "score" not in batch:
            raise UserError("pair_correlation needs pairs with a score, and the test split has none")
        found = evaluation.run(batch)
        one = "logits" in found and found.logits.shape[-1] == 1 and "embedding" not in found
        if not one and "embedding" not in found:
            raise UserError(f"{evaluation.title} gives neither one score of a pair nor vectors of its texts")
        score = found.logits[:, 0] if one else F.cosine_similarity(found.embedding[:, 0], found.embedding[:, 1], dim=-1)
        said.append(score.double().cpu())
        known.append(batch["score"].double().cpu())
    x, y = torch.cat(said).numpy(), torch.cat(known).numpy()
    if x.std() == 0 or y.std() == 0:
        raise UserError("pair_correlation: all scores are equal, so there is no correlation")
    return Scores({"spearman": float(spearmanr(x, y).statistic), "pearson": float(pearsonr(x, y).statistic)})


@register(
    "metric",
    task={"embedding"},
    needs={"collection"},
    better={"active_query": "lower", "active_document": "lower", "overlap_flops": "lower"},
    labels={
        "active_query": ("Non-zero weights of a query", ""),
        "active_document": ("Non-zero weights of a document", ""),
        "overlap_flops": ("Multiplications per query and document", ""),
    },
)
def sparsity(evaluation: Evaluation) -> Scores:
    """How many coordinates of the vectors are not zero, and how many a query shares with a document on average.

    Raises:
        UserError: the test split has no collection of documents.
    """
    collection = _collection(evaluation)
    queries, documents = (
        (vectors(evaluation, evaluation.model, texts) != 0).double()
        for texts in (collection.queries, collection.documents)
    )
    values = {
        "active_query": float(queries.sum(1).mean()),
        "active_document": float(documents.sum(1).mean()),
        "overlap_flops": float((queries.mean(0) * documents.mean(0)).sum()),
    }
    return Scores(values)


@register(
    "metric",
    task={"embedding"},
    needs={"collection"},
    better={"texts_per_second": "higher"},
    labels={"texts_per_second": ("Texts encoded", "per s")},
)
def encoding_speed(evaluation: Evaluation, *, seconds: float = 0.5) -> Scores:
    """How many documents of the test's collection are encoded in a second, at the evaluation's batch size.

    Args:
        evaluation: what is judged.
        seconds: to measure for, at least one pass.

    Raises:
        UserError: the test split has no collection of documents.
    """
    if seconds <= 0:
        raise UserError(f"encoding_speed: seconds must be positive, not {seconds}")
    documents = _collection(evaluation).documents
    _encode(evaluation, evaluation.model, documents)
    began, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - began < seconds:
        _encode(evaluation, evaluation.model, documents)
        passes += 1
    return Scores({"texts_per_second": passes * len(documents) / (time.perf_counter() - began)})


# ---------------------------------------------------------------------------------------------------------------------
# Running a model over a collection


def score_all(evaluation: Evaluation, model: Any, collection: Collection) -> Tensor:
    """The scores of all documents for all queries, float64 [Q, N] on the CPU.

    Texts are encoded once each where the model encodes them alone; one that reads pairs reads all of them.
    """
    _check(evaluation, model)
    if getattr(model, "match", None) is None or getattr(model, "classes", None):
        raise UserError(f"{evaluation.title} ranks no documents: it gives no score of a query and a document")
    if not _encodes(model):
        return _pairs(evaluation, model, collection)
    queries = _encode(evaluation, model, collection.queries)
    documents = _encode(evaluation, model, collection.documents)
    rows = []
    with torch.inference_mode(), evaluating(model):
        for at in torch.arange(len(collection.queries)):
            asked = tuple(x[at][None] for x in queries)
            rows.append(model.match(asked, tuple(x[None] for x in documents))[0].double().cpu())
    return torch.stack(rows)


def _pairs(evaluation: Evaluation, model: Any, collection: Collection) -> Tensor:
    rows = []
    with torch.inference_mode(), evaluating(model):
        for at in range(len(collection.queries)):
            parts = []
            for chosen in torch.arange(len(collection.documents)).split(evaluation.batch_size):
                document = tuple(x.to(evaluation.device) for x in collection.documents[chosen])
                query = (x.to(evaluation.device) for x in collection.queries[torch.full_like(chosen, at)])
                parts.append(model.score(tuple(query), document).double().cpu())
            rows.append(torch.cat(parts))
    return torch.stack(rows)


def vectors(evaluation: Evaluation, model: Any, texts: Texts) -> Tensor:
    """The vectors of texts, float32 [M, D] on the CPU.

    Raises:
        UserError: the model gives no one vector for each text, or some are not finite.
    """
    _check(evaluation, model)
    found = _encode(evaluation, model, texts) if _encodes(model) else ()
    if len(found) != 1:
        raise UserError(f"{type(model).__name__} gives a text no vector of its own: this metric judges text vectors")
    if not torch.isfinite(found[0]).all():
        raise UserError(f"{evaluation.title} gives vectors that are not finite")
    return found[0].float().cpu()


def _encode(evaluation: Evaluation, model: Any, texts: Texts) -> tuple[Tensor, ...]:
    batches = torch.arange(len(texts)).split(evaluation.batch_size)
    with torch.inference_mode(), evaluating(model):
        parts = [model.encode(*(x.to(evaluation.device) for x in texts[rows])) for rows in batches]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _encodes(model: Any) -> bool:
    return getattr(type(model), "encodes", False)


def _check(evaluation: Evaluation, model: Any) -> None:
    if not hasattr(model, "score") or not hasattr(model, "encode"):
        says = f"{type(model).__name__} is no text_encoder, cross_encoder or the like"
        raise UserError(f"{evaluation.title} cannot be searched with: {says}")


def _collection(evaluation: Evaluation) -> Collection:
    found: Collection | None = getattr(evaluation.test, "collection", None)
    if found is None:
        raise UserError("the test split has no collection of documents: use data 'retrieval'")
    return found


def _cosines(queries: Tensor, documents: Tensor) -> Tensor:
    return (F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T).double()
