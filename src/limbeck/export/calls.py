"""How a model is called from outside: the names of its inputs, its output, and batches to try it on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.errors import UserError
from limbeck.export.store import Stored, is_transformers
from limbeck.models.forward import forward

SIZES = (2, 1, 5, 16)
"""Batch sizes that an export is tried with; it is traced with the first (a size of 1 would be taken for a constant)."""
ROWS = max(SIZES)
FIELDS = ("input", "input_ids", "attention_mask")
"""What of a batch goes into a model."""
SEED = 0


@dataclass(frozen=True)
class Call:
    """A model as a function of named tensors.

    Attributes:
        module: takes the inputs by position and gives one tensor; no parameter takes a gradient.
        inputs: their names, in order.
        output: what comes out: ``logits``, ``samples``, ...
        axes: for each input the names of the axes whose size is free.
        limits: the largest size of an axis, where there is one.
        batches: inputs to try it on; of several batch sizes, the first is the one to trace with.
        origin: what the batches are made of, in words.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    axes: tuple[dict[int, str], ...]
    limits: Mapping[str, int]
    batches: tuple[tuple[Tensor, ...], ...]
    origin: str

    def shapes(self) -> tuple[dict[int, Any], ...]:
        """The free axes as torch.export wants them."""
        made = {name: torch.export.Dim(name, max=self.limits.get(name)) for axes in self.axes for name in axes.values()}
        return tuple({axis: made[name] for axis, name in axes.items()} for axes in self.axes)

    def signature(self) -> dict[str, list[str | int]]:
        """Shape of each input, free axes by name."""
        return {
            name: [axes.get(i, size) for i, size in enumerate(tensor.shape)]
            for name, axes, tensor in zip(self.inputs, self.axes, self.batches[0], strict=True)
        }


def example_rows(source: Source) -> dict[str, Tensor]:
    """The first rows of a source, as far as they go into a model: real inputs to try exports on."""
    batch = source.batch(torch.arange(min(ROWS, len(source))))
    found = {name: batch[name].cpu().contiguous() for name in FIELDS if name in batch}
    # Rows of several texts: each text is an input of its own.
    return {k: v.flatten(0, 1)[:ROWS] if k in FIELDS[1:] and v.dim() == 3 else v for k, v in found.items()}


def call_of(stored: Stored, rows: Mapping[str, Tensor] | None = None) -> Call:
    """How a model is called.

    Args:
        stored: the model; it is put into evaluation mode and its gradients are switched off.
        rows: real inputs (:func:`example_rows`); without them random ones of the right shape are used.

    Raises:
        UserError: a model that is no function from tensors to a tensor, or whose input shape is not known.
    """
    if "images" in stored.gives:
        raise UserError("the student is a set of images, not a network: use its images.npz")
    stored.module.eval().requires_grad_(False)
    if callable(getattr(stored.module, "example_inputs", None)):
        return _call_of_generator(stored.module)
    tokens = _reads_tokens(stored)
    given = rows if rows and ("input_ids" in rows) == tokens else None
    batch = dict(given) if given else _random_rows(stored, tokens)
    origin = f"{len(next(iter(batch.values())))} rows of the data" if given else "random inputs"
    return _call_of_tokens(stored, batch, origin) if tokens else _call_of_inputs(stored, batch["input"], origin)


# ---------------------------------------------------------------------------------------------------------------------
# Networks of images and tables


class Single(nn.Module):
    """A model of one input as a function: a file keeps tensors, and no map of them."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input: Tensor) -> Tensor:
        """The one output that is kept."""
        return forward(self.model, {"input": input})[self.output]


def _call_of_inputs(stored: Stored, rows: Tensor, origin: str) -> Call:
    module = stored.module
    name = "pixel_values" if getattr(module, "main_input_name", "") == "pixel_values" else "input"
    batches = tuple((_cycled(rows, size),) for size in SIZES)
    with torch.no_grad():
        plain = isinstance(module(batches[0][0]), Tensor)
        output = _output(module, {"input": batches[0][0]}, stored)
    traced = module if plain else Single(module, output)
    return Call(traced, (name,), output, ({0: "batch"},), {}, batches, origin)


def _output(module: nn.Module, batch: Mapping[str, Tensor], stored: Stored) -> str:
    with torch.no_grad():
        made = forward(module, batch)
    tensors = [name for name, value in made.items() if isinstance(value, Tensor)]
    wanted = [
        *(["logits"] if "logits" in tensors else []),
        *(n for n in sorted(stored.gives) if n in tensors),
        *tensors,
    ]
    if not wanted:
        raise UserError(f"the model '{stored.block.name}' gives no tensor that could be exported")
    return wanted[0]


# ---------------------------------------------------------------------------------------------------------------------
# Networks of tokens


class Tokens(nn.Module):
    """A model of tokens as a function, without a cache of keys.

    It gives a tensor: a file with the output class of transformers could only be read where transformers is installed.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output
        cached = is_transformers(model) and hasattr(model.config, "use_cache")
        self.options = {"use_cache": False} if cached else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits for ``input_ids`` and ``attention_mask`` (int64 [B, T])."""
        made = forward(self.model, {"input_ids": input_ids, "attention_mask": attention_mask}, **self.options)
        return made[self.output]


def _reads_tokens(stored: Stored) -> bool:
    named = getattr(stored.module, "main_input_name", None)
    return named == "input_ids" or (named is None and (stored.spec or {}).get("task") == "language")


def _call_of_tokens(stored: Stored, rows: Mapping[str, Tensor], origin: str) -> Call:
    ids = rows["input_ids"]
    mask = rows.get("attention_mask", torch.ones_like(ids))
    # Lengths vary with the batch size, so that both free axes are tried.
    lengths = [ids.shape[1], ids.shape[1], max(ids.shape[1] // 2, 2), ids.shape[1] - 1]
    batches = tuple(
        (_cycled(ids, size)[:, :length].contiguous(), _cycled(mask, size)[:, :length].contiguous())
        for size, length in zip(SIZES, lengths, strict=True)
    )
    output = _output(stored.module, dict(zip(FIELDS[1:], batches[0], strict=True)), stored)
    axes = {0: "batch", 1: "sequence"}
    longest = getattr(getattr(stored.module, "config", None), "max_position_embeddings", None)
    limits = {"sequence": int(longest)} if longest else {}
    return Call(Tokens(stored.module, output), FIELDS[1:], output, (axes, axes), limits, batches, origin)


# ---------------------------------------------------------------------------------------------------------------------
# Generators and denoisers


def _call_of_generator(module: nn.Module) -> Call:
    """A module that says its own arguments: noise (and class) to samples, or noisy data and level to clean data."""
    examples = module.example_inputs(SIZES[0])  # type: ignore[operator]
    if not isinstance(examples, Sequence):
        raise UserError(f"{type(module).__name__}.example_inputs must give a tuple of arguments to be exported")
    names = [*inspect.signature(module.forward).parameters][: len(examples)]
    classes = getattr(module, "classes", None)
    labelled = bool(classes) and "label" in inspect.signature(module.forward).parameters and "label" not in names
    drawn = torch.Generator().manual_seed(SEED)
    batches = []
    for size in SIZES:
        given = [_drawn(n, x, drawn) for n, x in zip(names, module.example_inputs(size), strict=True)]  # type: ignore[operator]
        labels = [torch.randint(int(classes), (size,), generator=drawn)] if labelled else []  # type: ignore[arg-type]
        batches.append((*given, *labels))
    names += ["label"] if labelled else []
    output = "samples" if names[0] == "noise" else "denoised"
    axes = tuple({0: "batch"} for _ in names)
    return Call(module, tuple(names), output, axes, {}, tuple(batches), "random noise")


def _drawn(name: str, example: Tensor, drawn: torch.Generator) -> Tensor:
    if not example.is_floating_point():
        return example
    normal = torch.randn(example.shape, generator=drawn, dtype=example.dtype)
    return normal.exp() if name in ("sigma", "t") else normal


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _cycled(rows: Tensor, size: int) -> Tensor:
    """``size`` rows; the first ones again where there are too few."""
    return rows[torch.arange(size) % len(rows)]


def _random_rows(stored: Stored, tokens: bool) -> dict[str, Tensor]:
    spec = stored.spec or {}
    shape = tuple(spec.get("shape") or ())
    drawn = torch.Generator().manual_seed(SEED)
    if not tokens:
        if not shape or not math.prod(shape):
            raise UserError("the model's folder does not say the shape of its input, so it cannot be traced")
        return {"input": torch.randn((ROWS, *shape), generator=drawn)}
    config = getattr(stored.module, "config", None)
    words = spec.get("vocab_size") or getattr(config, "vocab_size", None)
    length = (shape[0] if shape else None) or min(getattr(config, "max_position_embeddings", None) or 64, 64)
    if not words:
        raise UserError("the model's folder does not say the size of its vocabulary, so it cannot be traced")
    ids = torch.randint(int(words), (ROWS, int(length)), generator=drawn)
    mask = torch.ones_like(ids)
    mask[::3, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}
