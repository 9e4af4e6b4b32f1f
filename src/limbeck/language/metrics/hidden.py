"""How well an encoder fills in hidden tokens."""

from __future__ import annotations

import math

import torch

from limbeck.errors import UserError
from limbeck.language.losses import cut, forward_kl, shared_vocabulary
from limbeck.losses import IGNORE, cross_entropy, log_softmax
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import register


@register(
    "metric",
    task={"masked_language"},
    default=True,
    better={"hidden_accuracy": "higher", "pseudo_perplexity": "lower", "agreement": "higher", "teacher_kl": "lower"},
    labels={
        "hidden_accuracy": ("Hidden tokens found", "%"),
        "pseudo_perplexity": ("Perplexity of hidden tokens", ""),
    },
)
def hidden_tokens(evaluation: Evaluation) -> Scores:
    """Share of the hidden tokens of the test text that are found, and how likely they were (Salazar et al. 2020).

    With a teacher also the share of hidden places where both find the same token likeliest, and the mean
    KL(teacher || model) there in nats.

    Raises:
        UserError: nothing is hidden in the test text.
    """
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    for batch in evaluation.batches():
        label = batch["label"]
        hidden = label != IGNORE
        logits = evaluation.run(batch).logits.detach()[hidden]
        right = logits.argmax(-1) == label[hidden]
        values = [right.double(), cross_entropy(logits, label[hidden]).double()]
        if evaluation.teacher is not None:
            theirs = evaluation.run_teacher(batch).logits[hidden]
            own, other = (getattr(m, "tokenizer_hash", None) for m in (evaluation.model, evaluation.teacher.module))
            width = shared_vocabulary(logits.shape[-1], theirs.shape[-1], own, other)
            log_p, log_q = log_softmax(cut(theirs, width)), log_softmax(cut(logits, width))
            values += [(log_p.argmax(-1) == log_q.argmax(-1)).double(), forward_kl(log_p, log_q).double()]
        for i, value in enumerate(values):
            sums[i] += value.sum().cpu()
        count += int(hidden.sum())
    if not count:
        raise UserError("nothing is hidden in the test text, so there is nothing to find: use data 'masked_text'")
    found, nll, agree, kl = (sums / count).tolist()
    scores = {"hidden_accuracy": found, "pseudo_perplexity": math.exp(min(nll, 700.0))}
    if evaluation.teacher is not None:
        scores |= {"agreement": agree, "teacher_kl": kl}
    return Scores(scores, {"hidden": count})
