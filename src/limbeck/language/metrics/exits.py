"""How well an encoder finds texts when it is left early."""

from __future__ import annotations

from limbeck.errors import UserError
from limbeck.language.models.exits import ExitEncoder
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.retrieval import measures, score_all
from limbeck.models.forward import unwrapped
from limbeck.registry import register


@register(
    "metric",
    task={"embedding"},
    needs={"collection"},
    better={"early_ndcg_10": "higher", "early_recall_10": "higher"},
    labels={"early_ndcg_10": ("nDCG@10, early exit", "%"), "early_recall_10": ("Recall@10, early exit", "%")},
)
def exit_retrieval(evaluation: Evaluation, *, layers: int = 2) -> Scores:
    """Retrieval by the encoder cut off at one of its exits; the details have the measures of all of them.

    Args:
        evaluation: what is judged.
        layers: the exit is after so many layers.

    Raises:
        UserError: the model has no such exit, or the test split no collection of documents.
    """
    model, collection = unwrapped(evaluation.model), getattr(evaluation.test, "collection", None)
    if collection is None:
        raise UserError("the test split has no collection of documents: use data 'retrieval'")
    if not isinstance(model, ExitEncoder):
        raise UserError(f"exit_retrieval judges an exit_encoder, not {type(model).__name__}")
    if layers not in model.exits:
        raise UserError(f"exit_retrieval: there are exits after {list(model.exits)} layers, not after {layers}")
    curve = {at: measures(score_all(evaluation, model.at(at), collection), collection.relevance) for at in model.exits}
    values = {f"early_{name}": curve[layers][name] for name in ("ndcg_10", "recall_10")}
    return Scores(values, {"by_exit": {str(at): found for at, found in curve.items()}})
