"""Which samples a step sees: a pure function of the seed and the step.

A stream has no position to save. Step ``s`` lies in epoch ``s // steps_per_epoch``; the epoch's order is a permutation
drawn from (seed, epoch); the global batch is a stretch of it; each rank takes a contiguous slice of the global batch
and each micro-batch a contiguous slice of that. So an interrupted run goes on with the batch it would have had, and
the samples of a step do not depend on how many ranks and micro-batches share them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.data.base import Batch, Source
from limbeck.engine.noise import key_of
from limbeck.errors import UserError

T = TypeVar("T")
AHEAD = 2
"""Steps that are loaded before they are asked for."""


class Stream:
    """Batches of a source for training, by step.

    Args:
        source: the rows. If it says ``slow = True``, :meth:`batches` loads ahead.
        batch_size: of the global batch, over all ranks and micro-batches; a smaller source shrinks it.
        seed: of the order.
        shuffle: without it every epoch has the source's own order.
        rank, world: this process and how many there are.
        accumulate: micro-batches that this rank's share of a global batch is cut into.
        views: how many views of a sample there are; the view of an epoch is its number, or its number modulo this.
        workers: processes that load ahead for a slow source; 0 means a thread of this process.
        drop_last: leave out what does not fill a batch at the end of an epoch (other samples each epoch).
        device: where the tensors shall be; by default where the source gives them.

    Raises:
        UserError: an empty source, or a batch that cannot be cut into ``world * accumulate`` parts.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        views: int | None = None,
        workers: int = 0,
        drop_last: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        self.source = source
        self.size = len(source)
        self.batch_size = min(batch_size, self.size)
        self.seed = seed
        self.shuffle = shuffle
        self.cut = Cut(rank, world, accumulate)
        self.views = views
        self.workers = workers
        self.device = device
        if self.size == 0 or batch_size < 1:
            raise UserError(f"cannot draw batches of {batch_size} from {self.size} samples: both must be at least 1")
        rest = self.size % self.batch_size
        self.steps_per_epoch = self.size // self.batch_size + (rest > 0 and not drop_last)
        self.cut.check(self.batch_size if drop_last or rest == 0 else rest)
        self._known: tuple[int, Tensor] | None = None

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of global step ``step``, in order."""
        return [place(b, self.device) for b in self._load(step)]

    def epoch(self, step: int) -> int:
        """The epoch that a step lies in."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> Tensor:
        """Rows of the whole global batch of a step, over all ranks: int64 [B]."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """``at(start), ..., at(stop - 1)``, loaded ahead for slow sources."""
        for loaded in ahead(self._load, range(start, stop), self.source, self.workers, self.device):
            yield [place(b, self.device) for b in loaded]

    def _load(self, step: int) -> list[Batch]:
        rows = self.rows(step)
        epoch = self.epoch(step)
        view = epoch if self.views is None else epoch % self.views
        return [self.source.batch(rows[low:high], view) for low, high in self.cut.bounds(len(rows))]

    def _order(self, epoch: int) -> Tensor:
        """The epoch's order, int64 [N], kept where the source's tensors are."""
        known = self._known  # read once: a loading thread may replace it
        if known is None or known[0] != epoch:
            order = permutation(self.size, self.seed, epoch) if self.shuffle else torch.arange(self.size)
            known = self._known = epoch, order.to(getattr(self.source, "device", "cpu"))
        return known[1]


class NoData:
    """Batches for methods that need no data: ids that never repeat, and nothing else.

    Step ``s`` has the ids ``s * B ... (s + 1) * B - 1`` over all ranks and micro-batches, so noise drawn per id is new
    in each step. There are no epochs: ``steps_per_epoch`` is 0.
    """

    steps_per_epoch = 0

    def __init__(
        self,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1; got {batch_size}")
        self.batch_size = batch_size
        self.cut = Cut(rank, world, accumulate)
        self.cut.check(batch_size)
        self.device = device

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of global step ``step``."""
        first = step * self.batch_size
        bounds = self.cut.bounds(self.batch_size)
        return [{"id": torch.arange(first + a, first + b, device=self.device), "view": 0} for a, b in bounds]

    def epoch(self, step: int) -> int:
        """Always 0."""
        return 0

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """``at(start), ..., at(stop - 1)``."""
        return map(self.at, range(start, stop))


class EvalStream:
    """All rows of a source once, in order, in view 0; the last batch may be short. ``len`` counts batches."""

    def __init__(
        self, source: Source, batch_size: int, device: torch.device | str | None = None, workers: int = 0
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1; got {batch_size}")
        self.source = source
        self.batch_size = batch_size
        self.device = device
        self.workers = workers

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for loaded in ahead(self._load, range(len(self)), self.source, self.workers, self.device):
            yield place(loaded, self.device)

    def _load(self, number: int) -> Batch:
        first = number * self.batch_size
        return self.source.batch(torch.arange(first, min(first + self.batch_size, len(self.source))), 0)


def sequential(
    source: Source, batch_size: int, device: torch.device | str | None = None, workers: int = 0
) -> EvalStream:
    """The batches of a source in order, for evaluation: ``for batch in sequential(data.test, 256)``."""
    return EvalStream(source, batch_size, device, workers)


class Cut:
    """How a global batch is cut: contiguously over ranks, each rank's part contiguously over micro-batches."""

    def __init__(self, rank: int, world: int, accumulate: int) -> None:
        if not 0 <= rank < world or accumulate < 1:
            says = f"rank {rank} of {world} and {accumulate} micro-batches"
            raise UserError(f"a batch cannot be cut for {says}: ranks count from 0, micro-batches are at least 1")
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def bounds(self, size: int) -> list[tuple[int, int]]:
        """Start and end, within a global batch of ``size``, of each micro-batch of this rank. Sizes differ by <= 1."""
        parts = self.world * self.accumulate
        first = self.rank * self.accumulate
        edges = [size * (first + i) // parts for i in range(self.accumulate + 1)]
        return list(pairwise(edges))

    def check(self, size: int) -> None:
        """Raises :class:`UserError` if some part would be empty."""
        if size < self.world * self.accumulate:
            parts = f"{self.world} ranks x {self.accumulate} micro-batches"
            says = "use a larger batch_size, fewer parts, or drop_last"
            raise UserError(f"a global batch of {size} samples cannot be cut over {parts}: {says}")


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: int64 [size], the same on every machine and rank."""
    generator = torch.Generator().manual_seed(key_of("order", seed, epoch) & (2**63 - 1))
    return torch.randperm(size, generator=generator)


def place(batch: Batch, device: torch.device | str | None) -> Batch:
    """The batch with its tensors on ``device`` (as it is where that is None)."""
    if device is None:
        return batch
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Loading ahead


def ahead(
    fetch: Callable[[int], T], steps: range, source: Any, workers: int = 0, device: torch.device | str | None = None
) -> Iterator[T]:
    """``fetch(step)`` for each step in order, prepared in the background where the source is slow.

    A source says so by ``slow = True``. ``threadsafe = False`` (user code that draws from global generators) keeps it
    off threads of this process: a thread's draws would mix with those of the training.
    """
    pin = device is not None and torch.device(device).type == "cuda"
    if not getattr(source, "slow", False) or (workers == 0 and not getattr(source, "threadsafe", True)):
        return map(fetch, steps)
    return _processes(fetch, steps, workers, pin) if workers else _thread(fetch, steps, pin)


def _thread(fetch: Callable[[int], T], steps: range, pin: bool) -> Iterator[T]:
    def load(step: int) -> T:
        return _pinned(fetch(step)) if pin else fetch(step)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limbeck-data")
    waiting: deque[Future[T]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processes(fetch: Callable[[int], T], steps: range, workers: int, pin: bool) -> Iterator[T]:
    loader = DataLoader(
        _Steps(fetch, steps),
        batch_size=None,
        num_workers=min(workers, max(len(steps), 1)),
        collate_fn=_as_is,
        pin_memory=pin,
        # Its own generator: a loader otherwise draws its workers' seed from the global one, and a resumed run differs.
        generator=torch.Generator().manual_seed(0),
    )
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded


class _Steps(Dataset[Any]):
    """The steps of a stream as a data set. A user's error comes back as a value: a worker would wrap its message."""

    def __init__(self, fetch: Callable[[int], Any], steps: range) -> None:
        self.fetch = fetch
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.fetch(self.steps[index])
        except UserError as error:
            return error


def _as_is(loaded: T) -> T:
    return loaded


def _pinned(loaded: Any) -> Any:
    if isinstance(loaded, Tensor):
        return loaded.pin_memory()
    if isinstance(loaded, dict):
        return {k: _pinned(v) for k, v in loaded.items()}
    return [_pinned(v) for v in loaded] if isinstance(loaded, list) else loaded
