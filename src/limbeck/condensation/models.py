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
        init: ``real`` random training images, ``mean`` means of random shares of each class, or ``noise``.
        data: the built data, for ``real``, ``mean`` and the range of valid pixels. Without it the images are zero, to
            be filled from a file.
        classes: number of classes.
        shape: of one image.
        seed: of the first images; by default from torch's generator, which the run seeds.

    Raises:
        UserError: ``per_class`` is below 1, the data has no training split to start from, or a class is too small.
    """
    if per_class < 1:
        raise UserError(f"synthetic_images: per_class must be at least 1, not {per_class}")
    labels = torch.arange(classes).repeat_interleave(per_class)
    if data is None:
        return SyntheticImages(torch.zeros(len(labels), *shape), labels)
    if seed is None:
        seed = int(torch.randint(2**31, (1,)))
    if init == "noise":
        images = noise_images(len(labels), shape, seed)
    elif data.train is None:
        raise UserError(f"synthetic_images: init '{init}' starts from training data, and there is none; use 'noise'")
    else:
        images = first_images(RealImages.of(data.train, classes), per_class, init, seed)
    return SyntheticImages(images, labels, valid_range(data.spec), seed)
