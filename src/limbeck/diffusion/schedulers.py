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

FIRST_ORDER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 1,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"), False
    ),
}
"""What makes DDIM of the scheduler of DPM-Solver++ (arXiv 2211.01095, section 4)."""


@dataclass(frozen=True, eq=False)
class TablePath(NoisePath):
    """A variance-preserving path known at the times 0, 1, ...; the logarithm of the level is linear between them.

    Args:
        log_levels: logarithm of ``sigma / alpha`` at these times, rising, float64.
    """

    log_levels: Tensor

    @classmethod
    def of(cls, alphas_cumprod: Sequence[float] | Tensor) -> TablePath:
        """From ``alpha^2`` at every time, as schedulers keep it.

        Where it is 0, at the end of a path that ends in noise alone, the level is twice the one before.
        """
        kept = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        kept = torch.where(kept > 0, kept, kept[kept > 0].min() / 4)
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


def few_step_scheduler(config: Mapping[str, Any], rule: str, nfe: int, *, even: bool = False) -> Any:
    """The scheduler of diffusers that samples as a generator of few steps does with this rule, set to ``nfe`` steps.

    Args:
        config: of the pipeline's own scheduler, with its class under ``_class_name``.
        rule: ``renoise`` or ``ode``.
        nfe: steps; with some numbers of them it is another scheduler, or one with another end.
        even: whether the pipeline gives a scheduler of flows its times, see :class:`limbeck.diffusion.families.Family`.

    Raises:
        UserError: none does.
    """
    if str(config.get("_class_name")).startswith("FlowMatch"):
        made = _flow_scheduler(config, rule, nfe, even)
    else:
        made = _table_scheduler(config, rule, nfe)
    set_steps(made, nfe, even=even)
    return made


def set_steps(scheduler: Any, nfe: int, *, even: bool = False) -> None:
    """Set a scheduler to ``nfe`` steps as its pipeline does."""
    if even and type(scheduler).__name__.startswith("FlowMatch"):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / nfe, nfe).tolist())
    else:
        scheduler.set_timesteps(nfe)


def _flow_scheduler(config: Mapping[str, Any], rule: str, nfe: int, even: bool) -> Any:
    name = {"ode": "FlowMatchEulerDiscreteScheduler", "renoise": "FlowMatchLCMScheduler"}.get(rule)
    if name is None:
        raise _no_scheduler(rule)
    changed: dict[str, Any] = {"use_dynamic_shifting": False, "shift_terminal": None}
    if rule == "ode":
        changed["stochastic_sampling"] = False
    if not even and nfe > 1:  # by itself it would spend the last step at the very end
        shift = float(config.get("shift", 1.0))
        changed["shift_terminal"] = shift / (nfe + shift - 1)  # of the time 1 / nfe
    return _scheduler(name, config, **changed)


def _table_scheduler(config: Mapping[str, Any], rule: str, nfe: int) -> Any:
    if rule == "renoise":
        return _scheduler("LCMScheduler", config, thresholding=False, clip_sample=False)
    if rule != "ode":
        raise _no_scheduler(rule)
    same = {"timestep_spacing": "trailing", "thresholding": False}
    if config.get("num_train_timesteps", 1000) % nfe == 0:
        return _scheduler("DDIMScheduler", config, clip_sample=False, set_alpha_to_one=True, **same)
    # DDIM's goes by a rounded number of times and so does not arrive where it calls the network next.
    return _scheduler("DPMSolverMultistepScheduler", config, **FIRST_ORDER, **same)


def _no_scheduler(rule: str) -> UserError:
    return UserError(f"no scheduler of diffusers samples with rule: {rule}; take renoise or ode")


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
