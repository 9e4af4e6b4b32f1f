"""Quantised distillation and differentiable quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import label_loss, soft_kl
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.quantise import at_points, quantile_points, quantised

WRAPPERS = ("_forward_module", "module", "_orig_mod")


@register("method")
class QuantDistill(Method):
    """Model Compression via Distillation and Quantization (Polino et al. 2018, arXiv 1802.05668).

    ``L = (1 - alpha) CE + alpha T^2 KL(p_t^T || p_s^T)`` with the student's weights on ``2^bits`` levels of each
    bucket's range. With ``learn: weights`` (quantised distillation) the levels are uniform, and what the loss says of a
    quantised weight moves the weight in full precision. With ``learn: points`` (differentiable quantisation) the
    weights stay as they are and the levels of each layer move; start it from a trained student (a phase's ``from``).

    Biases and the parameters of norms stay floats. Between steps the student holds the quantised weights, so what is
    validated and delivered is what was trained; averages of weights (``ema``) are not on the levels.

    Args:
        bits: of each weight.
        bucket_size: how many weights share a scale; none: all of a layer.
        learn: ``weights``, or the ``points`` that they are put on.
        rounding: ``nearest`` level, or ``stochastic`` (up or down so that the mean is kept); of uniform levels.
        points: where the levels start: ``quantiles`` of a layer's scaled weights, or ``uniform``.
        full_precision: patterns of parameters that are left as they are, such as the first and the last layer.
        alpha: weight of the teacher; the labels have the rest.
        temperature: T, softens both distributions.
    """

    needs = {"teacher": {"logits"}}

    def __init__(
        self,
        *,
        bits: int = 4,
        bucket_size: int | None = 256,
        learn: Literal["weights", "points"] = "weights",
        rounding: Literal["nearest", "stochastic"] = "nearest",
        points: Literal["quantiles", "uniform"] = "quantiles",
        full_precision: list[str] | None = None,
        alpha: float = 0.7,
        temperature: float = 2.0,
    ) -> None:
        if bits < 1:
            raise ValueError(f"a level needs at least 1 bit, not {bits}")
        self.bits = bits
        self.bucket_size = bucket_size
        self.learn: Literal["weights", "points"] = learn
        self.rounding: Literal["nearest", "stochastic"] = rounding
        self.points: Literal["quantiles", "uniform"] = points
        self.full_precision = full_precision
        self.alpha = alpha
        self.temperature = temperature
        self.floats: dict[str, Tensor] = {}

    def setup(self, parts: Parts) -> None:
        """The levels as a learner, where they learn."""
        super().setup(parts)
        if self.learn == "points":
            weights = list(self._weights().values())
            self.learners["points"] = Levels([self._first_points(w.detach()) for w in weights], self.bucket_size)
            parts.student.requires_grad_(False)

    def _first_points(self, weight: Tensor) -> Tensor:
        if self.points == "uniform":
            return torch.linspace(0, 1, 2**self.bits)
        return quantile_points(weight, 2**self.bits, self.bucket_size)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the weights in full precision or of the levels."""
        self._put(self.floats)
        yield Update("student" if self.learn == "weights" else "points", self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "kd"}`` of the quantised student."""
        logits = forward(With(self.student, self.on_levels(clock)), batch).logits
        soft = soft_kl(logits, self.teacher(batch).logits, temperature=self.temperature)
        return {
            "ce": label_loss(logits, batch, weight=1 - self.alpha),
            "kd": Term.of(soft, weight=self.alpha),
        }

    def on_levels(self, clock: Clock) -> dict[str, Tensor]:
        """The quantised weights by parameter name; their gradient goes to the weights, or to the levels."""
        weights = self._weights()
        if self.learn == "points":
            return dict(zip(weights, self.learners["points"](list(weights.values())), strict=True))
        # The rounding has no gradient of its own: the weight takes that of its level.
        return {n: w + (self._rounded(n, w.detach(), clock) - w).detach() for n, w in weights.items()}

    def _rounded(self, name: str, weight: Tensor, clock: Clock) -> Tensor:
        noise = None
        if self.rounding == "stochastic":
            one = torch.zeros(1, dtype=torch.int64, device=weight.device)
            noise = clock.uniform(one, tuple(weight.shape), _plain(name))[0]
        return quantised(weight, self.bits, self.bucket_size, noise)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Keep the floats and leave the student quantised."""
        self.floats = {_plain(n): w.detach().clone() for n, w in self._weights().items()}
        self._put({_plain(n): w for n, w in self.on_levels(clock).items()})

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        if values:
            for name, weight in self._weights().items():
                weight.copy_(values[_plain(name)])

    def _weights(self) -> dict[str, Tensor]:
        """The parameters that are quantised, by name."""
        left = self.full_precision or []
        named = [(n, p) for n, p in self.student.named_parameters() if p.dim() > 1]
        return {n: p for n, p in named if not any(fnmatch(_plain(n), pattern) for pattern in left)}

    def state_dict(self) -> dict[str, Any]:
        """The weights in full precision, which the student does not hold between steps."""
        return {"floats": dict(self.floats)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the weights."""
        device = next(self.student.parameters()).device
        self.floats = {n: w.to(device) for n, w in state["floats"].items()}


class Levels(nn.Module):
    """Levels in [0, 1] for each of several tensors, and the tensors on them."""

    def __init__(self, points: list[Tensor], bucket_size: int | None) -> None:
        super().__init__()
        self.points = nn.ParameterList([nn.Parameter(p.clone()) for p in points])
        self.bucket_size = bucket_size

    def forward(self, weights: list[Tensor]) -> list[Tensor]:
        """Each tensor at its nearest levels."""
        return [at_points(w, p, self.bucket_size) for w, p in zip(weights, self.points, strict=True)]


class With(nn.Module):
    """A network that runs with other tensors in place of some of its parameters."""

    def __init__(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.main_input_name = getattr(module, "main_input_name", None)
        self._run = lambda *args, **kwargs: torch.func.functional_call(module, tensors, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self._run(*args, **kwargs)


def _plain(name: str) -> str:
    """The name that a parameter has in the student as it was built."""
    return ".".join(piece for piece in name.split(".") if piece not in WRAPPERS)
