"""Random teachers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import log_softmax, wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import example
from limbeck.vision.losses.soft import soft_cross_entropy


@register("method")
class RandomTeachers(Method):
    """Random Teachers are Good Teachers (Sarnthein et al. 2023, arXiv 2302.12091).

    ``L = - sum_k softmax(z_t / T)_k log softmax(z_s / T)_k``: the student's features, through a trained head, follow a
    network of the same layers with random weights that never learns. No label, no augmentation, no centring. Judge the
    features by ``probes``: the student's last layer does not learn.

    The teacher draws its weights by the layers' own ``reset_parameters``. With ``locality`` below 1 the student starts
    between itself and the teacher, ``((1 - c) w_t + c w) / sqrt((1 - c)^2 + c^2)``, which keeps the variance.
    Parameters that are equal in both (the scales of norms) stay.

    Args:
        locality: c; 1 is an independent student, 0 the teacher itself.
        hidden: width of the head's two hidden layers.
        bottleneck: width of the head's normalised embedding.
        outputs: of the head.
        temperature: T, of both sides.
    """

    fixed = ("locality",)

    def __init__(
        self,
        *,
        locality: float = 1.0,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 65536,
        temperature: float = 1.0,
    ) -> None:
        if not 0 <= locality <= 1:
            raise ValueError(f"locality lies between 0 and 1, not at {locality}")
        self.locality = locality
        self.hidden = hidden
        self.bottleneck = bottleneck
        self.outputs = outputs
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """The head, the random teacher, and the student's place between them."""
        super().setup(parts)
        self._path, last = places.head(parts.student, example(parts))
        sizes = (last.in_features, self.hidden, self.bottleneck, self.outputs)
        self.learners["head"] = Head(*sizes)
        self.frozen = {"student": redrawn(parts.student), "head": Head(*sizes)}
        for role, module in self.learners.items():
            approach(module, self.frozen[role], self.locality)
        last.requires_grad_(False)
        self._own = Taps(parts.student, [self._path], of="input")
        self._other = Taps(self.frozen["student"], [self._path], of="input", detach=True)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and its head."""
        yield Update(("student", "head"), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"kd"}``."""
        forward(self.student, batch)
        student = self.learners["head"](self._own.pop()[self._path])
        values = soft_cross_entropy(student / self.temperature, self.targets(batch))
        return {"kd": Term.of(values)}

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """The random teacher's probabilities, [B, outputs]."""
        forward(self.frozen["student"], batch)
        return log_softmax(self.frozen["head"](self._other.pop()[self._path]), self.temperature).exp()

    def state_dict(self) -> dict[str, Any]:
        """The teacher."""
        return {role: dict(module.state_dict()) for role, module in self.frozen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the teacher."""
        for role, module in self.frozen.items():
            module.load_state_dict(state[role])


class Head(nn.Module):
    """DINO's head (Caron et al. 2021): three linear layers, a normalised embedding, a linear layer of unit rows.

    Biases start at zero: what comes out must depend on what goes in.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.Linear(bottleneck, outputs, bias=False)
        for layer in (m for m in self.body if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> cosines [B, outputs]."""
        return F.linear(F.normalize(wide(self.body(x)), dim=-1), F.normalize(self.last.weight, dim=-1))


def redrawn(module: nn.Module) -> nn.Module:
    """A copy with weights drawn anew by its layers."""
    other = copy.deepcopy(module)
    for child in other.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return other


@torch.no_grad()
def approach(student: nn.Module, teacher: nn.Module, locality: float) -> None:
    """Move a student to its start between itself (1) and its teacher (0)."""
    scale = ((1 - locality) ** 2 + locality**2) ** -0.5
    for own, other in zip(student.parameters(), teacher.parameters(), strict=True):
        if not torch.equal(own, other):
            own.copy_(scale * ((1 - locality) * other + locality * own))
