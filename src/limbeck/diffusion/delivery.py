"""A distilled generator as a diffusers pipeline again, with the scheduler that samples in as many calls as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.families import FAMILIES
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.pipelines import ALMOST_NOISE, PipelineDenoiser, left_out, load_pipeline, own_size, quietly
from limbeck.diffusion.schedulers import few_step_scheduler, library, set_steps
from limbeck.errors import UserError
from limbeck.models.lora import Adapted

LIMIT = 1e-3
"""Largest accepted difference of the pipeline's samples, relative to the largest number in the generator's."""
ROWS = 4
SEED = 0


def save_pipeline(generator: FewStep, folder: Path) -> dict[str, Any]:
    """Write the pipeline that a generator came from with its network and scheduler, and check what it samples.

    ``DiffusionPipeline.from_pretrained(folder)`` then samples with ``num_inference_steps`` the generator's ``nfe`` and
    without guidance. Adapters are merged into the weights.

    Returns:
        versions, how to call it, and how far its samples are from the generator's.

    Raises:
        UserError: the generator's network is of no pipeline, the pipeline's folder is gone, no scheduler samples by
            its rule or at its levels, or the pipeline samples otherwise.
    """
    net = generator.net.merged() if isinstance(generator.net, Adapted) else generator.net
    if not isinstance(net, PipelineDenoiser):
        raise UserError("diffusers: the student's network is of no pipeline: net: {name: diffusers, path: ...}")
    if net.origin is None or not net.origin.is_dir():
        raise UserError(f"diffusers: the pipeline that the student came from is no longer in {net.origin}")
    own, levels = list(generator.levels), net.levels_for(generator.nfe, generator.rule)
    if any(abs(a - b) > 1e-6 * b for a, b in zip(own, levels, strict=True)):
        raise UserError("diffusers: the student has levels of its own, which no scheduler has: leave 'levels' out")
    pipeline = load_pipeline(net.origin)
    scheduler = few_step_scheduler(net.scheduler, generator.rule, generator.nfe, even=net.family.even)
    pipeline.register_modules(**{net.family.component: net.network, "scheduler": scheduler})
    with quietly():
        pipeline.save_pretrained(folder, safe_serialization=True)
    call = _call(generator, net, pipeline)
    absent = [name for name in left_out(folder) if name not in type(pipeline)._optional_components]
    (folder / "README.md").write_text(_card(type(pipeline).__name__, call, absent), encoding="utf8")
    return {
        "class": type(pipeline).__name__,
        "call": call,
        "inputs": {"noise": ["batch", *net.shape]},
        "versions": {"diffusers": library().__version__, "torch": torch.__version__},
        "checked": _check(generator, net, folder),
    }


def _call(generator: FewStep, net: PipelineDenoiser, pipeline: Any) -> str:
    """The arguments that a pipeline is to be called with."""
    parts = [net.family.asked] if net.family.asked else []
    parts.append(f"num_inference_steps={generator.nfe}")
    if net.family.guided:
        parts.append(f"guidance_scale={1.0 if generator.scale is None else generator.scale:g}")
    if net.family.text and net.shape[1:] != own_size(net.network):
        height, width = (pipeline.vae_scale_factor * side for side in net.shape[1:])
        parts.append(f"height={height}, width={width}")
    return ", ".join(parts)


def _card(name: str, call: str, absent: list[str]) -> str:
    without = "".join(f", {name}=None" for name in absent)
    return f"""# A {name} distilled to a few steps

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder"{without})
image = pipeline({call}).images[0]
```

The scheduler and these numbers belong to the network: other steps, other schedulers or guidance give worse pictures.
"""


@torch.no_grad()
def _check(generator: FewStep, net: PipelineDenoiser, folder: Path) -> dict[str, Any]:
    """Sample by the network and the scheduler as they were written, and by the generator, from the same noise."""
    written = load_pipeline(folder)
    network = getattr(written, FAMILIES[type(net.network).__name__].component)
    again = PipelineDenoiser(network.eval(), net.scheduler, _rows(net), net.shape, net.sigma_data)
    label = None if net.classes is None else torch.arange(ROWS) % net.classes
    draws = torch.Generator().manual_seed(SEED)
    noise = torch.stack([torch.randn(ROWS, *net.shape, generator=draws) for _ in range(generator.draws)], dim=1)
    was_training = generator.training
    expected = generator.eval()(noise if generator.draws > 1 else noise[:, 0], label)
    generator.train(was_training)
    again.eval()
    found = scheduled(written.scheduler, again, draws.manual_seed(SEED), generator.nfe, label, generator.scale)
    gap, largest = float((found - expected).abs().max()), float(expected.abs().max())
    limit = LIMIT if net.is_table else LIMIT + 2 * ALMOST_NOISE  # of a flow that begins at 1 itself
    if not gap <= limit * largest:
        says = f"by {gap:.3g} where the largest number is {largest:.3g}"
        raise UserError(f"diffusers: the pipeline's samples differ from the student's {says}")
    against = f"{type(written.scheduler).__name__} of diffusers {library().__version__}"
    on = f"{ROWS} samples from the same noise"
    return {"against": against, "on": on, "largest_difference": gap, "relative": gap / largest, "limit": limit}


def _rows(net: PipelineDenoiser) -> dict[str, Tensor]:
    return {name: getattr(net, f"row_{name}") for name in net.row_names}


@torch.no_grad()
def scheduled(
    scheduler: Any,
    net: PipelineDenoiser,
    draws: torch.Generator,
    nfe: int,
    label: Tensor | None,
    scale: float | None = None,
) -> Tensor:
    """Samples as a pipeline makes them: by its network, at the scheduler's times, and the scheduler's steps.

    Args:
        scheduler: of diffusers.
        net: the network.
        draws: where the start and the noise between steps come from, in this order.
        nfe: number of steps.
        label: int64 [B], or None for :data:`ROWS` unconditional samples.
        scale: strength of guidance, for a network that is told it.
    """
    set_steps(scheduler, nfe, even=net.family.even)
    x = torch.randn(ROWS if label is None else len(label), *net.shape, generator=draws)
    told = x.new_full((len(x),), 1.0 if scale is None else scale) if net.guided else None
    for t in scheduler.timesteps:
        out = net.predict(x, t.to(x).expand(len(x)), label, told)
        x = scheduler.step(out, t, x, generator=draws).prev_sample
    return x
