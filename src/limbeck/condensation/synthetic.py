"""A learnable set of images, and the real images it is made from and compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.condensation.relabel import Lessons, Loss, Views, mixed_classes, relabelled
from limbeck.data.base import DataSpec, Source
from limbeck.engine.noise import normal, uniform
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.models.forward import forward

NO_TEACHER = "soft labels are a teacher's: name a teacher, or take a student like synthetic_images"
OF_LABELS = frozenset(("labels", "targets", "soft", "sight_seed"))
"""What a set stores that says what its images show."""


class SyntheticImages(nn.Module):
    """The student of data-set condensation: ``per_class`` images for each of ``classes`` classes.

    Calling it gives what a network is trained on, ``(images [N, ...], labels [N] or [N, K])``; that is :meth:`decode`,
    which a subclass with a denser store (latents, shared patterns) overrides. The state that is delivered is ``images``
    and ``labels``, and ``targets`` and ``rate`` where the set has them.

    Args:
        images: first values, [classes * per_class, ...], sorted by class.
        labels: int64 [classes * per_class].
        limits: lowest and highest value that a real image can have, each broadcastable to one image.
        seed: what random initial images were drawn with.
        tiles: each stored image is so many rows and columns of small ones, each of which is enlarged to an image (IDC;
            Kim et al. 2022, arXiv 2205.14959).
        mirror: each image goes with its mirror image (FYI; Son et al. 2024, arXiv 2407.08113).
        targets: first values [classes * per_class, K] of numbers that learn in place of the labels.
        regression: the targets are numbers to be met, not probabilities.
        rate: the learning rate that the set is to be learnt with, if it has one of its own.

    Raises:
        ValueError: not one label or target per image, or a side that ``tiles`` does not divide.
    """

    images: nn.Parameter
    labels: Tensor
    targets: nn.Parameter | None
    rate: Tensor | None
    low: Tensor
    high: Tensor

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        limits: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        *,
        tiles: int = 1,
        mirror: bool = False,
        targets: Tensor | None = None,
        regression: bool = False,
        rate: float | None = None,
    ) -> None:
        super().__init__()
        if len(images) != len(labels) or (targets is not None and len(targets) != len(labels)):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if tiles < 1 or (tiles > 1 and any(side % tiles for side in images.shape[2:])):
            raise ValueError(f"images {tuple(images.shape[2:])} cannot be cut into {tiles} by {tiles} tiles")
        self.images = nn.Parameter(images.clone())
        self.register_buffer("labels", labels.clone())
        self.targets = None if targets is None else nn.Parameter(targets.clone())
        self.register_buffer("rate", None if rate is None else torch.tensor(float(rate)))
        low, high = limits or (torch.tensor(-torch.inf), torch.tensor(torch.inf))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.seed, self.tiles, self.mirror, self.regression = seed, tiles, mirror, regression

    def forward(self) -> tuple[Tensor, Tensor]:
        """Images and labels to train on."""
        return self.decode()

    def decode(self) -> tuple[Tensor, Tensor]:
        """Images and labels to train on, differentiable in what is stored; the targets are the labels if there are any.

        What comes of one stored image is next to each other, so that all is sorted by class.
        """
        images = untiled(self.images, self.tiles)
        if self.mirror:
            images = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        labels = self.labels if self.targets is None else self.targets
        return images, labels.repeat_interleave(self.expansion, 0)

    @property
    def decoded_labels(self) -> Tensor:
        """The class of each image to train on, int64."""
        return self.labels.repeat_interleave(self.expansion, 0)

    def lessons(self) -> Lessons | None:
        """How the set asks to be learnt; None where it is for whoever learns it to say."""
        return None

    def training_recipe(self) -> dict[str, Any]:
        """How the set asks to be learnt, as plain values."""
        lessons = self.lessons()
        if lessons is None:
            own = {} if self.rate is None else {"lr": float(self.rate)}
            return {"loss": "squared error" if self.regression else "cross-entropy", **own}
        views = asdict(lessons.views)
        hard = {} if lessons.labels is None else {"loss": "MSE + gamma cross-entropy", "gamma": lessons.gamma}
        return {
            "loss": "cross-entropy" if lessons.temperature is None else "KL(teacher || student)",
            "temperature": lessons.temperature,
            "optimizer": "adamw",
            "lr": lessons.lr,
            "weight_decay": lessons.weight_decay,
            "schedule": f"(1 + cos(pi epoch / ({lessons.smooth:g} epochs))) / 2",
            "epochs": lessons.epochs,
            **views,
            **hard,
        }

    def storage(self) -> dict[str, int]:
        """Bytes of what is delivered: ``images``, ``labels`` and ``adapters``, which is all the rest."""
        found = {"images": 0, "labels": 0, "adapters": 0}
        for name, value in self.state_dict().items():
            kind = "images" if name == "images" else "labels" if name in OF_LABELS else "adapters"
            found[kind] += value.numel() * value.element_size()
        return found

    @property
    def expansion(self) -> int:
        """Images to train on that come of a stored one."""
        return self.tiles**2 * (1 + self.mirror)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    @property
    def per_class(self) -> int:
        """Stored images of each class (IPC)."""
        return len(self.labels) // self.classes

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the stored pixels back to the range that real images have."""
        torch.clamp(self.images, self.low, self.high, out=self.images)

    @torch.no_grad()
    def replace_(self, images: Tensor) -> None:
        """Store these images instead.

        Raises:
            ValueError: their shape is not the stored one.
        """
        if images.shape != self.images.shape:
            raise ValueError(f"stored {tuple(self.images.shape)}, given {tuple(images.shape)}")
        self.images.copy_(images)


class RelabelledImages(SyntheticImages):
    """Images with the logits of teachers for every sight of ``epochs`` epochs, float16 [epochs, N, K].

    Without ``stored`` logits they are learnt by their hard labels, mixed as the images are, with cross-entropy.

    Args:
        images, labels, limits, seed: as for :class:`SyntheticImages`; also ``tiles``.
        views: the sights.
        epochs: how often all images are seen.
        classes: K, of the teachers.
        stored: keep the logits.
        loss, gamma, temperature, lr, smooth: as for :class:`~limbeck.condensation.relabel.Lessons`.
    """

    soft: Tensor
    sight_seed: Tensor

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        limits: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        *,
        views: Views,
        epochs: int,
        classes: int,
        tiles: int = 1,
        temperature: float = 20.0,
        lr: float = 1e-3,
        smooth: float = 1.0,
        stored: bool = True,
        loss: Loss = "kl",
        gamma: float = 0.1,
    ) -> None:
        super().__init__(images, labels, limits, seed, tiles=tiles)
        self.stored, self.loss, self.gamma = stored, loss, gamma
        self._views, self.epochs, self.temperature, self.lr, self.smooth = views, epochs, temperature, lr, smooth
        self.register_buffer("sight_seed", torch.tensor(views.seed))
        kept = epochs if stored else 0
        self.register_buffer("soft", torch.zeros(kept, len(labels) * self.expansion, classes, dtype=torch.float16))

    @property
    def views(self) -> Views:
        """The sights, whose seed is stored with the labels."""
        return replace(self._views, seed=int(self.sight_seed))

    @torch.no_grad()
    def relabel_(self, label: Callable[[Tensor], Tensor]) -> None:
        """Store what ``label``, images [B, C, H, W] -> logits [B, K], says of every sight; nothing without."""
        if self.stored:
            self.soft.copy_(relabelled(self.decode()[0], self.views, self.epochs, label))

    def lessons(self) -> Lessons:
        """The stored sights and logits, or mixed hard labels.

        Raises:
            UserError: nothing has been stored.
        """
        if self.stored and not bool(self.soft.any()):
            raise UserError("these images have no soft labels yet: a method with a teacher stores them when it ends")
        images, labels = (x.detach() for x in self.decode())
        return Lessons(
            images,
            self.views,
            self.epochs,
            (lambda epoch, sight: self.soft[epoch, sight.places].float())
            if self.stored
            else (lambda epoch, sight: mixed_classes(labels, self.soft.shape[2], sight)),
            temperature=self.temperature if self.stored else None,
            lr=self.lr,
            smooth=self.smooth,
            labels=labels if self.stored and self.loss == "mse" else None,
            gamma=self.gamma,
        )


class CompensatedImages(RelabelledImages):
    """Real images, and the same with patterns that all classes share (UFC; Du et al., arXiv 2408.06927).

    Of each class there are ``bases`` stored images b and of each of ``networks`` networks one pattern u for each base:
    a class is learnt as ``b_k`` and ``b_k + u_{m,k}`` (clamped) for all k and m, ``bases * (networks + 1)`` images. The
    patterns alone learn.

    Args:
        images, labels, limits, seed: as for :class:`RelabelledImages`, as is what is not named here.
        networks: M.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        limits: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        *,
        networks: int,
        **form: Any,
    ) -> None:
        self.networks = (
            networks  # before the labels are laid out: there is one for each image that comes of a stored one
        )
        super().__init__(images, labels, limits, seed, **form)
        self.images.requires_grad_(False)
        self.patterns = nn.Parameter(torch.zeros(networks, self.per_class, *images.shape[1:]))

    @property
    def expansion(self) -> int:
        """A base alone, and with a pattern of each network."""
        return self.networks + 1

    def decode(self) -> tuple[Tensor, Tensor]:
        """Images [classes * bases * (networks + 1), ...], sorted by class, and labels."""
        plain = self.images.view(self.classes, 1, self.per_class, *self.images.shape[1:])
        # No clamp would let a gradient of a pixel at the edge through, so its size is cut on the way forward alone.
        raw = plain + self.patterns
        within = raw + (torch.clamp(raw, self.low, self.high) - raw).detach()
        images = torch.cat([plain, within], 1).flatten(0, 2)
        return images, self.labels.repeat_interleave(self.expansion, 0)

    def compensated(self) -> Tensor:
        """The images with patterns as slots [networks * bases, classes, ...], those of a network together."""
        images = self.decode()[0].view(self.classes, self.expansion, self.per_class, *self.images.shape[1:])
        return images[:, 1:].flatten(1, 2).transpose(0, 1)


def relabel_by(
    student: SyntheticImages,
    teachers: Mapping[str, Teacher],
    weights: Sequence[float] | None = None,
    *,
    batch_parts: int = 0,
    normalised: bool = False,
) -> None:
    """Store the mean logits of the teachers in a set that stores soft labels; any other set stays as it is.

    Args:
        student: the set.
        teachers: by role.
        weights: of the teachers; by default all alike, together 1.
        batch_parts: into how many parts a batch is cut, each of which batch normalisation takes its statistics from
            (CV-DD; arXiv 2501.07575); 0 for those that it remembers. What it remembers stays as it is either way.
        normalised: bring the teachers' logits to the same norm over a batch first (G-VBSM; arXiv 2311.17950).

    Raises:
        UserError: there is no teacher.
    """
    if not isinstance(student, RelabelledImages) or not student.stored:
        return
    if not teachers:
        raise UserError(NO_TEACHER)
    for teacher in teachers.values():
        teacher.module.to(student.images.device)
    shares = [1 / len(teachers)] * len(teachers) if weights is None else weights
    asked = [batch_labeller(t, batch_parts) if batch_parts else labeller(t) for t in teachers.values()]

    def label(images: Tensor) -> Tensor:
        told = torch.stack([ask(images) for ask in asked])
        said = zip(shares, alike(told) if normalised else told, strict=True)
        return torch.stack([share * logits for share, logits in said]).sum(0)

    student.relabel_(label)


def alike(logits: Tensor) -> Tensor:
    """Logits [T, B, K], those of each teacher brought to the mean of all teachers' norms over the batch."""
    norms = logits.norm(dim=(1, 2), keepdim=True)
    return logits / norms.clamp(min=torch.finfo(norms.dtype).tiny) * norms.mean(0, keepdim=True)


def labeller(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """From images [B, C, H, W] to a teacher's logits [B, K]."""
    return lambda x: teacher.compute({"input": x}).logits


def batch_labeller(teacher: Teacher, parts: int) -> Callable[[Tensor], Tensor]:
    """As :func:`labeller`, with batch normalisation by each of ``parts`` parts of the batch, on a copy of the teacher.

    A part of one image is normalised with another part.
    """
    module = copy.deepcopy(teacher.module)
    for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
        norm.train()

    def label(images: Tensor) -> Tensor:
        pieces = images.chunk(max(1, min(parts, len(images) // 2)))
        with torch.no_grad(), teacher.context():
            return torch.cat([forward(module, {"input": piece}).logits for piece in pieces])

    return label


def untiled(images: Tensor, tiles: int) -> Tensor:
    """Cut each image into ``tiles`` x ``tiles`` and enlarge each piece to its size: [N, ...] -> [N tiles^2, ...].

    Bilinear, as Kim et al. 2022 (arXiv 2205.14959, section 3) form data; differentiable.
    """
    if tiles == 1:
        return images
    n, channels, height, width = images.shape
    pieces = images.view(n, channels, tiles, height // tiles, tiles, width // tiles).permute(0, 2, 4, 1, 3, 5)
    pieces = pieces.reshape(n * tiles**2, channels, height // tiles, width // tiles)
    return F.interpolate(pieces, size=(height, width), mode="bilinear", align_corners=False)


def tiled(images: Tensor, tiles: int) -> Tensor:
    """The inverse of :func:`untiled` but for what shrinking loses: [N t^2, C, H, W] -> [N, C, H, W]."""
    if tiles == 1:
        return images
    n, channels, height, width = images.shape
    small = F.interpolate(images, size=(height // tiles, width // tiles), mode="area")
    rows = small.view(n // tiles**2, tiles, tiles, channels, height // tiles, width // tiles)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def image_set(student: nn.Module) -> SyntheticImages:
    """The student as a set of images.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(student, SyntheticImages):
        name = type(student).__name__
        raise UserError(f"condensation learns images: the student must be a set like synthetic_images, not {name}")
    return student


class RealImages:
    """A labelled source in memory, for methods that draw their own batches class by class.

    It holds the whole source as one tensor, so it is for data that fits, and shows each image as its first view (give
    the data no augmentation of its own). Unlabelled rows (-100) are left out.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        kept = (labels >= 0).nonzero()[:, 0]
        order = kept[labels[kept].argsort(stable=True)]
        self.images, self.labels, self.classes = images[order], labels[order], classes
        self.counts = torch.bincount(self.labels, minlength=classes).tolist()

    @classmethod
    def of(cls, source: Source, classes: int | None = None) -> RealImages:
        """All rows of a source.

        Raises:
            UserError: the source has no labels.
        """
        batch = source.batch(torch.arange(len(source)))
        if "label" not in batch:
            raise UserError("condensation works class by class: its training data needs a label for each image")
        found = int(batch["label"].max()) + 1
        return cls(batch["input"], batch["label"], classes or source.spec.classes or found)

    @classmethod
    def of_streams(cls, streams: Mapping[str, Source], classes: int | None = None) -> RealImages:
        """All rows of a run's training data: its only stream, or the one called ``labelled``.

        Raises:
            UserError: there is no such stream, or it has no labels.
        """
        if len(streams) != 1 and "labelled" not in streams:
            raise UserError("condensation needs labelled training data: one stream, or one of several named 'labelled'")
        return cls.of(streams.get("labelled", next(iter(streams.values()))), classes)

    def to(self, device: torch.device) -> RealImages:
        """Move the images and labels, in place."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self

    def of_class(self, label: int) -> Tensor:
        """All images of a class, [N_c, ...]."""
        start = sum(self.counts[:label])
        return self.images[start : start + self.counts[label]]

    def rows(self, per_class: int, key: Hashable) -> Tensor:
        """Row numbers of ``per_class`` images of each class (all, where there are fewer), drawn from a key alone.

        Drawn without replacement; int64, sorted by class.
        """
        if per_class >= max(self.counts):
            return torch.arange(len(self.labels), device=self.labels.device)
        rank = uniform(torch.arange(sum(self.counts)), (1,), key)[:, 0]
        shares = rank.split(self.counts)
        starts = [sum(self.counts[:c]) for c in range(self.classes)]
        picks = [start + share.argsort()[:per_class] for start, share in zip(starts, shares, strict=True)]
        return torch.cat(picks).to(self.labels.device)

    def shares(self, per_class: int) -> list[int]:
        """How many images of each class :meth:`rows` draws."""
        return [min(per_class, count) for count in self.counts]

    def draw(self, per_class: int, key: Hashable) -> tuple[Tensor, Tensor]:
        """Images and labels of :meth:`rows`."""
        rows = self.rows(per_class, key)
        return self.images[rows], self.labels[rows]

    def require(self, per_class: int) -> None:
        """Refuse to go on when a class has fewer images.

        Raises:
            UserError: naming the class.
        """
        for label, count in enumerate(self.counts):
            if count < per_class:
                raise UserError(
                    f"{per_class} images of each class are needed, but class {label} has {count} to train on"
                )


def first_images(real: RealImages, per_class: int, init: Literal["real", "mean"], seed: int, tiles: int = 1) -> Tensor:
    """Initial images [classes * per_class, ...], sorted by class; each a mosaic of small ones where it has ``tiles``.

    ``real`` are random real images; ``mean`` deals each class at random into ``per_class`` shares and averages each
    (so images of a class differ, and one image is the class mean).

    Raises:
        UserError: a class has fewer real images than are asked for.
    """
    per_class *= tiles**2
    real.require(per_class)
    if init == "real":
        return tiled(real.draw(per_class, (seed, "first images"))[0], tiles)
    means = []
    for label in range(real.classes):
        images = real.of_class(label)
        order = uniform(torch.arange(len(images)), (1,), (seed, label, "shares"))[:, 0].argsort()
        means += [images[share].mean(0) for share in order.tensor_split(per_class)]
    return tiled(torch.stack(means), tiles)


def first_targets(labels: Tensor, classes: int, *, centred: bool) -> Tensor:
    """Targets that say what the labels do, float32 [N, classes]: one-hot, less 1 / classes where ``centred``."""
    return F.one_hot(labels, classes).float() - (1 / classes if centred else 0.0)


def noise_images(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal images [count, *shape]."""
    return normal(torch.arange(count), tuple(shape), (seed, "first images"))


def valid_range(spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each channel of normalised images: (0 - m) / s and (1 - m) / s, else 0 and 1."""
    if not spec.mean or not spec.std:
        return torch.tensor(0.0), torch.tensor(1.0)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    view = (-1, *[1] * (len(spec.shape) - 1))
    return ((0 - mean) / std).view(view), ((1 - mean) / std).view(view)
