"""How close a few-step student of any teacher comes to the samples that its teacher makes of the same noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import DataSpec, for_page
from limbeck.diffusion import samplers
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.metrics.laws import Generated, generate, starts
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    default=True,
    needs={"denoiser"},
    unless={"mixture", "pictures"},
    better={"teacher_distance": "lower", "nfe": "lower", "sample_ms": "lower"},
    labels={
        "teacher_distance": ("Distance to the teacher's samples from the same noise, in deviations", ""),
        "nfe": ("Network evaluations per sample", ""),
        "sample_ms": ("Time per sample", "ms"),
    },
)
def teacher_distance(
    evaluation: Evaluation,
    *,
    samples: int = 16,
    steps: int = 18,
    guidance: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Scores:
    """How far a generator's samples are from what Heun's method makes of the teacher's denoiser and the same noise.

    The root mean square of the difference over that of the teacher's samples around their mean. It needs no data, so
    it serves the latents of pipelines, whose pictures the report shows; of a student that matches laws, or draws fresh
    noise between its steps, it says little. A teacher that is judged itself is only shown, with its cost.

    Args:
        evaluation: what is judged.
        samples: how many; classes, or prompts, take turns.
        steps: of Heun's method.
        guidance: scale of classifier-free guidance of the teacher.
        sigma_min: lowest noise level of the sampler; by default the model's own, or EDM's.
        sigma_max: highest noise level of the sampler; by default the model's own, or EDM's.
        rho: curvature of the sampler's grid.

    Raises:
        UserError: a sample is not finite.
    """
    model: Any = evaluation.model
    itself = evaluation.teacher is None
    teacher: Any = model if evaluation.teacher is None else evaluation.teacher.module
    low, high = getattr(model, "sigma_range", (getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)))
    grid = {"sigma_min": sigma_min or low, "sigma_max": sigma_max or high, "rho": rho}
    start = starts(model, tuple(teacher.shape), samples, (evaluation.seed, "teacher distance"))
    label = None if getattr(model, "classes", None) is None else torch.arange(samples) % model.classes
    with evaluating(teacher), torch.no_grad():
        first = start if start.dim() == 1 + len(teacher.shape) else start[:, 0]
        taught = samplers.sample(
            teacher if guidance == 1 else Guided(teacher, guidance),
            first.to(evaluation.device),
            steps=steps,
            label=None if label is None else label.to(evaluation.device),
            sigma_min=grid["sigma_min"],
            sigma_max=grid["sigma_max"],
            rho=rho,
        )
    theirs = taught.samples.cpu()
    made = Generated(theirs, taught.nfe, 0.0) if itself else generate(evaluation, start, label, steps=steps, **grid)
    if not bool(torch.isfinite(made.samples).all()):
        raise UserError("the generator gives samples with numbers that are not finite: it has diverged")
    values: dict[str, float] = {"nfe": made.nfe}
    if not itself:
        spread = (theirs - theirs.mean()).square().mean().sqrt()
        values["teacher_distance"] = float((made.samples - theirs).square().mean().sqrt() / spread)
        values["sample_ms"] = made.milliseconds
    pictures = _pictures(teacher, made.samples)
    return Scores(values, {} if pictures is None else {"images": pictures})


def _pictures(teacher: Any, samples: Tensor) -> list[Any] | None:
    """Samples as pictures for the page: through the autoencoder of a pipeline, or as they are."""
    decode = getattr(teacher, "decode", None)
    pictures = samples if decode is None else decode(samples)
    if pictures.dim() != 4 or pictures.shape[1] not in (1, 3):
        return None
    return for_page(pictures / 2 + 0.5, DataSpec())
