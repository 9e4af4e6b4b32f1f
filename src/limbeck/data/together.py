"""Several named streams, drawn from side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from limbeck.data.base import Batch
from limbeck.data.stream import Stream
from limbeck.errors import UserError


class Streams:
    """Each micro-batch is ``{name: batch}``; the first stream counts the epochs, the others start over as they end."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        if not streams:
            raise UserError("name at least one stream")
        self.streams = dict(streams)
        self.steps_per_epoch = next(iter(self.streams.values())).steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of the steps from ``start`` to ``stop``; slow sources load ahead side by side."""
        for loaded in zip(*(s.batches(start, stop) for s in self.streams.values()), strict=True):
            yield [dict(zip(self.streams, micro, strict=True)) for micro in zip(*loaded, strict=True)]
