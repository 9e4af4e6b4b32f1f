"""Contrastive model inversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.losses import cross_entropy, wide
from limbeck.registry import register
from limbeck.vision.inversion.generator import start_afresh
from limbeck.vision.inversion.rounds import Least, Rounds, descend
from limbeck.vision.inversion.views import resized
from limbeck.vision.losses.inversion import instance_contrast


@register("method")
class CMI(Rounds):
    """Contrastive Model Inversion for Data-Free Knowledge Distillation (Fang et al. 2021, arXiv 2105.08584).

    Every ``every`` steps a generator starts afresh and, with its noise, descends ``bn_weight BN + onehot_weight
    CE(z_t, y) - adv_weight KL(p_t || p_s) + contrast_weight InfoNCE`` for random classes y. The divergence counts
    where student and teacher agree. The contrast asks that a part of an image be told from all other images, those of
    the bank included, by the means of the teacher's channels through a head that learns with it: so new images must
    differ from old ones. The batch of the least loss joins the bank that the student learns from.

    The head is the learner ``head``: it takes one of its optimizer's steps in each inner step.

    Args:
        bn_weight: of the statistics of the teacher's layers.
        onehot_weight: of the classes.
        adv_weight: of the student's divergence.
        contrast_weight: of the contrast; 0 leaves it out.
        contrast_temperature: of the similarities.
        negatives: rows of the bank that are drawn in an inner step.
        head_dim: length of the head's vectors.
        smallest: least share of an image's area in its local view.
        lr: of the generator and its noise, with Adam.
        latent: length of the generator's noise.
        width: channels of the generator before its last convolution.
    """

    def __init__(
        self,
        *,
        bn_weight: float = 1.0,
        onehot_weight: float = 0.5,
        adv_weight: float = 0.5,
        contrast_weight: float = 0.8,
        contrast_temperature: float = 0.1,
        negatives: int = 4096,
        head_dim: int = 256,
        smallest: float = 0.25,
        lr: float = 1e-3,
        latent: int = 256,
        width: int = 64,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if negatives < 1:
            raise UserError(f"cmi: negatives must be 1 or more, not {negatives}")
        self.bn_weight = bn_weight
        self.onehot_weight = onehot_weight
        self.adv_weight = adv_weight
        self.contrast_weight = contrast_weight
        self.contrast_temperature = contrast_temperature
        self.negatives = negatives
        self.head_dim = head_dim
        self.smallest = smallest
        self.lr = lr
        self.latent = latent
        self.width = width

    def setup(self, parts: Parts) -> None:
        """The head, and a generator that every round starts afresh."""
        super().setup(parts)
        with Statistics(self.teacher.module) as statistics:
            self.tell(self.example["input"])
            size = statistics.embedding().shape[1]
        self._maker = self.new_generator(self.latent, self.width, "pixels")
        self._head = self.learners["head"] = Head(size, self.head_dim)

    def round(self, clock: Clock, device: torch.device, number: int) -> Iterable[Update]:
        """Train the generator; the head takes a step with each of its steps."""
        ids = torch.arange(self.synthesis_batch, device=device)
        labels, least = self.draw_labels(ids, clock, f"labels {number}"), Least()
        z = clock.normal(ids, (self.latent,), f"z {number}").requires_grad_()
        start_afresh(self._maker.to(device), clock, f"generator {number}")
        groups: list[dict[str, Any]] = [{"params": list(self._maker.parameters())}, {"params": [z]}]
        optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(0.5, 0.999))
        for i in range(self.iterations):
            loss, rows = self.inversion_loss(self._maker(z), labels, clock, f"{number} {i}")
            old = self.old_rows(clock, device, f"{number} {i}")
            if self.contrast_weight:
                with frozen(self._head):
                    loss = loss + self.contrast_weight * self.contrast(self._head, rows, old)
            least.take(loss, **rows)
            descend(optimizer, loss)
            if self.contrast_weight:
                rows = {name: values.detach() for name, values in rows.items()}
                value = self.contrast(self.learners["head"], rows, old)
                yield Update("head", {"contrast": Term.of(value[None], weight=self.contrast_weight)})
        self.bank.add(**least.rows)

    def inversion_loss(
        self, images: Tensor, labels: Tensor, clock: Clock, name: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss without the contrast, a scalar; by name the images and the embeddings of both views, [B, ...]."""
        ids = torch.arange(len(images), device=images.device)
        whole = self.augmented(images, ids, clock, f"whole {name}")
        part = resized(images, clock.uniform(ids, (5,), f"part {name}"), smallest=self.smallest, flip=self.flip)
        with Statistics(self.teacher.module) as statistics:
            logits = self.ask(whole)
            loss = self.bn_weight * statistics.distances().sum()
            loss = loss + self.onehot_weight * cross_entropy(logits, labels).mean()
            if self.adv_weight:
                loss = loss - self.adv_weight * self.adversary(whole, logits)
            rows = {"images": images, "whole": statistics.embedding()}
            if self.contrast_weight:
                self.ask(part)
            return loss, {**rows, "part": statistics.embedding()}

    def old_rows(self, clock: Clock, device: torch.device, name: str) -> dict[str, Tensor]:
        """Embeddings of some images of the bank, each at most once, [n, D] by name."""
        draws = clock.uniform(torch.arange(len(self.bank), device=device), (1,), f"negatives {name}")[:, 0]
        return self.bank.at(draws.argsort()[: self.negatives], "part", "whole")

    def contrast(self, head: nn.Module, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Tensor:
        """Each part among all images, the mean of the new ones plus that of the old ones, a scalar."""
        parts, wholes = (torch.cat([new[n], old[n]]) if old else new[n] for n in ("part", "whole"))
        vectors = head(torch.cat([parts, wholes])).chunk(2)
        values = instance_contrast(vectors[0], vectors[1].detach(), temperature=self.contrast_temperature)
        count = len(new["part"])
        return values[:count].mean() + (values[count:].mean() if old else 0.0)


class Head(nn.Sequential):
    """The teacher's means of channels to vectors of length 1, through a hidden layer as wide as the input.

    Args:
        inputs: length of the input.
        outputs: of the vectors.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] -> [N, outputs]."""
        return F.normalize(wide(super().forward(x)), dim=1)
