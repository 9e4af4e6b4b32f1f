"""What a model costs: parameters, bytes, floating-point operations, latency and throughput."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.data.base import Source
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating, on_device
from limbeck.models.forward import forward
from limbeck.registry import register

BESIDE = ("id", "label", "labels", "boxes", "box_labels")
"""What a batch holds beside a model's input."""
WARM_UP = 3
"""Calls before the clock counts: the first ones allocate, choose kernels and fill caches."""


@register(
    "metric",
    task={"classification", "segmentation", "detection", "language", "masked_language", "embedding", "generation"},
    default={"classification", "segmentation", "detection", "language", "masked_language", "embedding"},
    better={
        "parameters": "lower",
        "bytes": "lower",
        "flops": "lower",
        "latency_ms": "lower",
        "latency_p90_ms": "lower",
        "throughput": "higher",
    },
    labels={
        "parameters": ("Parameters", "count"),
        "bytes": ("Size", "bytes"),
        "flops": ("FLOPs per sample", "flops"),
        "latency_ms": ("Latency, median at batch 1", "ms"),
        "latency_p90_ms": ("Latency, 90th percentile at batch 1", "ms"),
        "throughput": ("Throughput", "samples/s"),
    },
)
def efficiency(evaluation: Evaluation, *, repeats: int = 30, batch_size: int = 128, seconds: float = 1.0) -> Scores:
    """Size, floating-point operations of one sample's forward, latency at batch 1 and throughput.

    The input is the first rows of the test split (of the training split where there is no test split), or what the
    model's own ``example_inputs(batch_size)`` returns: a tensor, a tuple of arguments or a map of keyword arguments.

    One multiply-add counts as two operations; only matrix products, convolutions and attention count (attention in
    full, masked or not). Latency is the median over repeats after a warm-up, with as many threads as the process has
    (in the details). The batch for the throughput is cut where one forward would take longer than ``seconds``.

    Args:
        evaluation: what is measured.
        repeats: calls to time, at most.
        batch_size: samples per call for the throughput, at most.
        seconds: time to spend on each of the two measurements, about; at least one call is timed.

    Raises:
        UserError: an argument is not positive, or there is no sample to run the model on.
    """
    if repeats < 1 or batch_size < 1 or seconds <= 0:
        given = f"repeats: {repeats}, batch_size: {batch_size}, seconds: {seconds}"
        raise UserError(f"efficiency needs positive numbers, not {given}")
    model, device = evaluation.model, evaluation.device
    with evaluating(model):
        one, shapes = _call(evaluation, 1)
        flops = count_flops(one)
        single = timings(one, repeats=repeats, seconds=seconds, device=device)
        latency = statistics.median(single)
        size = affordable_batch(batch_size, latency, seconds)
        many = timings(_call(evaluation, size)[0], repeats=repeats, seconds=seconds, device=device)
    values = {
        "parameters": count_parameters(model),
        "bytes": stored_bytes(model),
        "flops": flops,
        "latency_ms": 1e3 * latency,
        "latency_p90_ms": 1e3 * float(np.quantile(single, 0.9)),
        "throughput": size / statistics.median(many),
    }
    timing = {"device": str(device), "repeats": len(single), "batch_size": size, "batch_repeats": len(many)}
    details = {"threads": torch.get_num_threads(), "timing": {**timing, "dtype": _dtype(model), "input": shapes}}
    return Scores(values, details)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def stored_bytes(module: nn.Module) -> int:
    """Bytes of parameters and persistent buffers as they are stored: tied tensors once, packed ones as packed."""
    tensors = {_identity(t): t for t in _tensors(module.state_dict().values())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call: 2 per multiply-add of matrix products, convolutions and attention.

    Fused kernels (attention on the CPU, the encoder layer's fast path, recurrent layers) have no formula in torch's
    counter and would count as nothing, so they are switched off while counting. Attention counts in full, also where
    a mask makes half of it needless.
    """
    with torch.no_grad(), _unfused(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def timings(call: Callable[[], object], *, repeats: int, seconds: float, device: torch.device) -> list[float]:
    """Seconds of each of up to ``repeats`` calls after a warm-up, under inference mode, device work included.

    The warm-up and the measurement each stop after ``seconds``, with at least one call.
    """
    with torch.inference_mode():
        list(_timed(call, WARM_UP, seconds, device))
        return list(_timed(call, repeats, seconds, device))


def affordable_batch(batch_size: int, latency: float, seconds: float) -> int:
    """``batch_size``, or the largest power of two below it that ``seconds`` allow at ``latency`` seconds a sample."""
    samples = max(1, int(seconds / max(latency, 1e-9)))
    return batch_size if samples >= batch_size else 1 << (samples.bit_length() - 1)


def _timed(call: Callable[[], object], repeats: int, seconds: float, device: torch.device) -> Iterator[float]:
    begin = time.perf_counter()
    for _ in range(repeats):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        end = time.perf_counter()
        yield end - start
        if end - begin >= seconds:
            return


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _call(evaluation: Evaluation, size: int) -> tuple[Callable[[], object], dict[str, list[int]]]:
    """A call of the model on ``size`` samples, and the shapes that it is given."""
    model = evaluation.model
    own = getattr(model, "example_inputs", None)
    if callable(own):
        inputs = on_device(own(size), evaluation.device)
        if isinstance(inputs, Mapping):
            return (lambda: model(**inputs)), _shapes(inputs)
        inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
        return (lambda: model(*inputs)), _shapes({str(i): x for i, x in enumerate(inputs)})
    source = _rows_from(evaluation)
    rows = torch.arange(size) % len(source)
    batch = on_device(source.batch(rows), evaluation.device)
    seen = {key: value for key, value in batch.items() if key not in BESIDE}
    return (lambda: forward(model, batch)), _shapes(seen)


def _rows_from(evaluation: Evaluation) -> Source:
    for source in (evaluation.source, evaluation.train):
        if source is not None and len(source):
            return source
    raise UserError(
        f"efficiency has no sample to run {evaluation.title} on: "
        "give the data a test split, or the model a method example_inputs(batch_size)"
    )


def _shapes(inputs: Mapping[str, Any]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in inputs.items() if isinstance(value, Tensor)}


def _dtype(module: nn.Module) -> str:
    first = next(module.parameters(), None)
    return str(first.dtype).removeprefix("torch.") if first is not None else "none"


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The plain tensors in a state dict: inside tuples (packed weights) and tensor subclasses (quantised ones) too."""
    for value in values:
        if isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
            yield from _tensors(getattr(value, name) for name in value.__tensor_flatten__()[0])
        elif isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    if not tensor.data_ptr():
        return (id(tensor),)  # without memory of its own (empty, or on the meta device)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


@contextmanager
def _unfused() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # setting the flags touches TF32 switches that some builds lack
            onednn, cudnn = torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False)
            with sdpa_kernel(SDPBackend.MATH), onednn, cudnn:
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
