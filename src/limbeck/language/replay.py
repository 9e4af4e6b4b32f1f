"""Text that was written in earlier steps, kept with its log-probabilities to be learnt from again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock
from limbeck.language.rollouts import Rollout
from limbeck.losses import IGNORE

FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE, "logprobs": 0}
"""What stands beyond the end of a row."""


class Replay:
    """The last rows that were written, up to a number.

    Rows are staged during a step, and come in at its end: those of all micro-batches and processes, in order of their
    ids. So what is there, and what is drawn, does not depend on how a batch is cut.

    Args:
        capacity: rows; the oldest give way.
        width: tokens of the longest row.

    Raises:
        ValueError: either is below 1.
    """

    def __init__(self, capacity: int, width: int) -> None:
        if capacity < 1 or width < 1:
            raise ValueError(f"capacity and width must be at least 1, got {capacity} and {width}")
        self.capacity, self.width = capacity, width
        self._rows: dict[str, Tensor] = {}
        self._staged: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._rows["id"]) if self._rows else 0

    def stage(self, rollout: Rollout) -> None:
        """Have the rows of a micro-batch come in at the end of the step."""
        rows = {**{k: rollout.batch[k] for k in FILL if k != "logprobs"}, "logprobs": rollout.logprobs}
        wide = {k: self._wide(v, FILL[k]) for k, v in rows.items()}
        self._staged.append({**wide, "id": rollout.batch["id"]})

    def commit(self, device: torch.device) -> None:
        """Take in what was staged by all processes, which call this together."""
        staged, self._staged = self._staged, []
        kinds = {name: torch.float32 if name == "logprobs" else torch.int64 for name in (*FILL, "id")}
        empty = {
            k: torch.zeros((0, self.width) if k in FILL else (0,), dtype=d, device=device) for k, d in kinds.items()
        }
        own = {k: torch.cat([empty[k], *(rows[k].to(d) for rows in staged)]) for k, d in kinds.items()}
        together = Together(len(own["id"]), device)
        if not sum(together.sizes):
            return
        new = {k: together.all(v) for k, v in own.items()}
        order = new["id"].argsort(stable=True)
        old = self._rows or {k: v[:0] for k, v in new.items()}
        self._rows = {k: torch.cat([old[k], v[order]])[-self.capacity :] for k, v in new.items()}

    def draw(self, batch: Batch, clock: Clock) -> Rollout:
        """A row for each of the batch's, in their place: drawn by seed, step and id, with replacement.

        Raises:
            ValueError: there is none yet.
        """
        if not len(self):
            raise ValueError("the buffer has no row to draw")
        drawn = clock.uniform(batch["id"], (1,), "replay")[:, 0].double()
        which = (drawn * len(self)).long().clamp(max=len(self) - 1)
        rows = {k: v[which] for k, v in self._rows.items()}
        # No longer than the longest row that was drawn.
        kept = slice(0, max(int(rows["attention_mask"].sum(1).max()), 2))
        made = {k: rows[k][:, kept] for k in FILL if k != "logprobs"}
        return Rollout({**batch, **made}, rows["logprobs"][:, kept], "student")

    def state_dict(self) -> dict[str, Any]:
        """The rows, oldest first."""
        return dict(self._rows)

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Take back what :meth:`state_dict` gave."""
        self._rows = {k: v.to(device) for k, v in state.items()}
        self._staged = []

    def _wide(self, rows: Tensor, fill: float) -> Tensor:
        if rows.shape[1] > self.width:
            raise ValueError(f"rows of {rows.shape[1]} tokens do not fit into a buffer of {self.width}")
        filled = rows.new_full((len(rows), self.width), fill)
        filled[:, : rows.shape[1]] = rows
        return filled
