"""Students that end in their teacher's classifier."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.registry import ModelBlock, build, register


class ProjectedPool(nn.Module):
    """A projector to the teacher's channels, then the mean over cells (Chen et al. 2022, section 3.3).

    Args:
        inputs: channels of the student's last map.
        outputs: channels of the teacher's.
        reduction: the inner channels are the teacher's divided by it.
    """

    def __init__(self, inputs: int, outputs: int, reduction: int) -> None:
        super().__init__()
        inner = outputs // reduction
        layers = [_layer(inputs, inner, 1), _layer(inner, inner, 3), _layer(inner, outputs, 1)]
        self.projector = nn.Sequential(*layers)
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, 1, 1]."""
        return self.mean(self.projector(x))


@register("model", gives={"logits", "features"})
def reused_classifier(
    *,
    net: ModelBlock,
    channels: int,
    reduction: int = 2,
    classes: int,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """A network with a projector before its pooling and a last layer of the teacher's width, for ``simkd``.

    The projector (1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU) and the last layer belong to the
    network and are delivered with it.

    Args:
        net: a convolutional network of this library, with modules called ``pool`` and ``head``.
        channels: width of the teacher's last layer.
        reduction: the projector's inner channels are ``channels / reduction``.
        classes: number of classes.
        in_channels: of the images.
        image_size: of the images.

    Raises:
        UserError: the network has no ``pool`` or ``head``, or no channel is left inside.
    """
    offers = {"classes": classes, "in_channels": in_channels, "image_size": image_size}
    network: nn.Module = build("model", net, offers=offers)
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Linear) or not isinstance(getattr(network, "pool", None), nn.Module):
        raise UserError(f"reused_classifier needs a network with 'pool' and a linear 'head'; {net.name} has not")
    if not 1 <= reduction <= channels:
        raise UserError(f"reused_classifier: reduction must lie in 1..{channels}, not {reduction}")
    network.pool = ProjectedPool(head.in_features, channels, reduction)
    network.head = nn.Linear(channels, head.out_features, bias=head.bias is not None)
    return network


def _layer(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
