"""A classifier whose classes have subclasses inside."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.losses import wide
from limbeck.registry import ModelBlock, build, register


class Subclassed(nn.Module):
    """A network of ``classes * subclasses`` outputs that answers with its classes.

    A class's logit is the log of the sum over its subclasses' exponentials, so that its probability is the sum of
    theirs. ``net`` gives the outputs themselves, class by class.

    Args:
        net: the network.
        classes: K.
        subclasses: S, of each class.
    """

    def __init__(self, net: nn.Module, classes: int, subclasses: int) -> None:
        super().__init__()
        self.net = net
        self.classes = classes
        self.subclasses = subclasses

    def split(self, outputs: Tensor) -> Tensor:
        """The network's outputs by class, [B, K * S] -> [B, K, S]."""
        return outputs.view(-1, self.classes, self.subclasses)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        return wide(self.split(self.net(x))).logsumexp(-1)


@register("model", gives={"logits"})
def subclassed(*, net: ModelBlock, shape: tuple[int, ...], classes: int, subclasses: int = 4) -> Subclassed:
    """A classifier with a number of subclasses inside each class; its answer sums over them.

    Args:
        net: the network, built for ``classes * subclasses`` classes.
        shape: of one input.
        classes: number of classes.
        subclasses: of each class.

    Raises:
        UserError: fewer than one subclass.
    """
    if subclasses < 1:
        raise UserError(f"subclassed: a class needs at least 1 subclass, not {subclasses}")
    offers = DataSpec(shape=tuple(shape), classes=classes * subclasses).offers()
    return Subclassed(build("model", net, offers=offers), classes, subclasses)
