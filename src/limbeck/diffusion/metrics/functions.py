"""What a generator is beside its law: how it keeps to classes, and what it does to samples."""

from __future__ import annotations

import torch

from limbeck.diffusion.idempotent import Idempotent
from limbeck.diffusion.metrics.laws import _labels, _law, _modes, generate, starts
from limbeck.engine import noise
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.metrics.samples import energy_distance
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    needs={"mixture"},
    better={"class_energy_distance": "lower"},
    labels={"class_energy_distance": ("Energy distance within classes, on average", "")},
)
def class_quality(
    evaluation: Evaluation,
    *,
    samples: int = 4000,
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Scores:
    """Distance of a conditional generator's samples of each class from the exact ones, averaged over the classes.

    Args:
        evaluation: what is judged, beside an exact mixture with classes as the teacher.
        samples: how many to draw, of all classes together.
        steps: of Heun's sampler, for a denoiser.
        sigma_min: lowest noise level of the sampler.
        sigma_max: highest noise level of the sampler.
        rho: curvature of the sampler's grid.

    Raises:
        UserError: no exact mixture.
    """
    law = _law(evaluation)
    drawn = law.sample(samples, evaluation.seed)
    start = starts(evaluation.model, law.shape, samples, (evaluation.seed, "mixture quality"))
    label = _labels(evaluation.model, law, drawn)
    if label is None:
        return Scores({}, {})
    grid = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    made = generate(evaluation, start, label, steps=steps, **grid).samples.flatten(1)
    exact = drawn.samples.cpu().to(made.dtype).flatten(1)
    each = [energy_distance(made[label == c], exact[label == c]) for c in label.unique().tolist()]
    return Scores({"class_energy_distance": sum(each) / len(each)}, {"classes": each})


@register(
    "metric",
    task={"generation"},
    needs={"mixture"},
    better={"fixed_point_error": "lower", "identity_error": "lower", "projected_outliers": "lower"},
    labels={
        "fixed_point_error": ("Way of a sample under a second application, in deviations of the data", ""),
        "identity_error": ("Way of an exact sample under an application, in deviations of the data", ""),
        "projected_outliers": ("Outliers among spoilt samples after an application", "%"),
    },
)
def idempotence(evaluation: Evaluation, *, samples: int = 4000, spoilt: float = 0.5) -> Scores:
    """What an idempotent generator does to its own samples, to exact ones, and to exact ones with noise on them.

    Root mean squares of the ways, and the share of spoilt samples that end more than three deviations from every mode;
    for other generators there is nothing to tell.

    Args:
        evaluation: what is judged, beside an exact mixture as the teacher.
        samples: how many.
        spoilt: deviation of the noise on exact samples.

    Raises:
        UserError: no exact mixture.
    """
    law, model = _law(evaluation), evaluation.model
    if not isinstance(model, Idempotent):
        return Scores({}, {})
    drawn = law.sample(samples, evaluation.seed)
    label = _labels(model, law, drawn)
    start = starts(model, law.shape, samples, (evaluation.seed, "mixture quality"))
    made = generate(evaluation, start, label, steps=1).samples.to(evaluation.device)
    exact = drawn.samples.to(made)
    eps = noise.normal(torch.arange(samples), law.shape, (evaluation.seed, "spoilt")).to(made)
    classes = None if label is None else label.to(evaluation.device)
    with torch.no_grad(), evaluating(model):
        again, kept, mended = (model.apply_to(x, classes).cpu() for x in (made, exact, exact + spoilt * eps))
    values = {
        "fixed_point_error": float((again - made.cpu()).square().mean().sqrt()) / law.sigma_data,
        "identity_error": float((kept - exact.cpu()).square().mean().sqrt()) / law.sigma_data,
        "projected_outliers": _modes(law, mended.flatten(1)).outlier_rate,
    }
    return Scores(values, {})
