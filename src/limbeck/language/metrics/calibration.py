"""Whether a language model's probabilities mean what they say, token by token."""

from __future__ import annotations

import torch

from limbeck.errors import UserError
from limbeck.language.losses import scored, shift
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.classification import reliability_of
from limbeck.registry import register


@register(
    "metric",
    task={"language"},
    better={"token_accuracy": "higher", "ece": "lower", "trust": "higher"},
    labels={
        "token_accuracy": ("Right tokens", "%"),
        "ece": ("Calibration error (ECE)", "%"),
        "trust": ("Trust score", ""),
    },
)
def token_calibration(evaluation: Evaluation, *, bins: int = 15, position: int | None = None) -> Scores:
    """Share of learnt tokens whose likeliest guess is right, the calibration error of these guesses, and trust.

    Trust is accuracy minus calibration error (Shum et al., arXiv 2408.12168): errors of models that are not right
    equally often do not compare alone. The details hold the reliability curve, as ``calibration`` of a classifier does.

    Args:
        evaluation: what is judged.
        bins: number of equal-width bins of the confidence.
        position: only the token of that number among the learnt ones of a row, from 0: where the answer is one token.

    Raises:
        UserError: nothing to predict, fewer than one bin, or logits that are not finite.
    """
    if bins < 1:
        raise UserError(f"token_calibration needs at least one bin, not bins: {bins}")
    confidences, hits = [], []
    for batch in evaluation.batches():
        logits, labels = shift(evaluation.run(batch).logits, batch["labels"])
        mask = scored(labels)
        if position is not None:
            mask = mask & (mask.long().cumsum(1) == position + 1)
        # One softmax over V a token, and only where it counts.
        best, guess = logits[mask].float().softmax(-1).max(-1)
        confidences.append(best.cpu())
        hits.append((guess == labels[mask]).cpu())
    confidence, right = torch.cat(confidences), torch.cat(hits)
    if not len(confidence):
        raise UserError("the test text has no token to predict there: all its labels are -100")
    if not confidence.isfinite().all():
        raise UserError(f"{evaluation.title} gives logits that are not finite on the test text")
    curve = reliability_of(confidence, right, bins)
    accuracy, ece = float(right.double().mean()), curve.error()
    details = {
        "low": curve.low.tolist(),
        "bins": curve.confidence.tolist(),
        "accuracy": curve.accuracy.tolist(),
        "count": curve.samples.tolist(),
    }
    return Scores({"token_accuracy": accuracy, "ece": ece, "trust": accuracy - ece}, {"reliability": details})
