"""Students of data-set condensation: sets of images that learn."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.condensation.lightened import LightenedImages, Projector
from limbeck.condensation.relabel import Views
from limbeck.condensation.synthetic import (
    CompensatedImages,
    RealImages,
    RelabelledImages,
    SyntheticImages,
    first_images,
    first_targets,
    noise_images,
    valid_range,
)
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("model", gives={"images"}, data_is_student=True)
def synthetic_images(
    *,
    per_class: int = 1,
    init: Literal["noise", "real", "mean"] = "real",
    labels: Literal["hard", "soft", "regression", "features"] = "hard",
    dim: int | None = None,
    tiles: int = 1,
    mirror: bool = False,
    rate: float | None = None,
    data: Any = None,
    classes: int,
    shape: tuple[int, ...],
    seed: int | None = None,
) -> SyntheticImages:
    """A set of ``per_class`` images a class that learns: the student of data-set condensation.

    Args:
        per_class: images per class (IPC).
        init: ``real`` random training images, ``mean`` means of random shares of each class, or ``noise``.
        labels: ``hard`` are fixed classes. ``soft`` are numbers that learn, from one-hot on, and that networks learn by
            cross-entropy; ``regression`` likewise, from one-hot less 1 / classes on and by squared error. ``features``
            are a teacher's of the images, which learn likewise (``krr_st``).
        dim: of these features.
        tiles: each image is a mosaic of ``tiles`` x ``tiles`` small ones, which are enlarged to train on.
        mirror: each image goes with its mirror image.
        rate: the learning rate that networks learn the images with, where the method learns it; its first value.
        data: the built data, for ``real``, ``mean`` and the range of valid pixels. Without it the images are zero, to
            be filled from a file.
        classes: number of classes.
        shape: of one image.
        seed: of the first images; by default from torch's generator, which the run seeds.

    Raises:
        UserError: ``per_class`` is below 1, ``tiles`` does not divide the image, the rate is not above 0, there is no
            ``dim`` for features, the data has no training split to start from, or a class is too small.
    """
    if per_class < 1:
        raise UserError(f"synthetic_images: per_class must be at least 1, not {per_class}")
    if tiles < 1 or any(side % tiles for side in shape[1:]):
        raise UserError(f"synthetic_images: images of {tuple(shape[1:])} pixels cannot be cut into {tiles} x {tiles}")
    if rate is not None and rate <= 0:
        raise UserError(f"synthetic_images: rate must be above 0, not {rate:g}")
    if (labels == "features") != (dim is not None):
        raise UserError("synthetic_images: dim is how many features the teacher has, and goes with labels: features")
    of_images = torch.arange(classes).repeat_interleave(per_class)
    targets = None if labels == "hard" else first_targets(of_images, classes, centred=labels == "regression")
    if dim is not None:
        targets = torch.zeros(len(of_images), dim)
    form: dict[str, Any] = {"tiles": tiles, "mirror": mirror, "rate": rate, "targets": targets}
    form["regression"] = labels in ("regression", "features")
    if data is None:
        return SyntheticImages(torch.zeros(len(of_images), *shape), of_images, **form)
    images, seed = starting_images(per_class, init, data, shape, classes, seed, tiles)
    return SyntheticImages(images, of_images, valid_range(data.spec), seed, **form)


@register("model", gives={"images"}, data_is_student=True)
def relabelled_images(
    *,
    per_class: int = 10,
    init: Literal["noise", "real", "mean"] = "noise",
    labels: Literal["stored", "mixed"] = "stored",
    tiles: int = 1,
    epochs: int = 300,
    batch_size: int = 100,
    crop: float = 0.08,
    flip: bool = True,
    mix: Literal["none", "cutmix", "mixup"] = "cutmix",
    temperature: float = 20.0,
    lr: float = 1e-3,
    smooth: float = 1.0,
    loss: Literal["kl", "mse"] = "kl",
    gamma: float = 0.1,
    data: Any = None,
    classes: int,
    shape: tuple[int, ...],
    seed: int | None = None,
) -> RelabelledImages:
    """Images with stored soft labels of a teacher for every crop that is learnt (Yin et al. 2023, arXiv 2306.13092).

    The set is learnt as it was labelled: AdamW with weight decay 0.01 and a cosine rate, KL(teacher || student) at a
    temperature, not multiplied by its square.

    Args:
        per_class: images per class (IPC).
        init: as for ``synthetic_images``.
        labels: ``stored`` soft ones, or hard ones, ``mixed`` as the images are, which take no space.
        tiles: as for ``synthetic_images``.
        epochs: for which labels are stored.
        batch_size: images that are labelled and learnt together.
        crop: least share of an image's area that is shown; 1 shows whole images.
        flip: mirror half of the images. Not for digits and text.
        mix: what images of a batch are mixed by.
        temperature: of both sides of the divergence.
        lr: of networks that learn the set.
        smooth: 1 lets the rate fall to zero, 2 to a half (CV-DD; arXiv 2501.07575).
        loss: ``kl``, or ``mse`` of the logits with ``gamma`` times the cross-entropy with the hard labels of the
            images before they are mixed (G-VBSM; arXiv 2311.17950).
        gamma: of that cross-entropy.
        data: as for ``synthetic_images``.
        classes: number of classes.
        shape: of one image.
        seed: of the first images and of the sights; by default from torch's generator, which the run seeds.

    Raises:
        UserError: a number is out of range, the data has no training split to start from, or a class is too small.
    """
    if (
        per_class < 1
        or epochs < 1
        or batch_size < 1
        or not 0 < crop <= 1
        or min(temperature, lr, smooth) <= 0
        or gamma < 0
    ):
        raise UserError(
            "relabelled_images: per_class, epochs and batch_size are at least 1, crop is a share of the area, and "
            "temperature, lr and smooth are above 0, gamma 0 or more"
        )
    if tiles < 1 or any(side % tiles for side in shape[1:]):
        raise UserError(f"relabelled_images: images of {tuple(shape[1:])} pixels cannot be cut into {tiles} x {tiles}")
    of_images = torch.arange(classes).repeat_interleave(per_class)
    form: dict[str, Any] = {"epochs": epochs, "classes": classes, "tiles": tiles, "temperature": temperature}
    form |= {"lr": lr, "smooth": smooth, "stored": labels == "stored", "loss": loss, "gamma": gamma}
    images, limits = torch.zeros(len(of_images), *shape), None
    if data is not None:
        images, seed = starting_images(per_class, init, data, shape, classes, seed, tiles)
        limits = valid_range(data.spec)
    views = Views(seed or 0, batch_size, crop, flip, mix)
    return RelabelledImages(images, of_images, limits, seed or 0, views=views, **form)


@register("model", gives={"images"}, data_is_student=True)
def compensated_images(
    *,
    per_class: int = 10,
    networks: int = 2,
    labels: Literal["mixed", "stored"] = "mixed",
    epochs: int = 300,
    batch_size: int = 100,
    crop: float = 0.08,
    flip: bool = True,
    mix: Literal["none", "cutmix", "mixup"] = "mixup",
    temperature: float = 30.0,
    lr: float = 1e-3,
    smooth: float = 1.0,
    data: Any = None,
    classes: int,
    shape: tuple[int, ...],
    seed: int | None = None,
) -> CompensatedImages:
    """Random real images with patterns that all classes share, in the space of ``per_class`` images a class.

    A pattern takes the space of 1 / classes of an image of each class, so that with M networks there is room for
    ``per_class / (M / classes + 1)`` real images of each class, rounded down, and as many patterns of each network
    (INFER; Du et al., ICLR 2025, arXiv 2408.06927). The set is learnt as ``relabelled_images`` are.

    Args:
        per_class: images per class (IPC) whose space may be taken.
        networks: M, teachers that the patterns come from.
        labels: ``mixed`` hard labels, which take no space, or ``stored`` soft ones of all teachers for every sight.
        epochs: that it is learnt for.
        batch_size: images that are learnt together.
        crop: least share of an image's area that is shown; 1 shows whole images.
        flip: mirror half of the images. Not for digits and text.
        mix: what images of a batch are mixed by.
        temperature: of both sides of the divergence from stored labels.
        lr: of networks that learn the set.
        smooth: as for ``relabelled_images``.
        data: as for ``synthetic_images``.
        classes: number of classes.
        shape: of one image.
        seed: of the real images and of the sights; by default from torch's generator, which the run seeds.

    Raises:
        UserError: a number is out of range, there is no room for an image, the data has no training split, or a class
            is too small.
    """
    if networks < 1 or epochs < 1 or batch_size < 1 or not 0 < crop <= 1 or min(temperature, lr, smooth) <= 0:
        raise UserError(
            "compensated_images: networks, epochs and batch_size are at least 1, crop is a share of the area, and "
            "temperature, lr and smooth are above 0"
        )
    bases = per_class * classes // (networks + classes)
    if bases < 1:
        raise UserError(
            f"compensated_images: {per_class} images a class have no room for one with {networks} patterns; "
            "raise per_class"
        )
    of_images = torch.arange(classes).repeat_interleave(bases)
    images, limits = torch.zeros(len(of_images), *shape), None
    if data is not None:
        images, seed = starting_images(bases, "real", data, shape, classes, seed, 1)
        limits = valid_range(data.spec)
    views = Views(seed or 0, batch_size, crop, flip, mix)
    form: dict[str, Any] = {"networks": networks, "stored": labels == "stored", "classes": classes}
    form |= {"epochs": epochs, "temperature": temperature, "lr": lr, "smooth": smooth}
    return CompensatedImages(images, of_images, limits, seed or 0, views=views, **form)


@register("model", gives={"images"}, data_is_student=True)
def lightened_images(
    *,
    encoder: ModelBlock,
    rank: int = 4,
    scale: float = 100.0,
    count_encoder: bool = False,
    per_class: int = 10,
    init: Literal["noise", "real", "mean"] = "real",
    labels: Literal["projector", "mixed"] = "projector",
    epochs: int = 300,
    batch_size: int = 100,
    crop: float = 0.08,
    flip: bool = True,
    mix: Literal["none", "cutmix", "mixup"] = "cutmix",
    temperature: float = 20.0,
    lr: float = 1e-3,
    smooth: float = 1.0,
    data: Any = None,
    classes: int,
    shape: tuple[int, ...],
    seed: int | None = None,
) -> LightenedImages:
    """Images with a small projector that says their soft labels (HeLlO; Yu et al., ICCV 2025, arXiv 2408.08201).

    The set is learnt as ``relabelled_images`` are, by what the projector says of each crop. It comes whole, encoder
    included; what is counted are low-rank factors and head, as an encoder that is public is found by its hash, which
    ``training.json`` has.

    Args:
        encoder: the network whose features are read, without weights: method ``hello`` brings those of a teacher.
        rank: of the adapters in each of its layers and of the head's change.
        scale: of the cosines that the head makes; the public CLIP has 100.
        count_encoder: count the encoder's bytes as well.
        per_class: images per class (IPC).
        init: as for ``synthetic_images``; ``hello`` has a start of its own.
        labels: of the ``projector``, or hard ones, ``mixed`` as the images are, with which it is of no use.
        epochs: that it is learnt for.
        batch_size: images that are learnt together.
        crop: least share of an image's area that is shown; 1 shows whole images.
        flip: mirror half of the images. Not for digits and text.
        mix: what images of a batch are mixed by.
        temperature: of both sides of the divergence from the projector.
        lr: of networks that learn the set.
        smooth: as for ``relabelled_images``.
        data: as for ``synthetic_images``.
        classes: number of classes.
        shape: of one image.
        seed: of the first images, factors and sights; by default from torch's generator, which the run seeds.

    Raises:
        UserError: a number is out of range, the encoder has no features, peft is not installed, the data has no
            training split to start from, or a class is too small.
    """
    if min(per_class, epochs, batch_size, rank) < 1 or not 0 < crop <= 1 or min(scale, temperature, lr, smooth) <= 0:
        raise UserError(
            "lightened_images: per_class, epochs, batch_size and rank are at least 1, crop is a share of the area, and "
            "scale, temperature, lr and smooth are above 0"
        )
    of_images = torch.arange(classes).repeat_interleave(per_class)
    images, limits = torch.zeros(len(of_images), *shape), None
    if data is not None:
        images, seed = starting_images(per_class, init, data, shape, classes, seed, 1)
        limits = valid_range(data.spec)
    form: dict[str, Any] = {"epochs": epochs, "classes": classes, "temperature": temperature, "lr": lr}
    form |= {"smooth": smooth, "mixed": labels == "mixed", "count_encoder": count_encoder}
    form["projector"] = Projector(encoder, shape, classes, rank, scale, seed or 0)
    form["views"] = Views(seed or 0, batch_size, crop, flip, mix)
    return LightenedImages(images, of_images, limits, seed or 0, **form)


def starting_images(
    per_class: int, init: str, data: Any, shape: tuple[int, ...], classes: int, seed: int | None, tiles: int
) -> tuple[Tensor, int]:
    """The first images of a set, [classes * per_class, ...], and the seed that they were drawn with.

    Raises:
        UserError: the data has no training split to start from, or a class is too small.
    """
    if seed is None:
        seed = int(torch.randint(2**31, (1,)))
    if init == "noise":
        return noise_images(classes * per_class, shape, seed), seed
    if data.train is None:
        raise UserError(f"synthetic_images: init '{init}' starts from training data, and there is none; use 'noise'")
    start = cast("Literal['real', 'mean']", init)
    return first_images(RealImages.of(data.train, classes), per_class, start, seed, tiles), seed
