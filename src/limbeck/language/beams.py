"""Beam search: the likeliest texts that a model would write after each prompt, and how alike two texts are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.language.generate import Reader
from limbeck.losses import log_softmax


@torch.no_grad()
def search(
    module: nn.Module,
    prompts: Tensor,
    steps: int,
    *,
    beams: int,
    context: int,
    mask: Tensor | None = None,
    vocab_size: int | None = None,
    end: int | None = None,
    length_penalty: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each prompt, best first.

    A text that has ended stays among the ``beams`` while its log-probability is among the best, so that with enough
    beams the search is exact.

    Args:
        module: gives logits [B, T, V].
        prompts: int64 [B, T], padded on the right where ``mask`` says so.
        steps: how many tokens to add at most.
        beams: texts that are followed for each prompt.
        context: longest input of the model.
        mask: bool or int [B, T], which of the prompts' tokens are there.
        vocab_size: never give a token beyond these.
        end: the end-of-text token.
        length_penalty: texts are ranked by log-probability / length ** this; 0 ranks by log-probability.

    Returns:
        tokens, int64 [B, K, N], 0 where there is none; mask, bool [B, K, N], true up to and with the end of the text;
        log-probability of each token, float32 [B, K, N].

    Raises:
        ValueError: ``beams`` or ``steps`` is below 1.
    """
    if beams < 1 or steps < 1:
        raise ValueError(f"beams and steps must be at least 1, got {beams} and {steps}")
    there = torch.ones_like(prompts, dtype=torch.bool) if mask is None else mask.bool()
    size, device = len(prompts), prompts.device
    found = Reader(module, prompts, there, context)
    found.take(torch.arange(size, device=device).repeat_interleave(beams))
    # All beams begin alike: only the first may be continued at the first step.
    score = torch.full((size, beams), -math.inf, device=device)
    score[:, 0] = 0.0
    tokens = torch.zeros(size, beams, 0, dtype=torch.int64, device=device)
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    said = torch.zeros(size, beams, 0, device=device)
    open_rows = torch.ones(size, beams, dtype=torch.bool, device=device)
    for step in range(steps):
        log_q = log_softmax(found.logits()[:, :vocab_size]).view(size, beams, -1)
        width = log_q.shape[-1]
        # A text that has ended has one continuation: itself, at no cost, in the place of token 0.
        ended = torch.full_like(log_q, -math.inf)
        ended[..., 0] = 0.0
        steps_on = torch.where(open_rows[..., None], log_q, ended)
        best = (score[..., None] + steps_on).flatten(1).topk(min(beams, beams * width), dim=1)
        from_beam, token = best.indices // width, best.indices % width
        score = best.values
        was_open = open_rows.gather(1, from_beam)
        gain = steps_on.flatten(1).gather(1, best.indices).masked_fill(~was_open, 0.0)
        tokens = torch.cat([_rows(tokens, from_beam), (token * was_open)[..., None]], -1)
        kept = torch.cat([_rows(kept, from_beam), was_open[..., None]], -1)
        said = torch.cat([_rows(said, from_beam), gain.float()[..., None]], -1)
        open_rows = was_open & (token != end) if end is not None else was_open
        if not bool(open_rows.any()) or step + 1 == steps:
            break
        found.take((torch.arange(size, device=device)[:, None] * beams + from_beam).flatten())
        found.add((token * was_open).flatten())
    order = (score / kept.sum(-1).clamp(min=1) ** length_penalty).argsort(dim=1, descending=True, stable=True)
    return _rows(tokens, order), _rows(kept, order), _rows(said, order)


def _rows(values: Tensor, which: Tensor) -> Tensor:
    """Beams [B, K, N] taken by number [B, K]."""
    return values.gather(1, which[..., None].expand(-1, -1, values.shape[-1]))


def bleu(text: Sequence[int], gold: Sequence[int], order: int = 4) -> float:
    """Sentence BLEU of one text against another, in [0, 1]; counts of two tokens and more are smoothed by one.

    Papineni et al. 2002; smoothing of Lin and Och 2004 (ORANGE).

    Args:
        text: tokens that are judged.
        gold: tokens that they should be.
        order: longest run of tokens that is counted.
    """
    if not text or not gold:
        return float(list(text) == list(gold))
    logs = []
    for n in range(1, order + 1):
        ours, theirs = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (text, gold))
        hits, total, more = sum((ours & theirs).values()), sum(ours.values()), int(n > 1)
        if hits + more == 0:
            return 0.0
        logs.append(math.log((hits + more) / (total + more)))
    return math.exp(sum(logs) / order + min(0.0, 1 - len(gold) / len(text)))
