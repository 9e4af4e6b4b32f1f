"""What a negative class does to the pictures of a generator that knows classes by cross-attention."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.judge import judge_of
from limbeck.diffusion.metrics.laws import starts
from limbeck.diffusion.negatives import negative_attention, prompt_states
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    needs={"pictures"},
    unless={"mixture", "chain"},
    better={"negated_logp": "lower", "spared_logp": "higher", "negated_match": "higher"},
    labels={
        "negated_logp": ("Log-probability of the negated class, against no negation", "nats"),
        "spared_logp": ("Log-probability of the other classes, against no negation", "nats"),
        "negated_match": ("Pictures still of the class that was asked for", "%"),
    },
)
def negation(evaluation: Evaluation, *, strength: float = 0.3, samples: int = 900) -> Scores:
    """Ask for a class, and negate another one: every pair of two equally often (NASA, arXiv 2412.02687).

    The judge is the classifier of ``picture_quality``; what is compared are pictures of the same noise. ``spared_logp``
    is that of the classes that were neither asked for nor negated, which a subtraction that merely destroys pictures
    would move as far.

    Args:
        evaluation: what is judged: a generator of a few steps.
        strength: of the subtraction.
        samples: pictures to draw.

    Raises:
        UserError: the generator is not of a few steps, or knows classes otherwise or not at all.
    """
    model: Any = evaluation.model
    classes = getattr(model, "classes", None)
    if evaluation.train is None or classes is None or not hasattr(model, "net"):
        raise UserError("negation needs a few_step generator that is conditioned on the classes of its data")
    number = torch.arange(samples, device=evaluation.device)
    asked = number % classes
    negated = (asked + 1 + number // classes % (classes - 1)) % classes
    noise = starts(model, tuple(model.shape), samples, (evaluation.seed, "negation")).to(evaluation.device)
    judge = judge_of(evaluation.train, classes)
    with torch.no_grad(), evaluating(model):
        states = prompt_states(model.net, negated)
        plain, without = (
            _pictures(model, noise, asked, negative_attention(model.net, states, strength) if negate else nullcontext())
            for negate in (False, True)
        )
        moved = judge(without).log_softmax(1) - judge(plain).log_softmax(1)
        match = (judge(without).argmax(1) == asked.cpu()).float().mean()
    asked, negated = asked.cpu()[:, None], negated.cpu()[:, None]
    of_negated = moved.gather(1, negated).mean()
    others = (moved.sum(1, keepdim=True) - moved.gather(1, negated) - moved.gather(1, asked)) / (classes - 2)
    values = {"negated_logp": of_negated, "spared_logp": others.mean(), "negated_match": match}
    return Scores({name: float(value) for name, value in values.items()}, {})


def _pictures(model: Any, noise: Tensor, asked: Tensor, context: Any) -> Tensor:
    with context:
        made: Tensor = model(noise, asked)
    return made.float().cpu()
