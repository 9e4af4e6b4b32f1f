"""How well one call stands for guidance where the guided sampler goes."""

from __future__ import annotations

import math

import torch

from limbeck.diffusion.paths import Denoise, like
from limbeck.diffusion.visited import visit
from limbeck.engine import noise
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    better={"visited_error": "lower", "visited_error_strong": "lower"},
    labels={
        "visited_error": ("Guidance missed where its sampler goes", "%"),
        "visited_error_strong": ("Guidance missed at the highest strength", "%"),
    },
)
def visited_error(
    evaluation: Evaluation,
    *,
    samples: int = 500,
    steps: int = 18,
    scales: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0),
    sigma_min: float = 0.02,
    sigma_max: float = 20.0,
) -> Scores:
    """How much of guidance a network misses that is told its strength, at the states that the guided sampler visits.

    The root mean square of the noise's estimates: of their difference between the network and its guided teacher, over
    that between the teacher with and without guidance. 0 is exact, and 1 the unguided teacher itself.

    Args:
        evaluation: what is judged: a generator with a network that takes ``scale``, beside a teacher with classes.
        samples: trajectories at each strength.
        steps: of the guided sampler.
        scales: strengths of guidance, which must not be 1.
        sigma_min: lowest level.
        sigma_max: highest level.

    Raises:
        UserError: there is no teacher with classes.
    """
    if not hasattr(evaluation.model, "net"):
        return Scores({}, {})
    teacher: Denoise | None = None if evaluation.teacher is None else evaluation.teacher.module
    classes = getattr(teacher, "classes", None)
    if teacher is None or classes is None:
        raise UserError("visited_error needs a teacher with classes, to guide")
    ids = torch.arange(samples)
    start = noise.normal(ids, tuple(teacher.shape), (evaluation.seed, "visited start"))  # type: ignore[attr-defined]
    label = ids % classes
    missed, whole = [], []
    with torch.no_grad(), evaluating(evaluation.model):
        for scale in scales:
            strength = torch.full((samples,), scale)
            at = visit(teacher, start, label, strength, steps=steps, sigma_min=sigma_min, sigma_max=sigma_max)
            parts = [0.0, 0.0]
            for k, sigma in enumerate(at.sigma):
                here = sigma.expand(samples)
                answer = evaluation.model(at.x[:, k], label, at=here, scale=strength)
                plain = teacher(at.x[:, k], here, label=label)
                for i, estimate in enumerate((answer, plain)):
                    parts[i] += float(((estimate - at.target[:, k]) / like(here, estimate)).square().mean())
            missed.append(parts[0])
            whole.append(parts[1])
    values = {"visited_error": math.sqrt(sum(missed) / sum(whole))}
    values["visited_error_strong"] = math.sqrt(missed[-1] / whole[-1])
    return Scores(values, {"scales": list(scales)})
