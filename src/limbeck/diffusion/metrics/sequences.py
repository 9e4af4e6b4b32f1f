"""How well generated sequences follow a chain that is known exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.metrics.laws import starts
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    default=True,
    needs={"chain"},
    better={"pair_tv": "lower", "sequence_nll": "lower", "distant_tv": "lower", "sequence_nfe": "lower"},
    labels={
        "pair_tv": ("Pairs of neighbours (total variation)", "%"),
        "distant_tv": ("Pairs two apart (total variation)", "%"),
        "sequence_nll": ("Exact negative log-likelihood above the entropy", "nats"),
        "sequence_nfe": ("Network evaluations per sequence", ""),
    },
)
def sequence_quality(evaluation: Evaluation, *, samples: int = 4000) -> Scores:
    """Distance of generated sequences from an exact Markov chain: the teacher's, or the model's own.

    ``pair_tv`` is the total variation distance of the laws of two neighbours, averaged over places, and ``distant_tv``
    that of two tokens with one between them; ``sequence_nll`` is the mean of -log p(x) for a whole sequence less the
    entropy of the chain: 0 for an exact sampler, and below 0 where the likely is drawn too often, which only the two
    distances show.

    Args:
        evaluation: what is judged: a generator of sequences, or the chain itself.
        samples: how many sequences.

    Raises:
        UserError: neither teacher nor model is a chain.
    """
    judge: nn.Module = evaluation.model if evaluation.teacher is None else evaluation.teacher.module
    law: Any = getattr(judge, "chain", judge)
    if not hasattr(law, "pairs"):
        raise UserError(f"sequence_quality judges against an exact chain, and here there is a {type(judge).__name__}")
    made = generated(evaluation, samples)
    apart = [_pairs(made, law.tokens, gap) for gap in (1, 2)]
    exact = [law.pairs(gap).cpu() for gap in (1, 2)]
    near, far = (float((a - b).abs().sum()) / 2 for a, b in zip(apart, exact, strict=True))
    nll = -float(law.log_prob(made.to(law.start.device)).double().mean()) - law.entropy()
    nfe = int(getattr(evaluation.model, "nfe", law.length))
    return Scores({"pair_tv": near, "distant_tv": far, "sequence_nll": nll, "sequence_nfe": nfe}, {})


def generated(evaluation: Evaluation, samples: int) -> Tensor:
    """Sequences int64 [samples, L] of a generator, or of a law that can be drawn from."""
    model: Any = evaluation.model
    draw = getattr(model, "draw", None) or getattr(getattr(model, "chain", None), "draw", None)
    if callable(draw):
        drawn: Tensor = draw(torch.arange(samples, device=evaluation.device), (evaluation.seed, "sequences"))
        return drawn.cpu()
    start = starts(model, tuple(model.shape), samples, (evaluation.seed, "sequence quality")).to(evaluation.device)
    with torch.no_grad(), evaluating(model):
        tokens: Tensor = getattr(model, "tokens_of", model)(start)
    return tokens.cpu()


def _pairs(sequences: Tensor, tokens: int, gap: int) -> Tensor:
    """The law of two tokens so far apart, [V, V], averaged over places; masks that are left count as missing."""
    first, second = sequences[:, :-gap].reshape(-1), sequences[:, gap:].reshape(-1)
    known = (first < tokens) & (second < tokens)
    counts = torch.zeros(tokens * tokens).index_add_(0, (first * tokens + second)[known], torch.ones(int(known.sum())))
    return counts.reshape(tokens, tokens) / len(first)
