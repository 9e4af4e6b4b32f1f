"""What data is to the rest of the library: sources of batches by index, and facts about them.

A :class:`Source` answers ``batch(indices, view)``: a dictionary of tensors for those rows. Which rows, in which order,
with which augmentation follows from the seed and the step alone (:mod:`limbeck.data.stream`), so a run that was cut
off goes on with exactly the batch it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = dict[str, Any]


@dataclass(frozen=True)
class DataSpec:
    """Facts about data that models, methods and metrics are built from.

    Attributes:
        task: what is predicted; decides the default metrics. The label of a segmentation is a class for every pixel,
            [H, W]; detection has ``boxes`` and ``box_labels`` in place of labels. ``language`` predicts the next token,
            ``masked_language`` hidden ones; ``embedding`` gives texts as vectors, judged by retrieval or similarity.
        shape: of one input, channels first, without the batch ([C, H, W], [C, T] for signals, [F], or
            [T] for tokens).
        classes: number of classes, if labelled.
        class_names: a name for each class.
        vocab_size: size of the vocabulary, for tokens.
        tokenizer_hash: content hash of the tokenizer, for tokens (vocabularies are compared by it, not by width).
        mean, std: per channel, of what ``batch`` returns before any further scaling (images are scaled to [0, 1]
            and then normalised by these, so they let a figure undo it).
        licence: of the data, as its owner states it.
    """

    task: Literal[
        "classification", "segmentation", "detection", "language", "masked_language", "embedding", "generation"
    ] = "classification"
    shape: tuple[int, ...] = ()
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    vocab_size: int | None = None
    tokenizer_hash: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    licence: str | None = None

    def offers(self) -> dict[str, Any]:
        """What a model's signature may ask for by name."""
        image = len(self.shape) == 3
        return {
            "shape": self.shape or None,
            "in_channels": self.shape[0] if len(self.shape) >= 2 else None,
            "length": self.shape[-1] if len(self.shape) == 2 else None,
            "image_size": self.shape[-1] if image else None,
            "in_features": int(torch.tensor(self.shape).prod()) if self.shape else None,
            "dim": self.shape[0] if len(self.shape) == 1 and not self.vocab_size else None,
            "classes": self.classes,
            "num_classes": self.classes,
            "vocab_size": self.vocab_size,
            "context": self.shape[0] if self.vocab_size and self.shape else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def unscaled(images: Tensor, spec: DataSpec) -> Tensor:
    """Images [N, C, ...] with the spec's normalisation undone and what no real image has cut off: in [0, 1]."""
    if spec.mean and spec.std:
        view = (-1, *[1] * (images.dim() - 2))
        images = images * torch.tensor(spec.std).view(view) + torch.tensor(spec.mean).view(view)
    return images.clamp(0, 1)


def for_page(images: Tensor, spec: DataSpec) -> list[Any]:
    """Images [N, C, ...] as the nested lists that a report shows: in [0, 1], to three digits."""
    shown = unscaled(images.detach().cpu().double(), spec)
    pictures: list[Any] = ((shown * 1000).round() / 1000).tolist()
    return pictures


@runtime_checkable
class Source(Protocol):
    """Rows that can be fetched by index. ``fingerprint`` names the content (a cache and a run are tied to it)."""

    spec: DataSpec

    @property
    def fingerprint(self) -> str:
        """Names the content; a property where it takes time to compute."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows ``indices`` (int64 [B]) as tensors of leading size B, with ``id`` (int64 [B]) and ``view`` (int).

        ``view`` numbers the augmentation: the same (id, view) gives the same tensors, always.
        """
        ...


@dataclass
class Data:
    """What a data block builds: the splits. ``train`` may be missing (data-free), ``test`` judges, ``val`` selects."""

    spec: DataSpec
    train: Source | None = None
    test: Source | None = None
    val: Source | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
