"""Simple semi-supervised label distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import soft_kl
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.pool import predictions, top_per_class


@register("method")
class SSLD(Method):
    """Beyond Self-Supervision: a Simple yet Effective Network Distillation (Cui et al. 2021, arXiv 2103.05959).

    ``L = 1/2 [KL(p_t || p_s) + KL(p_s || p_t)]`` over the training set and pools of further images, and no label
    anywhere. The data are one stream, or several that are taken together; of all but the first the teacher may keep
    the ``per_class`` images that it is surest of in each class, asked before the training starts. The others count
    nothing. The paper's last step, on the training set alone with a small learning rate, is a phase of a recipe.

    Args:
        temperature: of both distributions (1 in the paper); multiplies the loss by its square.
        direction: of the divergence. The paper's ``jeffreys`` is called JS there.
        per_class: images kept of each class of each further stream; by default all.
    """

    needs = {"teacher": {"logits"}}
    streams = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        direction: Literal["jeffreys", "forward", "reverse", "js"] = "jeffreys",
        per_class: int | None = None,
    ) -> None:
        self.temperature = temperature
        self.direction: Literal["jeffreys", "forward", "reverse", "js"] = direction
        self.per_class = per_class
        self.kept: dict[str, Tensor] = {}

    def setup(self, parts: Parts) -> None:
        """Choose from the pools: ids by stream."""
        super().setup(parts)
        for name, source in list(parts.streams.items())[1:] if self.per_class is not None else []:
            ids, probabilities = predictions(self.teacher, source)
            self.kept[name] = ids[top_per_class(probabilities, self.per_class or 0)]

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"kd"}``, over what is kept of every stream."""
        whole, kept = together(batch), self.of_use(batch)
        student, teacher = forward(self.student, whole).logits, self.teacher(whole).logits
        values = soft_kl(student, teacher, temperature=self.temperature, direction=self.direction)
        return {"kd": Term.of(values, kept, unit="kept")}

    def of_use(self, batch: Batch) -> Tensor:
        """Which samples count, bool [B]."""
        streams = {"": batch} if "id" in batch else batch
        return torch.cat([self._keeps(name, stream["id"]) for name, stream in streams.items()])

    def _keeps(self, stream: str, ids: Tensor) -> Tensor:
        if stream not in self.kept:
            return torch.ones_like(ids, dtype=torch.bool)
        self.kept[stream] = self.kept[stream].to(ids.device)  # moved once
        return torch.isin(ids, self.kept[stream])

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Samples that count."""
        return {"kept": self.of_use(batch).sum()}

    def state_dict(self) -> dict[str, Any]:
        """The choice: a resumed run must not choose anew."""
        return {"kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the choice."""
        self.kept = dict(state["kept"])


def together(batch: Batch) -> Batch:
    """The samples of all streams as one batch, so that batch statistics are of them all."""
    if "id" in batch:
        return batch
    streams: list[Mapping[str, Any]] = list(batch.values())
    shared = [k for k, v in streams[0].items() if isinstance(v, Tensor) and all(k in s for s in streams)]
    return {k: torch.cat([s[k] for s in streams]) for k in shared}
