"""What is peculiar to each class of network in diffusers: what it is conditioned on, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rows = Mapping[str, Tensor]
"""What a network is conditioned on, a row for each sample, by name."""


@dataclass(frozen=True)
class Family:
    """How networks of one class are conditioned and called.

    Attributes:
        encode: ``(pipeline, prompts, negative, shape) -> {name: [P + 1, ...]}`` for latents of that shape, the last row
            that of the negative prompt.
        call: ``(network, x, time, rows, scale) -> prediction``, the time as the network was trained on it, and the
            strength of guidance [B] for those that are told it.
        component: the pipeline's name for the network.
        text: whether it is conditioned on prompts.
        even: whether its pipeline asks a scheduler of flows for the times 1, (n - 1) / n, ..., 1 / n; the others leave
            it to the scheduler, which goes from 1 to its lowest time.
        asked: how its pipeline is told what to make, in a call.
        guided: whether its pipeline takes a ``guidance_scale``.
        apart: paths of modules within blocks that the network calls from outside of them.
    """

    encode: Callable[[Any, list[str], str, tuple[int, ...]], dict[str, Tensor]]
    call: Callable[[Any, Tensor, Tensor, Rows, Tensor | None], Tensor]
    component: str = "transformer"
    text: bool = True
    even: bool = False
    asked: str = '"a red shoe"'
    guided: bool = True
    apart: tuple[str, ...] = ()


def _unet_encode(pipeline: Any, prompts: list[str], negative: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    texts = [*prompts, negative]
    found = pipeline.encode_prompt(
        prompt=texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if len(found) < 4:
        return {"prompt": found[0]}
    rows = {"prompt": found[0], "pooled": found[2]}  # SDXL
    if not negative and pipeline.config.force_zeros_for_empty_prompt:
        rows = {name: torch.cat([value[:-1], torch.zeros_like(value[-1:])]) for name, value in rows.items()}
    height, width = (pipeline.vae_scale_factor * side for side in shape[1:])
    return rows | {"ids": torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(texts), 1)}


def _unet_call(network: Any, x: Tensor, t: Tensor, rows: Rows, scale: Tensor | None) -> Tensor:
    given: dict[str, Any] = {}
    if "pooled" in rows:
        given["added_cond_kwargs"] = {"text_embeds": rows["pooled"], "time_ids": rows["ids"]}
    if scale is not None:
        given["timestep_cond"] = _scale_features(scale, network.config.time_cond_proj_dim).to(x)
    found: Tensor = network(x, t, encoder_hidden_states=rows["prompt"], **given).sample
    return found


def _scale_features(scale: Tensor, width: int) -> Tensor:
    """Of the strength of guidance, [B, width], as latent consistency models are told it (arXiv 2310.04378)."""
    half = width // 2
    rates = torch.exp(-torch.arange(half, device=scale.device) * torch.log(torch.tensor(10000.0)) / (half - 1))
    angle = 1000 * (scale.float() - 1)[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _plain_call(network: Any, x: Tensor, t: Tensor, rows: Rows, scale: Tensor | None) -> Tensor:
    found: Tensor = network(x, t).sample
    return found


def _plain_encode(pipeline: Any, prompts: list[str], negative: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {}


def _dit_encode(pipeline: Any, prompts: list[str], negative: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"class": torch.arange(pipeline.transformer.config.num_embeds_ada_norm + 1)}


def _dit_call(network: Any, x: Tensor, t: Tensor, rows: Rows, scale: Tensor | None) -> Tensor:
    found: Tensor = network(x, timestep=t, class_labels=rows["class"]).sample
    return found[:, : x.shape[1]]  # the other half is a learned variance


def _sd3_encode(pipeline: Any, prompts: list[str], negative: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    found = pipeline.encode_prompt([*prompts, negative], None, None, device="cpu", do_classifier_free_guidance=False)
    return {"prompt": found[0], "pooled": found[2]}


def _sd3_call(network: Any, x: Tensor, t: Tensor, rows: Rows, scale: Tensor | None) -> Tensor:
    given = {"encoder_hidden_states": rows["prompt"], "pooled_projections": rows["pooled"]}
    found: Tensor = network(hidden_states=x, timestep=t, **given).sample
    return found


def _flux_encode(pipeline: Any, prompts: list[str], negative: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    found = pipeline.encode_prompt([*prompts, negative], None, device="cpu")
    return {"prompt": found[0], "pooled": found[1]}


def _flux_call(network: Any, x: Tensor, t: Tensor, rows: Rows, scale: Tensor | None) -> Tensor:
    batch, channels, height, width = x.shape
    patches = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    tokens = patches.reshape(batch, height * width // 4, channels * 4)
    at = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    ids = torch.stack([torch.zeros_like(at[0]), *at], dim=-1).reshape(-1, 3).to(x)
    told = {} if scale is None else {"guidance": scale.to(x)}
    found: Tensor = network(
        hidden_states=tokens,
        timestep=t / 1000,
        encoder_hidden_states=rows["prompt"],
        pooled_projections=rows["pooled"],
        img_ids=ids,
        txt_ids=ids.new_zeros(rows["prompt"].shape[1], 3),
        **told,
    ).sample
    back = found.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(x.shape)


FAMILIES = {
    "UNet2DConditionModel": Family(_unet_encode, _unet_call, "unet"),
    "UNet2DModel": Family(_plain_encode, _plain_call, "unet", text=False, asked="", guided=False),
    "DiTTransformer2DModel": Family(
        _dit_encode, _dit_call, text=False, asked="class_labels=[0]", apart=("transformer_blocks.0.norm1.emb",)
    ),
    "SD3Transformer2DModel": Family(_sd3_encode, _sd3_call),
    "FluxTransformer2DModel": Family(_flux_encode, _flux_call, even=True),
}
"""By the class of the network: Stable Diffusion and SDXL, unconditional ones, DiT, Stable Diffusion 3 and Flux."""
