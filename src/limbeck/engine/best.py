"""Keeping the best student by a validation metric, and knowing when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.checkpoint import whole
from limbeck.errors import UserError


class Best:
    """The best weights so far.

    Args:
        metric: a key of the validation scores.
        mode: whether larger or smaller is better.
        patience: validations without improvement after which to stop; None never stops.
    """

    def __init__(self, metric: str, mode: Literal["max", "min"], patience: int | None = None) -> None:
        self.metric, self.mode, self.patience = metric, mode, patience
        self.value: float | None = None
        self.step = -1
        self.stale = 0
        self.weights: dict[str, Tensor] | None = None

    def take(self, scores: Mapping[str, float], module: nn.Module, step: int) -> bool:
        """Look at the scores of ``module``; keep its weights if they are the best. True when it is time to stop.

        Raises:
            UserError: the metric is not among the scores.
        """
        if self.metric not in scores:
            raise UserError(f"no validation metric is called '{self.metric}': there is {', '.join(scores)}")
        value = scores[self.metric]
        if self.value is None or (value > self.value if self.mode == "max" else value < self.value):
            self.value, self.step, self.stale = value, step, 0
            self.weights = {k: whole(v).detach().cpu().clone() for k, v in module.state_dict().items()}
        else:
            self.stale += 1
        return self.patience is not None and self.stale >= self.patience

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"value": self.value, "step": self.step, "stale": self.stale, "weights": self.weights}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.value, self.step, self.stale = saved["value"], saved["step"], saved["stale"]
        self.weights = saved["weights"]
