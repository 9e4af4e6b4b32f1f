"""Labels from a small projector in place of stored ones (HeLlO; Yu et al., ICCV 2025, arXiv 2408.08201).

Soft labels for every sight of an image outweigh the images many times. :class:`Projector` tells them again from the
image: a public encoder, which is found by its hash and takes no room of the set's own, with low-rank adapters and a
low-rank change of a head that began as one vector for each class. :class:`LightenedImages` are learnt by what it says.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.networks import embed, features_of, fresh_network
from limbeck.condensation.relabel import Lessons, Views
from limbeck.condensation.synthetic import RelabelledImages
from limbeck.data.base import DataSpec
from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.noise import key_of
from limbeck.errors import UserError
from limbeck.models.lora import Adapted, without_adapters
from limbeck.registry import Block


class Projector(nn.Module):
    """From images to logits: ``scale (P + B A) e / |e|``, e the features of an encoder with low-rank adapters.

    The rows of P [K, D] are one vector of length 1 for each class (in the paper a text's embedding). Only A [rank, D],
    B [K, rank] and the encoder's adapters learn, and only while somebody asks for it; batch normalisation always goes
    by what it remembers.

    Args:
        encoder: the block of a network with ``features``; its last layer ``head`` is dropped.
        shape: of one image.
        classes: K.
        rank: of all factors.
        scale: of the cosines.
        seed: of the factors' first values.

    Raises:
        UserError: the network has no features, or peft is not installed.
    """

    prototypes: Tensor

    def __init__(
        self, encoder: Block, shape: tuple[int, ...], classes: int, rank: int, scale: float, seed: int
    ) -> None:
        super().__init__()
        network = fresh_network(encoder, DataSpec(shape=shape, classes=classes).offers(), (seed, "encoder"))
        if hasattr(network, "head"):
            network.head = nn.Identity()
        dim = _width(network.eval(), shape)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key_of((seed, "projector")) % 2**63)
            self.encoder = Adapted(network, rank, rank)
            self.down = nn.Parameter(torch.randn(rank, dim) / dim**0.5)
        self.up = nn.Parameter(torch.zeros(classes, rank))
        self.register_buffer("prototypes", torch.zeros(classes, dim))
        self.scale = scale
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Projector:
        """Stay as it is: what is said of an image must not depend on who asks."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        features = features_of(self.encoder)(images).flatten(1)
        return self.scale * F.normalize(features, dim=1) @ (self.prototypes + self.up @ self.down).T

    def low_rank(self) -> list[nn.Parameter]:
        """What learns: the encoder's adapters, A and B."""
        return [*(p for n, p in self.encoder.named_parameters() if ".lora_" in n), self.down, self.up]

    @property
    def public(self) -> dict[str, Tensor]:
        """The encoder's state without its adapters, by the names that the network alone has."""
        return without_adapters(self.encoder)

    @torch.no_grad()
    def adopt_(self, network: nn.Module) -> None:
        """Take the weights of a network that is built as the encoder is.

        Raises:
            UserError: it is not.
        """
        own, theirs = self.public, network.state_dict()
        for name, value in own.items():
            if name not in theirs or theirs[name].shape != value.shape:
                raise UserError(f"lightened_images: the encoder that is given is not built as student.encoder: {name}")
            value.copy_(theirs[name])

    @torch.no_grad()
    def begin_(self, images: Tensor, labels: Tensor) -> None:
        """Make the mean feature of each class its vector, at length 1."""
        features = embed(self.encoder, images).flatten(1)
        means = torch.stack([features[labels == c].mean(0) for c in range(len(self.prototypes))])
        self.prototypes.copy_(F.normalize(means, dim=1))


@torch.no_grad()
def _width(network: nn.Module, shape: tuple[int, ...]) -> int:
    return features_of(network)(torch.zeros(1, *shape)).flatten(1).shape[1]


def divergence(taught: Tensor, said: Tensor, temperature: float) -> Tensor:
    """KL(softmax(taught / T) || softmax(said / T)) of each row of logits [B, K], [B]; not multiplied by T^2."""
    wanted, found = (F.log_softmax(z / temperature, 1) for z in (taught, said))
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(1)


class LightenedImages(RelabelledImages):
    """Images that are learnt by what a projector says of every sight, as it is seen.

    Args:
        images, labels, limits, seed: as for :class:`~limbeck.condensation.synthetic.SyntheticImages`.
        projector: says the labels.
        mixed: learn hard labels instead, mixed as the images are.
        count_encoder: count the encoder's bytes with the adapters, as of one that nobody else has.
        form: as for :class:`~limbeck.condensation.synthetic.RelabelledImages`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        limits: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        *,
        projector: Projector,
        mixed: bool = False,
        count_encoder: bool = False,
        views: Views,
        **form: Any,
    ) -> None:
        super().__init__(images, labels, limits, seed, views=views, stored=False, **form)
        self.projector, self.mixed, self.count_encoder = projector, mixed, count_encoder

    def lessons(self) -> Lessons:
        """The sights with the projector's logits, or mixed hard labels.

        Raises:
            UserError: the projector has not learnt anything.
        """
        if self.mixed:
            return super().lessons()
        if not bool(self.projector.prototypes.any()):
            raise UserError("these images have no projector yet: method hello makes one")

        @torch.no_grad()
        def target(epoch: int, sight: Any) -> Tensor:
            return self.projector(sight.images).float()

        images = self.decode()[0].detach()
        how: dict[str, Any] = {"temperature": self.temperature, "lr": self.lr, "smooth": self.smooth}
        return Lessons(images, self.views, self.epochs, target, **how)

    def training_recipe(self) -> dict[str, Any]:
        """As any set's, and which encoder it needs: ``bytes`` and ``sha256`` of its tensors."""
        encoder = {"bytes": self._encoder_bytes(), "sha256": tensor_hash(self.projector.public)}
        return {**super().training_recipe(), "encoder": encoder}

    def storage(self) -> dict[str, int]:
        """Bytes of ``images``, ``labels`` and ``adapters`` (low-rank factors and head), and of the ``encoder`` apart.

        With ``count_encoder`` it is part of the adapters.
        """
        found, encoder = super().storage(), self._encoder_bytes()
        if not self.count_encoder:
            found["adapters"] -= encoder
        return {**found, "encoder": 0 if self.count_encoder else encoder}

    def _encoder_bytes(self) -> int:
        return sum(v.numel() * v.element_size() for v in self.projector.public.values())
