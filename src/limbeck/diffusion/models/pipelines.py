"""Networks of diffusers pipelines, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.diffusion.pipelines import PipelineDenoiser, from_config, from_folder
from limbeck.errors import UserError
from limbeck.registry import register


@register("model", "diffusers", gives={"denoiser", "samples"})
def from_diffusers(
    *,
    path: Path | None = None,
    prompts: tuple[str, ...] = (),
    prompt_file: Path | None = None,
    negative: str = "",
    size: tuple[int, int] | None = None,
    sigma_data: float = 1.0,
    floor: float = 0.0,
    guided: bool = False,
    checkpointing: bool = False,
    config: dict[str, Any] | None = None,
    classes: int | None = None,
) -> PipelineDenoiser:
    """The network of a diffusers pipeline as a denoiser of its latents; weights from safetensors alone.

    Its classes are the prompts, which the pipeline's own text encoders read once, or the network's classes.

    Args:
        path: a folder that ``save_pretrained`` of a pipeline wrote.
        prompts: what is to be generated, for pipelines that take text.
        prompt_file: or a text file with a prompt on each line.
        negative: the prompt that guidance leads away from.
        size: height and width of the latents; by default what the network was made for.
        sigma_data: standard deviation of the latents; pipelines scale them to 1.
        floor: the level at which it is the identity, for consistency functions: its lowest one, which a rounded number
            may name (0.0292 of Stable Diffusion); 0 for denoisers.
        guided: whether the network is to be told the strength of guidance; what it lacks for that starts at zero.
        checkpointing: whether it computes its inner values again in the backward pass, to save memory.
        config: in place of a path, what a delivered student keeps.
        classes: of the data, if there is any with labels; each is to have its prompt.

    Raises:
        UserError: no such pipeline, one of a kind that is not known, pickled weights, no prompts, more or
            fewer prompts than the data has classes, or a floor that is not the lowest level.
    """
    if (path is None) == (config is None):
        raise UserError("model 'diffusers' needs the path of a pipeline's folder")
    if config is not None:
        return from_config(config, sigma_data, floor)
    assert path is not None
    texts = (*prompts, *_lines(prompt_file))
    if texts and classes is not None and classes != len(texts):
        raise UserError(f"the data has {classes} classes and model 'diffusers' {len(texts)} prompts: give one for each")
    made = from_folder(path, texts, negative, size=size, sigma_data=sigma_data, floor=floor, told=guided)
    if checkpointing:
        made.network.enable_gradient_checkpointing()  # type: ignore[operator]
    return made


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts in {path} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]
