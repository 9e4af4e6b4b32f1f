"""How well a generator does against a law that is known exactly."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.diffusion import samplers
from limbeck.diffusion.base import conditioned
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.levels import log_uniform
from limbeck.diffusion.mixture import Draw, GaussianMixture
from limbeck.diffusion.paths import like
from limbeck.diffusion.ways import ways
from limbeck.engine import noise
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.metrics.samples import ModeCoverage, energy_distance, mmd2, mode_coverage
from limbeck.registry import register

SHOWN = 800
"""Points of each law that the report shows."""
WAYS = 40
"""Samples whose way from noise the report draws."""
SCALES = (0.25, 0.5, 1.0, 2.0)
"""Bandwidths of the MMD's kernels, in standard deviations of the data."""


class Generated(NamedTuple):
    """Samples [N, *shape] with their cost: network evaluations and milliseconds for each."""

    samples: Tensor
    nfe: int
    milliseconds: float


@register(
    "metric",
    task={"generation"},
    default=True,
    needs={"mixture"},
    better={
        "energy_distance": "lower",
        "mmd": "lower",
        "mode_coverage": "higher",
        "mode_tv": "lower",
        "outlier_rate": "lower",
        "oracle_nll": "lower",
        "nfe": "lower",
        "sample_ms": "lower",
        "energy_distance_one_step": "lower",
    },
    labels={
        "energy_distance": ("Energy distance", ""),
        "mmd": ("MMD²", ""),
        "mode_coverage": ("Modes covered", "%"),
        "mode_tv": ("Mode imbalance (total variation)", "%"),
        "outlier_rate": ("Outliers", "%"),
        "oracle_nll": ("Exact negative log-likelihood above the entropy", "nats"),
        "nfe": ("Network evaluations per sample", ""),
        "sample_ms": ("Time per sample", "ms"),
        "energy_distance_one_step": ("Energy distance in one step", ""),
    },
)
def mixture_quality(
    evaluation: Evaluation,
    *,
    samples: int = 4000,
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Scores:
    """Distance of a generator's samples from an exact Gaussian mixture: the teacher, or the model itself.

    A generator is called on standard normal noise; a denoiser, such as the teacher, is sampled by Heun's method and
    also by a single step, which is what it gives at the cost of a one-step student. All arms start from the same noise
    and are compared with the same exact samples. An exact sampler has an expected energy distance and MMD of 0 and, in
    two dimensions, 1.1 % of outliers (more than 3 standard deviations from every mode). ``oracle_nll`` is
    E[-log p(x)] less the entropy of p: 0 for an exact sampler, above 0 when samples are where p is thin; below 0 means
    that they crowd where it is dense.

    Args:
        evaluation: what is judged.
        samples: how many to draw; the pairwise distances grow with the square.
        steps: of Heun's sampler, for a denoiser.
        sigma_min: lowest noise level of the sampler.
        sigma_max: highest noise level of the sampler.
        rho: curvature of the sampler's grid.

    Raises:
        UserError: neither teacher nor model is a mixture, or a sample is not finite.
    """
    if samples < 2 or steps < 1:
        raise UserError(f"mixture_quality needs 2 samples and a step, or more; not samples: {samples}, steps: {steps}")
    law = _law(evaluation)
    drawn = law.sample(samples, evaluation.seed)
    start = starts(evaluation.model, law.shape, samples, (evaluation.seed, "mixture quality"))
    label = _labels(evaluation.model, law, drawn)
    grid = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    scores = _compare(law, generate(evaluation, start, label, steps=steps, **grid), drawn.samples)
    if _is_denoiser(evaluation.model):
        once = generate(evaluation, start, label, steps=1, **grid).samples
        scores.values["energy_distance_one_step"] = energy_distance(once.flatten(1), drawn.samples.cpu().flatten(1))
    if law.shape == (2,):
        scores.details["ways"] = _drawn(evaluation, start, label, law.sigma_data, steps, grid)
    return scores


@register(
    "metric",
    task={"generation"},
    needs={"mixture"},
    better={"flow_error": "lower"},
    labels={"flow_error": ("Distance to where the exact flow ends, in deviations of the data", "")},
)
def flow_error(
    evaluation: Evaluation, *, samples: int = 1000, steps: int = 128, sigma_min: float = 0.002, guidance: float = 1.0
) -> Scores:
    """How far a one-to-one generator ends from where the exact flow ends for the same noise.

    The root mean square over samples of the distance to the end of the teacher's probability flow, which Runge and
    Kutta's method finds in float64, in standard deviations of the data. A generator that draws fresh noise between
    its steps has no such map, and one that is trained to match laws need not follow it.

    Args:
        evaluation: what is judged: a generator, beside an exact mixture as the teacher.
        samples: how many.
        steps: of the solver.
        sigma_min: the level where the flow ends.
        guidance: scale of classifier-free guidance of the flow.

    Raises:
        UserError: neither teacher nor model is a mixture.
    """
    law, model = _law(evaluation), evaluation.model
    if _is_denoiser(model) or int(getattr(model, "draws", 1)) != 1:
        return Scores({}, {})
    start = starts(model, law.shape, samples, (evaluation.seed, "mixture quality"))
    label = _labels(model, law, law.sample(samples, evaluation.seed))
    made = generate(evaluation, start, label, steps=1).samples
    exact = copy.deepcopy(law).cpu().double()
    flow = exact if guidance == 1 else Guided(exact, guidance)
    sigma = float(getattr(model, "sigma", 80.0))
    ends = samplers.flow(flow, start.double() * sigma, sigma, sigma_min, steps, **conditioned(label))
    error = (made.double() - ends).flatten(1).square().mean(dim=1).mean().sqrt()
    return Scores({"flow_error": float(error) / law.sigma_data}, {})


@register(
    "metric",
    task={"generation"},
    needs={"mixture"},
    better={"guidance_error": "lower"},
    labels={"guidance_error": ("Relative error to the guided teacher", "%")},
)
def guidance_error(
    evaluation: Evaluation,
    *,
    samples: int = 2000,
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0),
    sigma_min: float = 0.02,
    sigma_max: float = 20.0,
) -> Scores:
    """How far a network that is told of guidance is from the guided exact teacher, at every strength and noise level.

    The root mean square of the difference of the two estimates at noised exact samples, levels log-uniform, over that
    of the teacher's estimates; 0 is exact.

    Args:
        evaluation: what is judged: a generator with a network that takes ``scale``, beside an exact mixture with
            classes as the teacher.
        samples: noised samples at each strength.
        scales: strengths of guidance.
        sigma_min: lowest level.
        sigma_max: highest level.

    Raises:
        UserError: no exact mixture.
    """
    law, model = _law(evaluation), evaluation.model
    if not hasattr(model, "net") or law.labels is None:
        return Scores({}, {})
    drawn = law.sample(samples, evaluation.seed)
    ids = torch.arange(samples)
    sigma = log_uniform(noise.uniform(ids, (1,), (evaluation.seed, "level")).squeeze(1), sigma_min, sigma_max)
    x = drawn.samples.float() + like(sigma, drawn.samples) * noise.normal(ids, law.shape, (evaluation.seed, "noise"))
    label, wrong, whole = law.labels[drawn.component], 0.0, 0.0
    with torch.no_grad(), evaluating(model):
        for scale in scales:
            right = Guided(law, scale)(x, sigma, label)
            answer = model(x, label, at=sigma, scale=torch.full_like(sigma, scale))
            wrong += float((answer - right).square().mean())
            whole += float(right.square().mean())
    return Scores({"guidance_error": math.sqrt(wrong / whole)}, {"scales": list(scales)})


def generate(
    evaluation: Evaluation, start: Tensor, label: Tensor | None = None, *, steps: int, **grid: float
) -> Generated:
    """Samples of the model from standard normal noise ``start`` [N, *shape], on the CPU.

    Args:
        evaluation: holds the model: a generator, or a denoiser that Heun's method samples.
        start: the noise.
        label: int64 [N], the class of each sample, for a conditional model.
        steps: of Heun's method.
        **grid: ``sigma_min``, ``sigma_max`` and ``rho`` of its noise levels.
    """
    with torch.no_grad(), evaluating(evaluation.model):
        began = time.perf_counter()
        parts = list(_solutions(evaluation, start, label, steps, grid))
        made = torch.cat([p.samples.cpu() for p in parts])
        seconds = time.perf_counter() - began
    return Generated(made, parts[0].nfe, 1000 * seconds / len(start))


def starts(model: nn.Module, shape: tuple[int, ...], count: int, key: Hashable) -> Tensor:
    """Noise for ``count`` samples: the same first draw for every model, and further ones for those that take more."""
    draws = int(getattr(model, "draws", 1))
    ids = torch.arange(count)
    first = noise.normal(ids, shape, key)
    if draws == 1:
        return first
    return torch.stack([first, *(noise.normal(ids, shape, (key, k)) for k in range(1, draws))], dim=1)


def _solutions(
    evaluation: Evaluation, start: Tensor, label: Tensor | None, steps: int, grid: dict[str, float]
) -> Iterator[samplers.Solution]:
    model: Any = evaluation.model
    for rows in torch.arange(len(start)).split(max(evaluation.batch_size, 1000)):
        z = start[rows].to(evaluation.device)
        classes = None if label is None else label[rows].to(evaluation.device)
        if _is_denoiser(model):
            yield samplers.sample(model.denoise, z, steps=steps, label=classes, **grid)  # type: ignore[arg-type]
        else:
            yield samplers.Solution(model(z) if classes is None else model(z, classes), int(getattr(model, "nfe", 1)))


def _is_denoiser(model: nn.Module) -> bool:
    return callable(getattr(model, "denoise", None))


def _labels(model: nn.Module, law: GaussianMixture, drawn: Draw) -> Tensor | None:
    """Classes as the law has them, for a conditional model."""
    if getattr(model, "classes", None) is None or law.labels is None:
        return None
    return law.labels[drawn.component].cpu()


def _law(evaluation: Evaluation) -> GaussianMixture:
    judge: nn.Module = evaluation.model if evaluation.teacher is None else evaluation.teacher.module
    if not isinstance(judge, GaussianMixture):
        raise UserError(
            f"mixture_quality judges against an exact mixture, and here there is a {type(judge).__name__}: "
            "take a teacher such as gaussian_ring, or other metrics under 'evaluate'"
        )
    return judge


def _compare(law: GaussianMixture, made: Generated, exact: Tensor) -> Scores:
    exact = exact.cpu()
    x, y = made.samples.flatten(1).to(exact.dtype), exact.flatten(1)
    modes = _modes(law, x)
    surprise = -law.log_prob(made.samples.to(law.means)).double().mean() - law.entropy()
    values = {
        "energy_distance": energy_distance(x, y),
        "mmd": mmd2(x, y, [s * law.sigma_data for s in SCALES]),
        "mode_coverage": modes.coverage,
        "mode_tv": modes.tv,
        "outlier_rate": modes.outlier_rate,
        "oracle_nll": float(surprise),
        "nfe": made.nfe,
        "sample_ms": made.milliseconds,
    }
    details = {
        "samples": _points(x),
        "reference": _points(y),
        "mode_shares": [round(float(s), 5) for s in modes.shares],
    }
    return Scores(values, details)


def _modes(law: GaussianMixture, x: Tensor) -> ModeCoverage:
    stds = law.variances.flatten(1).mean(1).sqrt().cpu()
    return mode_coverage(x, law.means.flatten(1).cpu(), stds, weights=law.weights.cpu())


def _drawn(
    evaluation: Evaluation, start: Tensor, label: Tensor | None, sigma_data: float, steps: int, grid: dict[str, float]
) -> list[list[list[float]]]:
    """The ways of a few samples [B, levels + 1, 2] for the page, none for a model that does not tell them."""
    first, classes = start[:WAYS], None if label is None else label[:WAYS]
    with evaluating(evaluation.model):
        device = evaluation.device
        asked = None if classes is None else classes.to(device)
        found = ways(evaluation.model, first.to(device), asked, sigma_data=sigma_data, steps=steps, **grid)
    return [] if found is None else [[[round(float(v), 3) for v in point] for point in way] for way in found]


def _points(x: Tensor) -> list[list[float]]:
    return [[round(float(v), 4) for v in row] for row in x[:SHOWN, :3]]
