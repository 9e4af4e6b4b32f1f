"""Data to generate: the pictures of a classification set, and points of an exact mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.arrays import from_splits
from limbeck.data.base import Data, DataSpec, Source, unscaled
from limbeck.diffusion import mixture
from limbeck.errors import UserError
from limbeck.registry import DataBlock, build, register

CHUNK = 4096
ENCODED = 64
"""Pictures that an autoencoder sees at once."""


@register("data")
def pictures(*, of: DataBlock, size: int | None = None, labels: bool = True) -> Data:
    """The pictures of a data set, to generate more like them: normalised as they come, so of standard deviation 1.

    Args:
        of: the data set.
        size: height and width to shrink them to, by averaging; by default as they are.
        labels: whether their classes come with them.

    Raises:
        UserError: the set has no pictures.
    """
    given: Data = build("data", of)
    shape = given.spec.shape
    if len(shape) != 3:
        raise UserError(f"pictures: '{of.name}' has no pictures [C, H, W], its inputs are {list(shape)}")
    if size is not None and not 1 <= size <= min(shape[1:]):
        raise UserError(f"pictures: size must be from 1 to {min(shape[1:])}, not {size}")
    spec = replace(
        given.spec,
        task="generation",
        shape=shape if size is None else (shape[0], size, size),
        classes=given.spec.classes if labels else None,
        class_names=given.spec.class_names if labels else (),
    )
    splits = {"train": given.train, "val": given.val, "test": given.test}
    made = {name: _whole(source, size) for name, source in splits.items() if source is not None}
    return from_splits(made, spec, name=f"pictures of {of.name}")


@register("data")
def latents(*, of: DataBlock, path: Path, size: int | None = None, labels: bool = True) -> Data:
    """The pictures of a data set as the latents of a diffusers pipeline, made once by its autoencoder.

    Args:
        of: the data set; grey pictures are given three channels.
        path: the pipeline's folder.
        size: height and width to bring the pictures to; by default as they are.
        labels: whether their classes come with them.

    Raises:
        UserError: the set has no pictures, or the pipeline no autoencoder.
    """
    from limbeck.diffusion.pipelines import autoencoder

    given: Data = build("data", of)
    if len(given.spec.shape) != 3:
        raise UserError(f"latents: '{of.name}' has no pictures [C, H, W], its inputs are {list(given.spec.shape)}")
    vae = autoencoder(path)
    splits = {"train": given.train, "val": given.val, "test": given.test}
    made = {n: _encoded(vae, _whole(s, None), given.spec, size) for n, s in splits.items() if s is not None}
    spec = DataSpec(
        task="generation",
        shape=tuple(next(iter(made.values()))[0].shape[1:]),
        classes=given.spec.classes if labels else None,
        class_names=given.spec.class_names if labels else (),
        licence=given.spec.licence,
    )
    return from_splits(made, spec, name=f"latents of {of.name}")


@register("data")
def ring_points(
    *,
    modes: int = 8,
    radius: float = 4.0,
    std: float = 0.3,
    classes: int | None = None,
    train_size: int = 20_000,
    test_size: int = 2_000,
    seed: int = 0,
) -> Data:
    """Points of equal Gaussians on a circle in the plane, which ``gaussian_ring`` is the exact model of.

    Args:
        modes: number of Gaussians; with ``classes``, mode k has the class ``k % classes``.
        radius: of the circle.
        std: of each Gaussian.
        classes: number of classes.
        train_size: points to learn from.
        test_size: points to judge by.
        seed: of the points.
    """
    if min(modes, train_size, test_size) < 1 or radius <= 0 or std <= 0:
        raise UserError("ring_points: modes, sizes, radius and std must be above 0")
    law = mixture.ring(modes, radius, std, classes).float()
    made = {}
    for name, size in (("train", train_size), ("test", test_size)):
        drawn = law.draw(torch.arange(size), (seed, name))
        labels = drawn.component if law.labels is None else law.labels[drawn.component]
        made[name] = (drawn.samples, labels if classes else labels.new_zeros(size))
    return from_splits(made, DataSpec(task="generation", shape=(2,), classes=classes), name="ring of Gaussians")


@torch.no_grad()
def _encoded(vae: Any, pictures: tuple[Tensor, Tensor], spec: DataSpec, size: int | None) -> tuple[Tensor, Tensor]:
    """Latents of deviation about 1, and the labels."""
    images, labels = pictures
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    made = []
    for part in images.split(ENCODED):
        scaled = 2 * unscaled(part, spec) - 1
        if size is not None:
            scaled = F.interpolate(scaled, (size, size), mode="bilinear", antialias=True, align_corners=False)
        if scaled.shape[1] == 1:
            scaled = scaled.expand(-1, 3, -1, -1)
        means = vae.encode(scaled.to(vae.dtype)).latent_dist.mean
        made.append(((means - shift) * vae.config.scaling_factor).float())
    return torch.cat(made), labels


def _whole(source: Source, size: int | None) -> tuple[Tensor, Tensor]:
    """All pictures, float32, and their labels."""
    parts = [source.batch(rows) for rows in torch.arange(len(source)).split(CHUNK)]
    images = torch.cat([p["input"] for p in parts])
    labels = torch.cat([p["label"] for p in parts])
    return (images if size is None else F.adaptive_avg_pool2d(images, size)), labels
