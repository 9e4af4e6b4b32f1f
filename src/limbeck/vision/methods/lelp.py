"""Learning embedding linear projections: few classes split by the teacher's embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.engine.features import Taps
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.losses import label_loss, wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import example
from limbeck.vision.losses.soft import subclass_kl
from limbeck.vision.models.subclassed import Subclassed

ROWS = 256


@register("method")
class LELP(Method):
    """Linear Projections of Teacher Embeddings for Few-Class Distillation (Loo et al. 2024, arXiv 2409.20449).

    ``L = (1 - alpha) CE(y, sum_j P_s(., j)) + alpha T^2 KL(P_t^T || P_s^T)`` over K classes of S subclasses each, with
    ``P_t(c, j) = p_t(c) softmax_j(s_c / tau)``. The scores ``s_c = (a, -a)`` are the embedding's standardised
    projections ``a`` on the S / 2 main directions of class c, in the null space of the teacher's classifier: what the
    logits do not say. The directions are fitted once, to the labelled training samples. The student is the model
    ``subclassed``, which sums over its subclasses by itself.

    Args:
        alpha: weight of the teacher; the labels have the rest.
        temperature: T, softens both distributions.
        subclass_temperature: tau, softens the split; towards 0 each sample has a single subclass.
    """

    needs = {"teacher": {"logits"}}
    live = True

    def __init__(self, *, alpha: float = 0.9, temperature: float = 4.0, subclass_temperature: float = 1.0) -> None:
        self.alpha = alpha
        self.temperature = temperature
        self.subclass_temperature = subclass_temperature

    def setup(self, parts: Parts) -> None:
        """Tap both networks and fit the split.

        Raises:
            UserError: a student without an even number of subclasses, or a class without two labelled samples.
        """
        super().setup(parts)
        student = parts.student
        if not isinstance(student, Subclassed) or student.subclasses % 2:
            says = "lelp needs a student with an even number of subclasses"
            raise UserError(f"{says}: {{name: subclassed, subclasses: 4, net: {{...}}}}")
        self._split = student.split
        path, head = places.head(self.teacher.module, example(parts))
        self._outputs = Taps(student, ["net"])
        self._embedding = Taps(self.teacher.module, [path], of="input", detach=True)
        found, labels = self._embeddings(next(iter(parts.streams.values())), path)
        self.frozen["splits"] = fit(found, labels, head.weight, student.classes, student.subclasses // 2)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "kd"}``."""
        logits, teacher = forward(self.student, batch).logits, self.teacher.compute(batch).logits
        (outputs,), (embedding,) = self._outputs.pop().values(), self._embedding.pop().values()
        scores = self.frozen["splits"](embedding) / self.subclass_temperature
        values = subclass_kl(self._split(outputs), teacher, scores, self.temperature)
        return {
            "ce": label_loss(logits, batch, weight=1 - self.alpha),
            "kd": Term.of(values, weight=self.alpha),
        }

    def state_dict(self) -> dict[str, Any]:
        """The split: a resumed run must not turn its directions around."""
        return {"splits": dict(self.frozen["splits"].state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the split."""
        self.frozen["splits"].load_state_dict(state["splits"])

    def _embeddings(self, source: Source, path: str) -> tuple[Tensor, Tensor]:
        """What the teacher's classifier reads for every sample [N, E], and the labels [N]."""
        module = self.teacher.module
        device = next(p.device for p in module.parameters())
        found, labels = [], []
        for rows in torch.arange(len(source)).split(ROWS):
            batch = source.batch(rows)
            labels.append(batch["label"].to(device))
            self.teacher.compute({**batch, "input": batch["input"].to(device)})
            found.append(self._embedding.pop()[path])
        return torch.cat(found), torch.cat(labels)


class Splits(nn.Module):
    """Scores of the subclasses of every class, [B, E] -> [B, K, 2 D]: projections and their negatives.

    Args:
        directions: [K, D, E], divided by the deviation along them.
        means: [K, E].
    """

    directions: Tensor
    offsets: Tensor

    def __init__(self, directions: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("offsets", torch.einsum("kde,ke->kd", directions, means))

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, E] -> [B, K, 2 D]."""
        a = torch.einsum("be,kde->bkd", wide(embedding), self.directions) - self.offsets
        return torch.cat([a, -a], dim=-1)


def fit(embeddings: Tensor, labels: Tensor, weight: Tensor, classes: int, count: int) -> Splits:
    """Main directions of each class in the null space of a classifier's weight.

    Args:
        embeddings: [N, E].
        labels: [N]; -100 leaves a sample out.
        weight: [K, E], of the teacher's last layer.
        classes: K.
        count: D, directions of each class. Where a class varies in fewer, the others score 0.

    Raises:
        UserError: a class has fewer than two labelled samples, or the null space fewer than D dimensions.
    """
    e, w = embeddings.double(), weight.detach().double()
    if e.shape[1] - len(w) < count:
        raise UserError(f"{count} directions do not fit beside {len(w)} classes in an embedding of {e.shape[1]}")
    e = e - e @ torch.linalg.pinv(w) @ w
    found, means = [], []
    for c in range(classes):
        own = e[labels == c]
        if len(own) < 2:
            raise UserError(f"class {c} has {len(own)} labelled samples: at least 2 are needed to split it")
        means.append(own.mean(0))
        found.append(_directions(own - means[-1], count))
    return Splits(torch.stack(found).float(), torch.stack(means).float())


def _directions(centred: Tensor, count: int) -> Tensor:
    """The leading directions of centred rows, each divided by the deviation along it, [n, E] -> [D, E]."""
    _, values, directions = torch.linalg.svd(centred, full_matrices=True)
    std = torch.zeros(directions.shape[0], dtype=values.dtype, device=values.device)
    std[: len(values)] = values / (len(centred) - 1) ** 0.5
    flat = std <= 1e-8 * std.max()
    scale = torch.where(flat, torch.zeros_like(std), 1 / torch.where(flat, torch.ones_like(std), std))
    return directions[:count] * scale[:count, None]
