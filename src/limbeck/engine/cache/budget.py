"""How large a cache will be, before it is filled, and what would fit when it is too large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from limbeck.engine.cache.encoding import SignalInfo, describe, is_distribution
from limbeck.engine.cache.format import columns_of, layout, rows_per_shard
from limbeck.engine.cache.spec import CacheSpec, format_bytes
from limbeck.errors import UserError

_MANIFEST_BYTES = 8192
_SHARD_RECORD_BYTES = 1024


def estimate(
    spec: CacheSpec, shapes: Mapping[str, tuple[int, ...]], n: int, dtypes: Mapping[str, str] | None = None
) -> int:
    """Bytes that the directory of a cache will take at most (the shards exactly, the manifest generously).

    Args:
        spec: encoding and views.
        shapes: of each signal for one sample, without the batch dimension: ``{"logits": (1000,)}``.
        n: number of samples.
        dtypes: of the signals that are not floats: ``{"tokens": "int64"}``.

    Raises:
        UserError: k exceeds the number of classes.
    """
    dtypes = dtypes or {}
    return size_of(
        tuple(describe(s, tuple(shapes[s]), dtypes.get(s, "float32"), spec) for s in sorted(shapes)), spec, n
    )


def size_of(signals: tuple[SignalInfo, ...], spec: CacheSpec, n: int) -> int:
    """:func:`estimate` from described signals."""
    columns, rows = columns_of(signals), n * len(spec.view_numbers)
    per_shard = rows_per_shard(columns, rows)
    whole, rest = divmod(rows, per_shard)
    shards = whole * layout(columns, per_shard)[1] + (layout(columns, rest)[1] if rest else 0)
    records = (whole + bool(rest)) * _SHARD_RECORD_BYTES + 16 * len(spec.view_numbers)
    return shards + records + _MANIFEST_BYTES


def check_budget(spec: CacheSpec, signals: Iterable[SignalInfo], n: int) -> int:
    """The size of the cache, if it is within the budget.

    Raises:
        UserError: it is not; the message says which mode, k or number of views would fit.
    """
    stored = tuple(signals)
    size = size_of(stored, spec, n)
    if size <= spec.budget_bytes:
        return size
    views = len(spec.view_numbers)
    row_bytes = sum(column.row_bytes for column in columns_of(stored))
    fitting = alternatives(spec, stored, n)
    says = f"these fit: {'; '.join(fitting)}" if fitting else "nothing smaller fits either: raise the budget"
    raise UserError(
        f"the teacher cache needs {format_bytes(size)} "
        f"({n} samples x {views} view{'s' * (views > 1)} x {row_bytes} bytes), "
        f"over the budget of {format_bytes(spec.budget_bytes)}; {says}"
    )


def alternatives(spec: CacheSpec, signals: tuple[SignalInfo, ...], n: int) -> list[str]:
    """The nearest smaller settings that keep within the budget, in words: a leaner mode, a smaller k, fewer views."""

    def fits(**changes: object) -> int | None:
        leaner = replace(spec, **changes)  # type: ignore[arg-type]
        size = size_of(tuple(describe(s.name, s.shape, s.dtype, leaner) for s in signals), leaner, n)
        return size if size <= spec.budget_bytes else None

    found = []
    if spec.mode == "full" and (size := fits(mode="fp16")):
        found.append(f"mode fp16 ({format_bytes(size)})")
    classes = [s.shape[-1] for s in signals if is_distribution(s.name, s.shape)]
    if classes:
        most = (spec.k or 1) if spec.mode == "topk" else min(classes)
        if k := _largest(most, lambda k: fits(mode="topk", k=k) is not None):
            found.append(f"mode topk with k up to {k}")
    views = spec.view_numbers
    if most := _largest(len(views) - 1, lambda count: fits(views=views[:count]) is not None):
        found.append(f"{most} of the {len(views)} views")
    return found


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``limit`` that fits, by bisection; 0 when none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
