"""Students of data-set condensation: sets of images that learn."""

from __future__ import annotations

from typing import Any, Literal

import torch

from limbeck.condensation.synthetic import RealImages, SyntheticImages, first_images, noise_images, valid_range
from limbeck.errors import UserError
from limbeck.registry import register


@register("model", gives={"images"}, data_is_student=True)
def synthetic_images(
    *,
    per_class: int = 1,
    init: Literal["noise", "real", "mean"] = "real",
    data: Any = None,
    classes: int,
    shape: tuple[int, ...],
    seed: int | None = None,
) -> SyntheticImages:
    """A set of ``per_class`` images a class that learns: the student of data-set condensation.

    Args:
        per_class: images per class (IPC).
        init: ``real`` random training images, ``mean`` class means, or ``noise``.
        data: the built data; needed by ``real`` and ``mean``, and for the range of valid pixels.
        classes: number of classes.
        shape: of one image.
        seed: of the first images; by default from torch's generator, which the run seeds.

    Raises:
        UserError: ``per_class`` is below 1, there is no training data to start from, or a class has too few images.
    """
    if per_class < 1:
        raise UserError(f"synthetic_images: per_class must be at least 1, not {per_class}")
    if seed is None:
        seed = int(torch.randint(2**31, (1,)))
    train = getattr(data, "train", None)
    if init == "noise":
        images = noise_images(classes * per_class, shape, seed)
    elif train is None:
        raise UserError(f"synthetic_images: init '{init}' starts from training data, and there is none; use 'noise'")
    else:
        images = first_images(RealImages.of(train, classes), per_class, init, seed)
    spec = getattr(data, "spec", None)
    low, high = valid_range(getattr(spec, "mean", ()), getattr(spec, "std", ()), shape)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return SyntheticImages(images, labels, low, high, seed)
