"""Whether an exported model is the model: outputs compared on batches of several sizes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.export.calls import Call

LIMIT = 1e-4
"""Largest accepted difference, relative to the largest output of the batch."""


def check(call: Call, run: Callable[[tuple[Tensor, ...]], Tensor], what: str) -> dict[str, Any]:
    """Compare an exported model with the model it was made of, on all batches of a call.

    Args:
        call: the model.
        run: calls the export: inputs in order to one output.
        what: names the export in errors.

    Returns:
        What was compared and how far the two were apart at most, absolutely and relative to the largest output.

    Raises:
        UserError: an output of another shape, that is not finite, or further away than 1e-4 of the largest output.
    """
    absolute, relative = 0.0, 0.0
    for batch in call.batches:
        with torch.no_grad():
            expected = call.module(*batch)
        try:
            with torch.no_grad():
                found = run(batch)
        except Exception as error:  # each runtime has errors of its own
            raise UserError(f"{what} does not run on a batch of {len(batch[0])}: {first_line(error)}") from error
        size = f"a batch of {len(batch[0])}"
        if found.shape != expected.shape:
            raise UserError(f"{what} gives {list(found.shape)} for {size}, the model {list(expected.shape)}")
        gap, scale = distance(_counted(call, batch, expected), _counted(call, batch, found))
        if not gap <= LIMIT * scale:
            says = f"by {gap:.3g} where the largest output is {scale:.3g}"
            raise UserError(f"{what} differs from the model on {size} {says}; at most {LIMIT:g} of it is accepted")
        absolute, relative = max(absolute, gap), max(relative, gap / scale if scale else 0.0)
    return {
        "batches": [list(batch[0].shape) for batch in call.batches],
        "on": call.origin,
        "largest_difference": absolute,
        "relative": relative,
        "limit": LIMIT,
    }


def distance(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and the largest absolute value expected; both NaN if something is not finite."""
    if not expected.numel():
        return 0.0, 0.0
    gap = (expected.double() - found.double()).abs().max()
    return float(gap), float(expected.double().abs().max())


def _counted(call: Call, batch: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """What of an output means something: nothing is promised at padding."""
    if "attention_mask" not in call.inputs or output.ndim < 3:
        return output
    mask = batch[call.inputs.index("attention_mask")]
    return output[mask.bool()] if mask.shape == output.shape[:2] else output


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks on their own inside (operators of packages that are not there, deprecations)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
