"""Schedulers of diffusers: the noise path one stands for, and the one that samples as a few-step generator does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.paths import Coefficients, FlowMatching, NoisePath, Prediction
from limbeck.errors import UserError, needs_extra

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v_rotated", "sample": "denoised"}
"""By what schedulers of variance-preserving paths call them."""


@dataclass(frozen=True, eq=False)
class TablePath(NoisePath):
    """A variance-preserving path known at the times 0, 1, ...; the logarithm of the level is linear between them.

    Args:
        log_levels: logarithm of ``sigma / alpha`` at these times, rising, float64.
    """

    log_levels: Tensor

    @classmethod
    def of(cls, alphas_cumprod: Sequence[float] | Tensor) -> TablePath:
        """From ``alpha^2`` at every time, as schedulers keep it."""
        kept = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        return cls(((1 - kept) / kept).log() / 2)

    def at(self, t: Tensor) -> Coefficients:  # noqa: D102
        table = self.log_levels.to(t.device)
        below = t.floor().clamp(0, len(table) - 2).long()
        low, high = table[below], table[below + 1]
        level = torch.exp(low + (t.double() - below) * (high - low))
        alpha = torch.rsqrt(1 + level**2)
        level_dot = level * (high - low)
        return Coefficients(
            *(v.to(t) for v in (alpha, level * alpha, -(alpha**3) * level * level_dot, alpha**3 * level_dot))
        )

    def time(self, level: Tensor) -> Tensor:  # noqa: D102
        table = self.log_levels.to(level.device)
        log = level.double().log()
        below = (torch.searchsorted(table, log) - 1).clamp(0, len(table) - 2)
        low, high = table[below], table[below + 1]
        return (below + (log - low) / (high - low)).clamp(0, len(table) - 1).to(level)


def path_of(scheduler: Mapping[str, Any]) -> tuple[NoisePath, Prediction]:
    """The noise path of a scheduler's config, and what its network predicts.

    Raises:
        UserError: a scheduler of another kind.
    """
    name = str(scheduler.get("_class_name"))
    if name.startswith("FlowMatch"):
        return FlowMatching(), "v"
    kind = PREDICTIONS.get(str(scheduler.get("prediction_type", "epsilon")))
    if kind is None:
        raise UserError(
            f"the scheduler {name} predicts '{scheduler['prediction_type']}': known are {list(PREDICTIONS)}"
        )
    made = _scheduler("DDIMScheduler", scheduler)
    return TablePath.of(made.alphas_cumprod), kind


def few_step_scheduler(config: Mapping[str, Any], rule: str) -> Any:
    """The scheduler of diffusers that samples as a generator of few steps does with this rule.

    Raises:
        UserError: none does.
    """
    flow = str(config.get("_class_name")).startswith("FlowMatch")
    if rule == "ode" and flow:
        return _scheduler("FlowMatchEulerDiscreteScheduler", config, use_dynamic_shifting=False)
    if rule == "renoise" and flow:
        return _scheduler("FlowMatchLCMScheduler", config, use_dynamic_shifting=False)
    if rule == "ode":
        same = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
        return _scheduler("DDIMScheduler", config, **same)
    if rule == "renoise":
        return _scheduler("LCMScheduler", config, thresholding=False, clip_sample=False)
    raise UserError(f"no scheduler of diffusers samples with rule: {rule}; take renoise or ode")


def _scheduler(name: str, config: Mapping[str, Any], **changed: Any) -> Any:
    kept = {k: v for k, v in config.items() if not k.startswith("_")}
    return getattr(library(), name).from_config({**kept, **changed})


def library() -> Any:
    """The package diffusers.

    Raises:
        UserError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise needs_extra("diffusers", "diffusers") from error
    return diffusers
