"""Students that are cut out of their teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.language.pruning.choice import Cut, choose
from limbeck.language.pruning.slicing import Kept, sliced
from limbeck.metrics.base import on_device
from limbeck.registry import register

AT_ONCE = 16
"""Samples in a calibration batch."""
_FOUND: dict[tuple[Any, ...], Kept] = {}
"""What was chosen before in this process: a run builds its student several times."""


@register("model", gives={"logits", "hidden_states"}, from_teacher=True)
def pruned(
    *,
    of: str | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    importance: Literal["activation", "random"] = "activation",
    depth: Literal["block_influence", "loss", "angular", "even"] = "block_influence",
    samples: int = 256,
    sequence: Literal["l2", "mean"] = "l2",
    batch: Literal["mean", "l2"] = "mean",
    rescale: bool = True,
    teachers: Any = None,
    data: Any = None,
) -> nn.Module:
    """A decoder cut out of a teacher: a smaller transformers model of its class, with a part of its weights.

    What stays is chosen by the teacher's activations on calibration text, forward only (Minitron, arXiv 2407.14679).
    GPT-2, Llama, Mistral, Qwen2 and Qwen3 can be cut.

    Args:
        of: the teacher's role; the recipe's only teacher by default.
        layers: blocks that stay; sizes that are not given stay as the teacher's.
        hidden: channels that stay.
        heads: attention heads that stay; with grouped queries whole groups, so a multiple of their heads.
        ffn: neurons of each feed-forward layer that stay.
        importance: channels, heads and neurons stay by their activations, or at ``random``.
        depth: blocks stay by their ``block_influence``, by the ``loss`` without them, ``even``ly spread; or the
            consecutive ones of least ``angular`` distance go.
        samples: rows of the training data to calibrate on.
        sequence: how activations are aggregated over a sample's tokens: root mean square or mean.
        batch: and over the samples.
        rescale: scale norms by the share of channels that stay.
        teachers: the run's teachers by role.
        data: the built data.

    Raises:
        UserError: there is no such teacher, it cannot be cut, the sizes do not fit, or there is no text to calibrate.
    """
    teacher = source_of(of, teachers or {})
    rows = _rows(data, samples)
    cut = Cut(layers, hidden, heads, ffn, importance, depth, sequence, batch)
    key = (teacher.hash, cut, samples, rows.fingerprint)
    device = next(teacher.module.parameters()).device
    if key not in _FOUND or importance == "random":
        places = torch.linspace(0, len(rows) - 1, min(samples, len(rows))).round().long()
        batches = [on_device(rows.batch(part), device) for part in places.split(AT_ONCE)]
        _FOUND[key] = choose(teacher.module, cut, batches)
    student = sliced(teacher.module, _FOUND[key], rescale=rescale)
    return student.to("cpu").requires_grad_(True)


def source_of(of: str | None, teachers: Mapping[str, Any]) -> Any:
    """The teacher that a student is cut out of.

    Raises:
        UserError: there is none of that role, or several and no role.
    """
    if of is None and len(teachers) == 1:
        return next(iter(teachers.values()))
    if of in teachers:
        return teachers[str(of)]
    there = ", ".join(teachers) or "none"
    asked = "the teacher to cut it from" if of is None else f"a teacher called '{of}'"
    raise UserError(f"student 'pruned' needs {asked}; the recipe's teachers: {there}")


def _rows(data: Any, samples: int) -> Any:
    rows = getattr(data, "train", None)
    if rows is None or rows.spec.task != "language":
        raise UserError("student 'pruned' is calibrated on the run's training text, and the recipe has none")
    if samples < 1:
        raise UserError(f"student 'pruned': samples must be at least 1, got {samples}")
    return rows
