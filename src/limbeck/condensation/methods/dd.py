"""Dataset distillation: images on which a few steps of descent make a network good at the real ones."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from limbeck.condensation.few_steps import known_network, learnt
from limbeck.condensation.networks import paper_convnet
from limbeck.condensation.rates import RateLearning
from limbeck.condensation.synthetic import image_set
from limbeck.condensation.unroll import Flat
from limbeck.engine.method import Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("method")
class DD(RateLearning):
    """Dataset distillation through an unrolled training (Wang, Zhu, Torralba and Efros 2018, arXiv 1811.10959).

    A network takes ``epochs`` passes of ``steps`` plain steps on the student's images, at a rate that learns too, and
    the loss is its cross-entropy on real images, differentiated through all the steps. With ``student.labels: soft``
    the labels learn as well (Sucholutsky and Schonlau 2019, arXiv 1910.02551). The papers take Adam with learning rate
    1e-3. The metric ``few_steps`` learns the images the same way.

    Args:
        inits: ``fixed`` always starts from the same weights, those of ``few_steps`` with ``start: fixed``; ``random``
            from new ones at every step, for any network of the kind.
        steps: shares that the images are dealt into, a step for each.
        epochs: passes over the images.
        networks: random networks that the loss is a mean over.
        checkpoint: hold the graph of one step at a time: less memory, half as much time again, the same gradient.
        net, batch_real, clamp: as for every method that matches.
    """

    form = "softplus"

    def __init__(
        self,
        *,
        inits: Literal["fixed", "random"] = "random",
        steps: int = 1,
        epochs: int = 3,
        networks: int = 1,
        checkpoint: bool = False,
        net: ModelBlock | None = None,
        batch_real: int = 256,
        clamp: bool = False,
    ) -> None:
        super().__init__(net=net, batch_real=batch_real, clamp=clamp)
        if min(steps, epochs, networks) < 1:
            raise UserError("dd: steps, epochs and networks must be 1 or more")
        self.inits = inits
        self.steps = steps
        self.epochs = epochs
        self.networks = 1 if inits == "fixed" else networks
        self.checkpoint = checkpoint

    def setup(self, parts: Parts) -> None:
        """Take the network that is unrolled.

        Raises:
            UserError: as :class:`RateLearning` says, or the images of a class cannot be dealt evenly into the steps.
        """
        super().setup(parts)
        student = image_set(parts.student)
        each = student.per_class * student.expansion
        if each % self.steps:
            raise UserError(f"dd: {each} images of each class cannot be dealt evenly into {self.steps} steps")
        self._block, self._offers = self.net or paper_convnet(self.real.images.shape), parts.offers
        self.flat = Flat(self.fresh("layers"))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: how well the networks know real images, after they have learnt the student's."""
        images, labels = self.student()
        self.flat.network.to(images.device)
        key = (clock.seed, clock.step)
        real, real_labels = self.real.to(images.device).draw(self.batch_real, (key, "real"))
        total = torch.zeros((), device=images.device)
        for number in range(self.networks):
            if self.inits == "fixed":
                network = known_network(self._block, self._offers, clock.seed, images.device)
            else:
                network = self.fresh((key, "network", number), images.device)
            end = learnt(
                self.flat,
                self.flat.weights(network),
                images,
                labels,
                self.rate(),
                steps=self.steps,
                epochs=self.epochs,
                regression=self.regression,
                checkpoint=self.checkpoint,
            )
            total = total + F.cross_entropy(self.flat(end, real), real_labels)
        return {"real": Term(total / self.networks, 1, unit="sets")}
