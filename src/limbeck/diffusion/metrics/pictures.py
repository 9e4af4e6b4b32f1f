"""How well a generator of pictures does, in the features of a small classifier of the same data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import Source, for_page
from limbeck.diffusion import samplers
from limbeck.diffusion.base import conditioned
from limbeck.diffusion.judge import Judge, judge_of
from limbeck.diffusion.metrics.laws import generate, starts
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.samples import frechet_distance, precision_recall
from limbeck.registry import register

SHOWN = 40
"""Pictures that the report shows."""
CALLS = (1, 2, 4)
"""Calls in which the report shows a student that can be called any number of times."""


@register(
    "metric",
    task={"generation"},
    default=True,
    needs={"pictures"},
    unless={"mixture", "chain"},
    better={
        "frechet": "lower",
        "precision": "higher",
        "recall": "higher",
        "diversity": "higher",
        "class_match": "higher",
        "class_tv": "lower",
        "nfe": "lower",
        "sample_ms": "lower",
    },
    labels={
        "frechet": ("Fréchet distance (features of a small classifier)", ""),
        "precision": ("Precision", "%"),
        "recall": ("Recall", "%"),
        "diversity": ("Diversity within classes, against the data's", ""),
        "class_match": ("Pictures of the class that was asked for", "%"),
        "class_tv": ("Class imbalance (total variation)", "%"),
        "nfe": ("Network evaluations per sample", ""),
        "sample_ms": ("Time per sample", "ms"),
    },
)
def picture_quality(
    evaluation: Evaluation,
    *,
    samples: int = 1000,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Scores:
    """Distance of a generator's pictures from the test split's, beside how varied they are and what they cost.

    A classifier of the data, trained once and kept, gives 64 features of each picture. In these, the Fréchet distance,
    precision and recall; ``diversity`` is the mean distance of two pictures that it takes for the same class, over that
    of the data; ``class_tv`` compares how often it sees each class. The numbers depend on the classifier and are to be
    compared with each other, not with FIDs. A denoiser, such as the teacher, is sampled by Heun's method.

    Args:
        evaluation: what is judged, with labelled pictures to train the judge on.
        samples: pictures to draw, and as many of the test split at most.
        steps: of Heun's sampler, for a denoiser.
        sigma_min: lowest noise level of the sampler.
        sigma_max: highest noise level of the sampler.
        rho: curvature of the sampler's grid.

    Raises:
        UserError: no data with classes, or a picture is not finite.
    """
    train, test = evaluation.train, evaluation.test
    if train is None or len(test.spec.shape) != 3:
        raise UserError("picture_quality needs the pictures of a data set: data: {name: pictures, of: {name: digits}}")
    truth = _batch(test, samples)
    if "label" not in truth or test.spec.classes is None:
        raise UserError("picture_quality needs the classes of the data, to know pictures apart")
    judge = judge_of(train, test.spec.classes)
    start = starts(evaluation.model, test.spec.shape, samples, (evaluation.seed, "picture quality"))
    asked = torch.arange(samples) % test.spec.classes if getattr(evaluation.model, "classes", None) else None
    grid = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    made = generate(evaluation, start, asked, steps=steps, **grid)
    if not bool(torch.isfinite(made.samples).all()):
        raise UserError("the generator gives pictures with numbers that are not finite: it has diverged")
    values = _compare(judge, made.samples.float(), truth["input"], asked)
    details: dict[str, Any] = {"images": for_page(made.samples[:SHOWN], test.spec)}
    if evaluation.teacher is not None and made.nfe < 2 * steps - 1:
        few = hurried(evaluation, start[:SHOWN], None if asked is None else asked[:SHOWN], made.nfe, grid)
        details["hurried"] = for_page(few, test.spec)
    if getattr(evaluation.model, "any_calls", False):
        key = (evaluation.seed, "picture quality")
        details["in_calls"] = {str(n): for_page(x, test.spec) for n, x in in_calls(evaluation, asked, key).items()}
    return Scores({**values, "nfe": made.nfe, "sample_ms": made.milliseconds}, details)


def in_calls(evaluation: Evaluation, asked: Tensor | None, key: Hashable) -> dict[int, Tensor]:
    """What a student makes of the same noise in other numbers of calls than its own, by their number."""
    model: Any = evaluation.model
    made = {}
    for calls in (n for n in CALLS if n != model.nfe):
        other = replace(evaluation, model=model.in_calls(calls))
        noise = starts(other.model, model.shape, SHOWN, key)
        made[calls] = generate(other, noise, None if asked is None else asked[:SHOWN], steps=1).samples.float()
    return made


def hurried(evaluation: Evaluation, start: Tensor, label: Tensor | None, calls: int, grid: dict[str, float]) -> Tensor:
    """What the teacher makes of the same noise in as many calls as the student, by Euler's method."""
    assert evaluation.teacher is not None
    first = start if start.dim() == 4 else start[:, 0]
    levels = samplers.karras_grid(calls, **grid)
    given = conditioned(None if label is None else label.to(evaluation.device))
    with evaluation.teacher.context():
        x = first.to(evaluation.device) * float(levels[0])
        return samplers.euler(evaluation.teacher.module, x, levels, **given).samples.cpu()


def _batch(source: Source, count: int) -> dict[str, Tensor]:
    rows = torch.arange(min(count, len(source)))
    return source.batch(rows)


@torch.no_grad()
def _compare(judge: Judge, made: Tensor, truth: Tensor, asked: Tensor | None) -> dict[str, float]:
    ours, theirs = judge.features(made), judge.features(truth)
    seen, known = judge.head(ours).argmax(1), judge.head(theirs).argmax(1)
    classes = judge.head.out_features
    near = precision_recall(theirs, ours)
    values = {
        "frechet": frechet_distance(ours, theirs),
        "precision": near.precision,
        "recall": near.recall,
        "diversity": _spread(ours, seen, classes) / _spread(theirs, known, classes),
        "class_tv": float((_shares(seen, classes) - _shares(known, classes)).abs().sum() / 2),
    }
    return values if asked is None else {**values, "class_match": float((seen == asked).double().mean())}


def _shares(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes).double() / len(labels)


def _spread(features: Tensor, labels: Tensor, classes: int) -> float:
    """Mean distance between two pictures of one class, over the classes that occur at least twice."""
    groups = [features[labels == c].double() for c in range(classes)]
    means = [torch.pdist(g).mean() for g in groups if len(g) > 1]
    return float(torch.stack(means).mean()) if means else 0.0
