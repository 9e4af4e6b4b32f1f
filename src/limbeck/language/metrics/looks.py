"""What an encoder of text knows of how things look, though it is asked in words alone."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.models.forward import forward
from limbeck.registry import register


@register(
    "metric",
    task={"masked_language"},
    better={"looks_accuracy": "higher", "colour_accuracy": "higher", "size_accuracy": "higher"},
    labels={
        "looks_accuracy": ("Looks told from text", "%"),
        "colour_accuracy": ("Colours told from text", "%"),
        "size_accuracy": ("Sizes told from text", "%"),
    },
)
def looks(evaluation: Evaluation, *, folds: int = 5, ridge: float = 10.0) -> Scores:
    """How often the colour and the size of a thing are read off the encoder's states where text names it.

    The text is that of the test rows, nothing hidden. A thing's vector is the mean of the last hidden states at its
    name. A linear map (ridge regression on the classes) learns the looks of all things but a part, and is asked for
    those of that part, for each part in turn: so it can only tell what things of like looks have in common. The details
    have what the commonest answer would get. ``looks_accuracy`` is the mean of both.

    Args:
        folds: parts of the things.
        ridge: penalty of the map, whose inputs have variance 1.

    Raises:
        UserError: the data has no things with looks, some thing is not named, or the encoder gives no hidden states.
    """
    known = getattr(evaluation.test, "looks", None)
    if known is None:
        raise UserError("metric 'looks' asks for the looks of things: take data 'scenes'")
    count = len(known.tokens)
    if not 2 <= folds <= count or ridge <= 0:
        raise UserError(f"metric 'looks' needs 2 to {count} folds and a ridge above 0, not {folds} and {ridge:g}")
    vectors = thing_vectors(evaluation, known.tokens)
    scores, details = {}, {}
    for trait in ("colour", "size"):
        truth = known.traits[trait]
        scores[f"{trait}_accuracy"] = probe(vectors, truth, folds, ridge)
        details[f"{trait}_commonest"] = float(truth.bincount().max()) / count
    scores["looks_accuracy"] = sum(scores.values()) / len(scores)
    return Scores(scores, {"things": count, **details})


def thing_vectors(evaluation: Evaluation, tokens: Tensor) -> Tensor:
    """The mean last hidden state at each of these tokens over the test rows, float64 [N, H]."""
    sums: Tensor | None = None
    counts = torch.zeros(len(tokens))
    for batch in evaluation.batches():
        label = batch["label"]
        whole = torch.where(label == IGNORE, batch["input_ids"], label)
        with torch.inference_mode(), evaluating(evaluation.model):
            states = forward(evaluation.model, {**batch, "input_ids": whole}, output_hidden_states=True)
        if states.get("hidden_states") is None:
            raise UserError(f"{evaluation.title} gives no hidden states to read looks from")
        said = (whole.cpu()[..., None] == tokens).double().flatten(0, 1)
        here = said.T @ states["hidden_states"][-1].double().cpu().flatten(0, 1)
        sums = here if sums is None else sums + here
        counts = counts + said.sum(0)
    if sums is None or not counts.all():
        raise UserError(f"the test text does not name {int((counts == 0).sum())} of the things: give it more rows")
    return sums / counts[:, None]


def probe(vectors: Tensor, truth: Tensor, folds: int, ridge: float) -> float:
    """Share of things whose class a linear map tells that was fitted to things of other folds.

    Args:
        vectors: [N, D].
        truth: classes, int64 [N].
        folds: thing i is in fold ``i % folds``.
        ridge: penalty.
    """
    fold = torch.arange(len(truth)) % folds
    wanted = torch.nn.functional.one_hot(truth).double()
    right = 0
    for part in range(folds):
        seen, asked = fold != part, fold == part
        mean, std = vectors[seen].mean(0), vectors[seen].std(0, correction=0).clamp_min(1e-9)
        x, z = (vectors[seen] - mean) / std, (vectors[asked] - mean) / std
        bias = wanted[seen].mean(0)
        weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).to(x), x.T @ (wanted[seen] - bias))
        right += int(((z @ weight + bias).argmax(1) == truth[asked]).sum())
    return right / len(truth)
