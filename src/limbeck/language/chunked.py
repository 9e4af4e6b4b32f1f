"""One pass of two vocabulary heads over tokens, a chunk at a time: values per token and the student's gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.language.gradients import FLOOR, Softmax, divergence_, softmax
from limbeck.losses import IGNORE

CPU_ROWS = 128
"""Tokens of a chunk on a CPU: enough for the matrix products to run at full speed; more only takes memory."""
CPU_BYTES = 1 << 28
DEVICE_SHARE = 64
"""On an accelerator the logits of a chunk, with what is computed from them, take this part of its memory."""
BLOCK_BYTES = 1 << 18
"""On a CPU what follows the matrix products works on rows of so many bytes, which stay in a core's own cache."""
SCRATCH = 4


@dataclass(frozen=True)
class Settings:
    """What is computed: the arguments of :func:`limbeck.language.fused.fused_divergence`, checked."""

    direction: Any
    temperature: float
    beta: float
    skew: float
    scale: bool
    width: int
    chunk: int | None
    softcaps: tuple[float | None, float | None]

    @property
    def factor(self) -> float:
        """What the divergence is multiplied by."""
        return self.temperature**2 if self.scale else 1.0


@dataclass(frozen=True)
class Inputs:
    """Both heads as plain tensors: hidden [N, H], weight [V, H], bias [V]; the teacher's may be missing."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    labels: Tensor | None

    @property
    def columns(self) -> int:
        """Entries of the student's vocabulary."""
        return len(self.weight)


@dataclass
class Gradients:
    """Gradients of the student's hidden states, weight and bias; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


@dataclass
class Sweep:
    """What one pass found: divergence and cross-entropy per token [N], and the gradients of their weighted sum."""

    divergence: Tensor
    cross_entropy: Tensor
    gradients: Gradients = field(default_factory=lambda: Gradients(None, None, None))


def chunk_rows(vocabulary: int, device: torch.device, itemsize: int = 4) -> int:
    """How many tokens are worked on at a time.

    On a CPU 128, fewer where their logits of both models take over 256 MiB. On an accelerator as many as fit, with
    what is computed from them, into a 64th of its memory. It depends on nothing that changes during a run.
    """
    if device.type != "cuda":
        return max(1, min(CPU_ROWS, CPU_BYTES // (2 * vocabulary * itemsize)))
    total = torch.cuda.get_device_properties(device).total_memory
    rows = total // DEVICE_SHARE // ((2 + SCRATCH) * vocabulary * itemsize)
    return max(64, rows // 64 * 64)


@torch.no_grad()
def sweep(
    inputs: Inputs,
    settings: Settings,
    coefficients: tuple[Tensor, Tensor] | None = None,
    needs: tuple[bool, bool, bool] = (False, False, False),
) -> Sweep:
    """Values per token and, given their coefficients, the gradients of ``sum a * divergence + b * cross_entropy``.

    Args:
        inputs: both heads.
        settings: what is computed.
        coefficients: a and b, each [N].
        needs: whether the gradient of the student's hidden states, weight and bias is wanted.
    """
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        return _Pass(inputs, settings, coefficients, needs).run()


class _Pass:
    """The buffers of one pass."""

    def __init__(
        self,
        inputs: Inputs,
        settings: Settings,
        coefficients: tuple[Tensor, Tensor] | None,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self.inputs, self.settings = inputs, settings
        self.dtype = torch.promote_types(inputs.hidden.dtype, torch.float32)
        self.device = inputs.hidden.device
        # Entries beyond the shared ones only matter to the cross-entropy.
        self.columns = inputs.columns if inputs.labels is not None else settings.width
        tokens = len(inputs.hidden)
        self.chunk = min(settings.chunk or chunk_rows(self.columns, self.device, self.dtype.itemsize), tokens)
        self.block = self._block()
        self.student = self._empty(self.chunk, self.columns)
        self.teacher = self._empty(self.chunk, settings.width) if inputs.teacher_hidden is not None else None
        self.scratch = [self._empty(self.block, self.columns) for _ in range(SCRATCH)]
        self.found = Sweep(self._zeros(tokens), self._zeros(tokens))
        self.coefficients = None
        if coefficients is not None:
            self.coefficients = [c.to(self.dtype).unsqueeze(1) for c in coefficients]
            self.found.gradients = self._gradients(needs)
        self.floored = [b is not None and bool(torch.isneginf(b).any()) for b in (inputs.bias, inputs.teacher_bias)]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _block(self) -> int:
        if self.device.type != "cpu":
            return self.chunk
        rows = BLOCK_BYTES * torch.get_num_threads() // (self.columns * self.dtype.itemsize)
        return max(1, min(rows, self.chunk))

    def _gradients(self, needs: tuple[bool, bool, bool]) -> Gradients:
        x = self.inputs
        return Gradients(
            torch.empty_like(x.hidden) if needs[0] else None,
            self._zeros(*x.weight.shape) if needs[1] else None,
            self._zeros(x.columns) if needs[2] else None,
        )

    def run(self) -> Sweep:
        """All chunks."""
        for here in _slices(len(self.inputs.hidden), self.chunk):
            self._project(here)
            size = here.stop - here.start
            for rows in _slices(size, self.block):
                self._block_(rows, slice(here.start + rows.start, here.start + rows.stop))
            if self.coefficients is not None:
                self._backward(here, self.student[:size])
        return self.found

    def _project(self, here: slice) -> None:
        x, size = self.inputs, here.stop - here.start
        _linear(x.hidden[here], x.weight[: self.columns], _head(x.bias, self.columns), self.student[:size])
        if self.teacher is not None and x.teacher_hidden is not None and x.teacher_weight is not None:
            width = self.settings.width
            hidden, weight = x.teacher_hidden[here], x.teacher_weight[:width]
            _linear(hidden, weight, _head(x.teacher_bias, width), self.teacher[:size])

    def _backward(self, here: slice, grad: Tensor) -> None:
        """From the gradient of a chunk's logits to those of what they were made from."""
        x, found = self.inputs, self.found.gradients
        if found.hidden is not None:
            torch.mm(grad.to(x.weight.dtype), x.weight[: self.columns], out=found.hidden[here])
        if found.weight is not None:
            total = found.weight[: self.columns]
            if self.device.type == "cpu" or x.hidden.dtype == self.dtype:
                total.addmm_(grad.t(), x.hidden[here].to(self.dtype))
            else:
                total.add_(grad.to(x.hidden.dtype).t() @ x.hidden[here])
        if found.bias is not None:
            found.bias[: self.columns].add_(grad.sum(0))

    # -- a few rows, in a core's own cache -----------------------------------------------------------------------------

    def _block_(self, rows: slice, tokens: slice) -> None:
        """Values of these tokens; their logits become the gradient with respect to them."""
        s = self.student[rows]
        mass, other, spare, hard = (x[: len(s)] for x in self.scratch)
        cap, slope = self.settings.softcaps[0], None
        if cap is not None:
            s.div_(cap).tanh_()
            slope = 1 - s * s
            s.mul_(cap)
        if self.floored[0]:
            s.clamp_(min=FLOOR)
        labels = self.inputs.labels
        shared = labels is not None and self.settings.temperature == 1 and self.settings.width == self.columns
        first = None
        if labels is not None:
            first = softmax(s, mass if shared else hard)
            self._cross_entropy(s, first, labels[tokens], tokens)
        if self.teacher is not None:
            self._divergence(s, self.teacher[rows], first if shared else None, (mass, other, spare), tokens)
        self._coefficients(s, first, tokens)
        if slope is not None:
            s.mul_(slope)

    def _cross_entropy(self, s: Tensor, first: Softmax, labels: Tensor, tokens: slice) -> None:
        picked = s.gather(1, labels.clamp(min=0).unsqueeze(1))
        value = (first.log_normaliser - picked).squeeze(1)
        self.found.cross_entropy[tokens] = value.masked_fill(labels == IGNORE, 0.0)

    def _divergence(
        self, s: Tensor, v: Tensor, first: Softmax | None, scratch: tuple[Tensor, Tensor, Tensor], tokens: slice
    ) -> None:
        settings = self.settings
        mass, other, spare = (x[:, : settings.width] for x in scratch)
        cap = settings.softcaps[1]
        if cap is not None:
            v.div_(cap).tanh_().mul_(cap)
        u = s[:, : settings.width]
        if settings.temperature != 1:
            u.div_(settings.temperature)
            v.div_(settings.temperature)
        if self.floored[0]:
            u.clamp_(min=FLOOR)
        if self.floored[1]:
            v.clamp_(min=FLOOR)
        student, teacher = first or softmax(u, mass), softmax(v, other)
        value = divergence_(u, v, student, teacher, spare, settings.direction, settings.beta, settings.skew)
        self.found.divergence[tokens] = value.squeeze(1) * settings.factor

    def _coefficients(self, s: Tensor, first: Softmax | None, tokens: slice) -> None:
        """The gradient of the divergence, in s, becomes that of the weighted sum of both."""
        if self.coefficients is None:
            return
        settings = self.settings
        kd, ce = (c[tokens] for c in self.coefficients)
        if self.teacher is not None:
            s[:, : settings.width].mul_(kd * (settings.factor / settings.temperature))
            s[:, settings.width :].zero_()
        if first is None or self.inputs.labels is None:
            return
        labels = self.inputs.labels[tokens].unsqueeze(1)
        ce = ce.masked_fill(labels == IGNORE, 0.0)
        if self.teacher is not None:
            s.addcmul_(first.mass, ce)
        else:
            torch.mul(first.mass, ce, out=s)
        s.scatter_add_(1, labels.clamp(min=0), -ce)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + size, length))


def _head(bias: Tensor | None, width: int) -> Tensor | None:
    return None if bias is None else bias[:width]


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``hidden @ weight.T + bias`` into ``out``, which may be wider in precision."""
    if hidden.dtype != out.dtype:
        out.copy_(hidden @ weight.t())
        if bias is not None:
            out.add_(bias)
    elif bias is None:
        torch.mm(hidden, weight.t(), out=out)
    else:
        torch.addmm(bias, hidden, weight.t(), out=out)
