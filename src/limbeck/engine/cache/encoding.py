"""How one signal becomes columns of a shard, and back.

Columns are little-endian: float32 (``full``), float16 (``fp16``), the signal's own type (``exact``: integers and
booleans), or for ``topk`` three of them: indices in the narrowest unsigned integer that holds V - 1, log-probabilities,
log tail mass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from limbeck.engine.cache.spec import CacheSpec
from limbeck.errors import UserError
from limbeck.truncated import TopK, topk_of

Encoding = Literal["full", "fp16", "topk", "exact"]

_FLOATS = {"fp16": "<f2", "fp32": "<f4"}
_EXACT = {"bool": "|b1", "uint8": "|u1", "int8": "|i1", "int16": "<i2", "int32": "<i4", "int64": "<i8"}


class Frozen(BaseModel):
    """A validated record that goes into the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Frozen):
    """One array of a shard: ``shape`` and ``dtype`` of a single row."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


class SignalInfo(Frozen):
    """One stored teacher output: its shape for one sample, its type, and how it is encoded."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding
    k: int | None = None
    temperature: float = 1.0
    logprobs: Literal["fp16", "fp32"] = "fp16"

    @property
    def gives(self) -> str:
        """The name it is served under: ``logits``, or ``logits_topk`` when truncated."""
        return f"{self.name}_topk" if self.encoding == "topk" else self.name

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that hold it."""
        if self.encoding == "topk":
            assert self.k is not None
            positions, dtype = self.shape[:-1], _FLOATS[self.logprobs]
            return (
                Column(name=f"{self.name}.indices", dtype=_index_dtype(self.shape[-1]), shape=(*positions, self.k)),
                Column(name=f"{self.name}.logprobs", dtype=dtype, shape=(*positions, self.k)),
                Column(name=f"{self.name}.log_tail", dtype=dtype, shape=positions),
            )
        dtype = {"full": "<f4", "fp16": "<f2"}.get(self.encoding) or _EXACT[self.dtype]
        return (Column(name=self.name, dtype=dtype, shape=self.shape),)


def describe(name: str, shape: tuple[int, ...], dtype: str, spec: CacheSpec) -> SignalInfo:
    """How ``spec`` stores a signal of that per-sample shape and type (``float32``, ``int64``, ...).

    Raises:
        UserError: k exceeds the number of classes, or the type cannot be stored.
    """
    if not dtype.startswith(("float", "bfloat")):
        if dtype not in _EXACT:
            raise UserError(f"the cache cannot store signal '{name}' of type {dtype}")
        return SignalInfo(name=name, shape=shape, dtype=dtype, encoding="exact")
    if spec.mode != "topk" or not is_distribution(name, shape):
        return SignalInfo(name=name, shape=shape, dtype=dtype, encoding="full" if spec.mode == "full" else "fp16")
    assert spec.k is not None
    if spec.k > shape[-1]:
        raise UserError(
            f"the cache keeps the top {spec.k} of '{name}', which has {shape[-1]} classes: lower k or use mode fp16"
        )
    return SignalInfo(
        name=name,
        shape=shape,
        dtype=dtype,
        encoding="topk",
        k=spec.k,
        temperature=spec.temperature,
        logprobs=spec.logprobs,
    )


def is_distribution(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the last axis of a signal holds logits over classes, so that it can be truncated."""
    return (name == "logits" or name.endswith("_logits")) and len(shape) > 0


def encode(value: Tensor, info: SignalInfo) -> dict[str, np.ndarray]:
    """The columns of a batch of one signal, [B, *shape].

    Raises:
        UserError: NaN or +inf in it, or values that fp16 cannot hold.
    """
    if info.encoding == "exact":
        return {info.name: value.numpy()}
    value = value.float()
    refuse_non_finite(value, info.name)
    if info.encoding == "full":
        return {info.name: value.numpy()}
    if info.encoding == "fp16":
        half = value.half()
        if torch.isinf(half).sum() > torch.isinf(value).sum():
            largest = value[value.isfinite()].abs().max()
            raise UserError(f"signal '{info.name}' reaches {largest:.3g}, beyond fp16: use cache mode full")
        return {info.name: half.numpy()}
    assert info.k is not None
    cut = topk_of(value, info.k, info.temperature)
    arrays = (cut.indices, cut.logprobs, cut.log_tail)
    # astype to fp16: a log-mass below -65504 becomes -inf, the zero that it is.
    with np.errstate(over="ignore"):
        return {c.name: a.numpy().astype(c.dtype) for c, a in zip(info.columns, arrays, strict=True)}


def decode(columns: Mapping[str, np.ndarray], info: SignalInfo) -> Any:
    """A signal from its columns: a tensor (floats as float32) or a :class:`~limbeck.truncated.TopK`."""
    arrays = [columns[c.name] for c in info.columns]
    if info.encoding == "exact":
        return torch.from_numpy(arrays[0])
    if info.encoding != "topk":
        return torch.from_numpy(arrays[0]).float()
    indices = torch.from_numpy(arrays[0].astype(np.int64))
    logprobs, log_tail = (torch.from_numpy(a).float() for a in arrays[1:])
    # fp16 rounding leaves a total a little off 1; all k + 1 buckets are scaled back together.
    total = torch.logaddexp(torch.logsumexp(logprobs, -1), log_tail)
    return TopK(indices, logprobs - total[..., None], log_tail - total, info.temperature, info.shape[-1])


def deviation(stored: Any, live: Tensor, info: SignalInfo) -> tuple[Tensor, float]:
    """How far stored rows are from live ones, [B], and how far this encoding lets them be.

    Tensors: the largest difference relative to the row's largest magnitude. ``topk``: the total variation between the
    two (k + 1)-way distributions, both taken at the stored indices (so that ties among the top k do not matter).
    """
    if info.encoding == "exact":
        return (stored != live).flatten(1).any(1).float() if stored.dim() > 1 else (stored != live).float(), 0.0
    live = live.float()
    if info.encoding == "topk":
        logprobs = torch.log_softmax(live / info.temperature, -1).gather(-1, stored.indices)
        here, there = logprobs.exp(), stored.logprobs.exp()
        tails = (here.sum(-1) - there.sum(-1)).abs()
        return _worst(((here - there).abs().sum(-1) + tails) / 2), 5e-3
    error = torch.where(stored == live, torch.zeros_like(live), (stored - live).abs())
    scale = _worst(torch.where(live.isfinite(), live.abs(), torch.zeros_like(live))).clamp(min=1e-12)
    return _worst(error) / scale, 1e-3 if info.encoding == "full" else 2e-3


def _worst(values: Tensor) -> Tensor:
    return values.flatten(1).amax(1) if values.dim() > 1 else values


def refuse_non_finite(value: Tensor, name: str) -> None:
    """-inf is a class that cannot be; NaN and +inf are a broken teacher, and one bad row would poison a run."""
    if torch.isnan(value).any() or torch.isposinf(value).any():
        raise UserError(f"the teacher's '{name}' holds NaN or +inf: it is not cached")


def _index_dtype(classes: int) -> str:
    return next(d for d in ("|u1", "<u2", "<u4") if classes - 1 <= np.iinfo(d).max)
