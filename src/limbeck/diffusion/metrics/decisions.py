"""When a sampler decides: how much of its samples' variance its estimates have at every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion import samplers
from limbeck.diffusion.base import conditioned, shape_of
from limbeck.diffusion.metrics.laws import starts
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    better={"sample_variance": "higher", "decided_first": "lower"},
    labels={
        "sample_variance": ("Variance of the samples", ""),
        "decided_first": ("Share of the variance that the first estimate has", "%"),
    },
)
def variance_by_step(
    evaluation: Evaluation,
    *,
    samples: int = 1000,
    steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Scores:
    """The variance among seeds of the clean estimate at every call of a sampler (arXiv 2503.10637, section 4).

    Of an exact denoiser along its own law this is ``Var E[x0 | x]``, which by the law of total variance is that of the
    data less what is still open: it rises from 0 to all of it as the sampler goes down. A distilled network's first
    estimate has most of it. Classes are drawn evenly, and the variance within a class is what counts.

    Args:
        evaluation: what is judged: a generator that calls a network ``net`` (and a ``base``), or a denoiser, such as
            the teacher, which DPM-Solver++(2M) samples.
        samples: how many.
        steps: of the sampler, for a denoiser.
        sigma_min: its lowest level.
        sigma_max: its highest level.
        rho: the curvature of its grid.
    """
    model: Any = evaluation.model
    start = starts(model, shape_of(model, "model"), samples, (evaluation.seed, "variance by step"))
    start = start.to(evaluation.device)
    classes = getattr(model, "classes", None)
    label = None if classes is None else torch.arange(samples, device=evaluation.device) % classes
    seen: list[Tensor] = []
    with torch.no_grad(), evaluating(model), _listening(model, seen):
        if callable(getattr(model, "denoise", None)):
            grid = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
            end = samplers.sample(model, start, steps=steps, sampler="dpmpp_2m", label=label, **grid).samples  # type: ignore[arg-type]
        else:
            end = model(start, **conditioned(label))
    whole = variance(end, label)
    shares = [variance(estimate, label) / whole for estimate in seen]
    values = {"sample_variance": whole}
    if shares:
        values["decided_first"] = shares[0]
    return Scores(values, {"variance_by_step": [round(share, 5) for share in shares]})


def variance(samples: Tensor, label: Tensor | None = None) -> float:
    """Variance among samples [N, *shape], summed over dimensions; within classes, int64 [N], where there are some."""
    flat = samples.flatten(1).double()
    groups = [flat] if label is None else [flat[label == c] for c in label.unique()]
    return float(sum(g.var(dim=0, unbiased=False).sum() * len(g) for g in groups)) / len(flat)


@contextmanager
def _listening(model: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Within the context what the networks of a generator give, or what a denoiser gives, is kept."""
    networks = [n for n in (getattr(model, "net", None), getattr(model, "base", None)) if isinstance(n, nn.Module)]

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)

    handles = [module.register_forward_hook(keep) for module in networks or [model]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
