"""The networks of factor transfer. They learn beside a student and are never part of it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

SLOPE = 0.1


class Translator(nn.Sequential):
    """Three 3x3 convolutions with leaky ReLU from a map to its factor, the second of which changes the channels.

    Args:
        inputs: channels of the map.
        factors: channels of the factor.
    """

    def __init__(self, inputs: int, factors: int) -> None:
        widths = [(inputs, inputs), (inputs, factors), (factors, factors)]
        super().__init__(*[part for a, b in widths for part in (nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(SLOPE))])
        _start(self)


class Paraphraser(nn.Module):
    """A convolutional autoencoder of a teacher's map; what lies in the middle is the factor.

    Args:
        inputs: channels of the map.
        factors: channels of the factor.
    """

    def __init__(self, inputs: int, factors: int) -> None:
        super().__init__()
        self.encoder = Translator(inputs, factors)
        widths = [(factors, factors), (factors, inputs), (inputs, inputs)]
        layers = [(nn.ConvTranspose2d(a, b, 3, padding=1), nn.LeakyReLU(SLOPE)) for a, b in widths]
        self.decoder = nn.Sequential(*[part for layer in layers for part in layer])
        _start(self.decoder)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs, H, W] -> the factor [B, factors, H, W], and the map as it comes out again."""
        found = self.encoder(feature)
        return found, self.decoder(found)


def _start(layers: nn.Sequential) -> None:
    """Weights that keep the size of what passes: torch's own shrink it, and six layers without norm learn the mean."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # A transposed convolution's weight has inputs and outputs the other way round.
            mode: Literal["fan_in", "fan_out"] = "fan_in" if isinstance(layer, nn.Conv2d) else "fan_out"
            nn.init.kaiming_normal_(layer.weight, SLOPE, mode=mode)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
