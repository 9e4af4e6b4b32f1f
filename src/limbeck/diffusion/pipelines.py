"""Networks of diffusers pipelines as denoisers: any path and prediction, with prompts as classes.

The text encoders of a pipeline run once. A prompt is a class, whose embeddings stay with the network, and the class of
none is the negative prompt: so guidance is the family's own, and whatever distils a conditional teacher distils a
pipeline.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.families import FAMILIES, Rows
from limbeck.diffusion.networks import zero
from limbeck.diffusion.paths import like, to_denoised
from limbeck.diffusion.schedulers import TablePath, few_step_scheduler, library, path_of
from limbeck.errors import UserError
from limbeck.registry import Block

TIMESTEP_SCALING = 10.0
"""Of the boundary of latent consistency models, as in diffusers."""
NEAR = 0.01
"""A floor may be rounded by that share of itself."""
ALMOST_NOISE = 1e-3
"""A rectified flow starts at the time ``1 - ALMOST_NOISE``: at 1 itself there is no level in EDM's space."""


class PipelineDenoiser(nn.Module):
    """A pipeline's network as an EDM denoiser over its latents.

    Args:
        network: one of a class that :data:`FAMILIES` knows.
        scheduler: the config of the pipeline's scheduler, with its class under ``_class_name``.
        rows: what the network is conditioned on, a row for each class and one more, the last, for none.
        shape: of the latents of one sample.
        sigma_data: their standard deviation.
        origin: the pipeline's folder, for what is needed of it beside the network.
        floor: the network's lowest level, or near it, makes it the identity there, as consistency functions are.

    Raises:
        UserError: the floor is another level.
    """

    jumps = False
    floor: float

    def __init__(
        self,
        network: nn.Module,
        scheduler: Mapping[str, Any],
        rows: Rows,
        shape: tuple[int, ...],
        sigma_data: float = 1.0,
        origin: Path | None = None,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.origin = origin
        self.network = network
        _keep_labels(network)
        self.family = FAMILIES[type(network).__name__]
        self.scheduler = dict(scheduler)
        self.path, self.kind = path_of(self.scheduler)
        self.floor = self._floor(floor)
        self.shape = tuple(shape)
        self.sigma_data = sigma_data
        self.row_names = tuple(rows)
        for name, value in rows.items():
            self.register_buffer(f"row_{name}", value.detach().clone())
        count = len(next(iter(rows.values()))) - 1 if rows else 0
        self.classes = count or None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | None = None,
        *,
        scale: Tensor | float | None = None,
    ) -> Tensor:
        """``E[x0 | x]`` [B, *shape] for ``x = x0 + sigma eps``.

        Args:
            x: noisy latents [B, *shape].
            sigma: their level, [B] or a scalar.
            label: the number of a prompt or a class, int64 [B]; -1, or no label, is none.
            scale: the strength of guidance to stand for, [B] or a scalar, for networks that are ``guided``.
        """
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        t = self.path.time(level)
        scaled = x / like(torch.sqrt(1 + level**2) if self.is_table else 1 + level, x)
        told = None
        if self.guided:
            told = torch.ones_like(t) if scale is None else torch.as_tensor(scale, dtype=t.dtype).to(t).expand(len(t))
        found = to_denoised(self.path, scaled, t, self.predict(scaled, self._network_time(t), label, told), self.kind)
        return found if self.floor == 0 else self._grounded(x, t, found)

    def _floor(self, asked: float) -> float:
        lowest = self.sigma_range[0]
        if asked and not math.isclose(asked, lowest, rel_tol=NEAR):
            raise UserError(f"the floor of a pipeline's network is at its lowest level, {lowest:.3g}, not {asked:g}")
        return lowest if asked else 0.0

    def _grounded(self, x: Tensor, t: Tensor, denoised: Tensor) -> Tensor:
        """The identity at the lowest time, and the clean estimate soon above it (arXiv 2310.04378, section 4.2)."""
        lowest = self.path.time(torch.as_tensor(self.sigma_range[0], dtype=t.dtype, device=t.device))
        above = TIMESTEP_SCALING * (self._network_time(t) - self._network_time(lowest[None]))
        root = torch.sqrt(above**2 + 0.25)
        return like(0.25 / root**2, x) * x + like(above / root, x) * denoised

    def denoise(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The same as calling the module."""
        found: Tensor = self(x, sigma, label)
        return found

    def predict(self, x: Tensor, time: Tensor, label: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """What the network itself predicts [B, *shape], at points of its own path and its own times [B]."""
        asked = torch.full((len(x),), -1, device=x.device) if label is None else label
        rows = {name: self._rows(name, asked) for name in self.row_names}
        weights = next(self.network.parameters())
        return self.family.call(self.network, x.to(weights.dtype), time, rows, scale).to(x.dtype)

    def prompt_states(self, label: Tensor) -> Tensor | None:
        """The embedded prompts [B, L, D] with these numbers, int64 [B], if the network takes text."""
        return self._rows("prompt", label) if "prompt" in self.row_names else None

    def _rows(self, name: str, label: Tensor) -> Tensor:
        table: Tensor = getattr(self, f"row_{name}")
        return table[label % len(table)]  # -1 is the last, that of none

    def _network_time(self, t: Tensor) -> Tensor:
        """Times as the network was trained on them; a flow begins at 1 itself."""
        if self.is_table:
            return t
        return 1000 * torch.where(t >= 1 - 1.01 * ALMOST_NOISE, torch.ones_like(t), t)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in about [-1, 1] of latents, by the pipeline's autoencoder; as they are without one."""
        if self.origin is None or not (self.origin / "vae").is_dir():
            return latents
        vae = autoencoder(self.origin)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        found: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift).sample
        return found.float()

    # -- what it says of itself ----------------------------------------------------------------------------------------

    @property
    def is_table(self) -> bool:
        """Whether the path is a variance-preserving one."""
        return isinstance(self.path, TablePath)

    @property
    def guided(self) -> bool:
        """Whether the network is told the strength of guidance."""
        config: Any = self.network.config
        return bool(getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        if isinstance(self.path, TablePath):
            return float(self.path.log_levels[0].exp()), float(self.path.log_levels[-1].exp())
        return ALMOST_NOISE, (1 - ALMOST_NOISE) / ALMOST_NOISE

    def start_scale(self, level: float) -> float:
        """What multiplies standard normal noise to make the point that sampling starts from, at a level.

        Pipelines start from noise of variance one on their own path, even where the level is not quite infinite.
        """
        return (1 + level**2) ** 0.5 if self.is_table else 1 + level

    def levels_for(self, nfe: int, rule: str) -> list[float]:
        """The levels of ``nfe`` calls by the scheduler that samples in this way."""
        made = few_step_scheduler(self.scheduler, rule, nfe, even=self.family.even)
        if self.is_table:
            return [float(v) for v in self.path.level(made.timesteps.double())]
        times = made.sigmas[:nfe].double().clamp_max(1 - ALMOST_NOISE)
        return [float(v) for v in times / (1 - times)]

    @property
    def features_at(self) -> str | None:
        """Where a discriminator looks: at the middle of a U-Net, or the last block of a transformer."""
        if getattr(self.network, "mid_block", None) is not None:
            return "network.mid_block"
        return None

    @property
    def called_apart(self) -> tuple[str, ...]:
        """See :func:`limbeck.engine.devices.shard`."""
        return tuple(f"network.{path}" for path in self.family.apart)

    @property
    def portable(self) -> Block:
        """What builds the same network, but for weights and embeddings, without the pipeline's files."""
        rows = {name: list(getattr(self, f"row_{name}").shape) for name in self.row_names}
        whole: Any = self.network
        config = {"_class_name": type(whole).__name__, **json.loads(whole.to_json_string())}
        facts: dict[str, Any] = {
            "network": config,
            "scheduler": self.scheduler,
            "rows": rows,
            "shape": list(self.shape),
        }
        facts["origin"] = None if self.origin is None else str(self.origin)
        return Block("diffusers", {"config": facts, "sigma_data": self.sigma_data, "floor": self.floor})

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Arguments for one call."""
        return torch.zeros(batch_size, *self.shape), torch.ones(batch_size)


def _keep_labels(network: nn.Module) -> None:
    """A DiT forgets labels at random while it is trained; here the class of none is asked for by name."""
    for module in network.modules():
        if hasattr(module, "token_drop"):
            module.dropout_prob = 0.0  # type: ignore[assignment]


def from_folder(
    folder: Path,
    prompts: Sequence[str],
    negative: str = "",
    *,
    size: tuple[int, int] | None = None,
    sigma_data: float = 1.0,
    floor: float = 0.0,
    told: bool = False,
) -> PipelineDenoiser:
    """The network of a pipeline that ``save_pretrained`` wrote, with the embeddings of prompts.

    Args:
        folder: the pipeline's.
        prompts: the classes; none for pipelines that take no text.
        negative: the prompt of the class of none.
        size: height and width of the latents; by default what the network was made for.
        sigma_data: standard deviation of the latents.
        floor: the lowest level, or near it, makes the network the identity there.
        told: whether the network takes the strength of guidance; what it lacks for that starts at zero.

    Raises:
        UserError: no such pipeline, one of a kind that is not known, pickled weights, prompts missing, or a floor that
            is not the lowest level.
    """
    index = read_index(folder)
    component = next((c for c in ("unet", "transformer") if c in index), None)
    name = index[component][1] if component else "nothing"
    if component is None or name not in FAMILIES:
        raise UserError(f"the network of {folder} is a {name}: known are {', '.join(FAMILIES)}")
    pipeline = load_pipeline(folder)
    network = getattr(pipeline, component)
    family = FAMILIES[name]
    if family.text and not prompts:
        raise UserError(
            f"the pipeline {folder} takes text: give the model its prompts (prompts: [...], or prompt_file)"
        )
    shape = latent_shape(network, size)
    with torch.no_grad():
        rows = family.encode(pipeline, list(prompts), negative, shape)
    scheduler = {**json.loads(pipeline.scheduler.to_json_string()), "_class_name": type(pipeline.scheduler).__name__}
    network = _told(network) if told else network
    return PipelineDenoiser(network.train(), _plain_config(scheduler), rows, shape, sigma_data, folder.resolve(), floor)


def load_pipeline(folder: Path) -> Any:
    """A pipeline of diffusers from its folder; nothing in it is executed, and no pickle is read.

    Raises:
        UserError: it cannot be loaded.
    """
    absent = dict.fromkeys(left_out(folder))
    try:
        with quietly():
            return library().DiffusionPipeline.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, **absent
            )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"diffusers cannot load the pipeline {folder}: {first_line}") from error


def left_out(folder: Path) -> list[str]:
    """The components that a pipeline was saved without; loading it takes their names where it can have them.

    Raises:
        UserError: no such pipeline.
    """
    return [name for name, kind in _index(folder).items() if isinstance(kind, list) and kind[0] is None]


def autoencoder(folder: Path) -> Any:
    """The autoencoder of a pipeline, which turns pictures into latents and back.

    Raises:
        UserError: it has none, or it cannot be loaded.
    """
    kind = read_index(folder).get("vae")
    if kind is None:
        raise UserError(f"the pipeline {folder} has no autoencoder: its samples are pictures themselves")
    with quietly():
        vae = getattr(library(), kind[1]).from_pretrained(folder / "vae", use_safetensors=True, local_files_only=True)
    return vae.eval().requires_grad_(False)


@contextmanager
def quietly() -> Iterator[None]:
    """Without progress bars, and without what the libraries say of each other's versions."""
    loggers = [library().utils.logging, _transformers_logging()]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in loggers]
    for log in loggers:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bars) in zip(loggers, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


def _transformers_logging() -> Any:
    from transformers.utils import logging

    return logging


def from_config(config: Mapping[str, Any], sigma_data: float = 1.0, floor: float = 0.0) -> PipelineDenoiser:
    """The network that :attr:`PipelineDenoiser.portable` describes, with weights and embeddings yet to be loaded."""
    network_config = dict(config["network"])
    network = getattr(library(), network_config.pop("_class_name")).from_config(network_config)
    rows = {n: torch.zeros(s, dtype=torch.int64 if n == "class" else torch.float32) for n, s in config["rows"].items()}
    origin = config.get("origin")
    folder = Path(origin) if origin else None
    return PipelineDenoiser(network, config["scheduler"], rows, tuple(config["shape"]), sigma_data, folder, floor)


def read_index(folder: Path) -> dict[str, Any]:
    """The components of a pipeline, as its ``model_index.json`` names them.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    return {k: v for k, v in _index(folder).items() if isinstance(v, list) and v[0] is not None}


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        says = f"{folder} is not a pipeline's folder, as DiffusionPipeline.save_pretrained writes it"
        raise UserError(f"{says}: there is no readable model_index.json in it") from error
    return index


def latent_shape(network: Any, size: tuple[int, int] | None) -> tuple[int, ...]:
    """Of the latents of one sample, [C, H, W].

    Raises:
        UserError: the network does not say its size, and none is given.
    """
    packed = type(network).__name__ == "FluxTransformer2DModel"
    sides = size or own_size(network)
    if sides is None:
        raise UserError(f"a {type(network).__name__} works at any size: give the model the size of the latents")
    channels = network.config.in_channels // 4 if packed else network.config.in_channels
    return int(channels), *sides


def own_size(network: Any) -> tuple[int, int] | None:
    """Height and width of the latents that a network was made for, if it says so."""
    own = getattr(network.config, "sample_size", None)
    if own is None:
        return None
    height, width = own if isinstance(own, list | tuple) else (own, own)
    return int(height), int(width)


def _told(network: Any) -> Any:
    """A U-Net that takes the strength of guidance as well, starting as it is."""
    if getattr(network.config, "guidance_embeds", False) or getattr(network.config, "time_cond_proj_dim", None):
        return network
    if type(network).__name__ != "UNet2DConditionModel":
        raise UserError(
            f"a {type(network).__name__} cannot be told the strength of guidance; a UNet2DConditionModel can"
        )
    made = type(network).from_config({**network.config, "time_cond_proj_dim": 256})
    zero(made.time_embedding.cond_proj)
    made.load_state_dict(network.state_dict(), strict=False)
    return made


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only says where it came from."""
    return {k: v for k, v in config.items() if k == "_class_name" or not k.startswith("_")}
