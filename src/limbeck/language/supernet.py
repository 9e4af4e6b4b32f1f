"""A super-network of text: one BERT whose leading weights are many smaller ones.

Of each matrix the first rows and columns are a subnet's, of the attention the first whole heads, and of the layers
any that are chosen. A LayerNorm's gamma and beta are shared, too: a narrower subnet has their first entries, and none
of its own. A subnet is a plain transformers encoder of its configuration, so it can be delivered as one.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.errors import UserError
from limbeck.models.forward import unwrapped

_LAYER = re.compile(r"(?<=encoder\.layer\.)\d+(?=\.)")


@dataclass(frozen=True)
class Architecture:
    """A subnet.

    Attributes:
        layers: the super-network's layers that it has, counted from 0, in order.
        heads: its first so many attention heads; its width is theirs.
        ffn: neurons of each feed-forward layer.
    """

    layers: tuple[int, ...]
    heads: int
    ffn: int


def subnet_config(network: nn.Module, architecture: Architecture) -> Any:
    """The transformers configuration of a subnet.

    Raises:
        UserError: the super-network has not so many layers, heads or neurons.
    """
    whole: Any = unwrapped(network).config
    a = architecture
    most = (whole.num_hidden_layers, whole.num_attention_heads, whole.intermediate_size)
    inside = a.layers and min(a.layers) >= 0 and max(a.layers) < most[0] and 1 <= a.heads <= most[1]
    if not inside or sorted(set(a.layers)) != list(a.layers) or not 1 <= a.ffn <= most[2]:
        raise UserError(f"{a} is no part of a super-network of {most[0]} layers, {most[1]} heads and {most[2]} neurons")
    config = copy.deepcopy(whole)
    config.num_hidden_layers, config.num_attention_heads, config.intermediate_size = len(a.layers), a.heads, a.ffn
    config.hidden_size = a.heads * (whole.hidden_size // whole.num_attention_heads)
    return config


def subnet_shell(network: nn.Module, architecture: Architecture, *, empty: bool = False) -> nn.Module:
    """A plain encoder of the subnet's sizes, of the super-network's class, on its device and in its mode.

    Its weights are fresh; torch's global generator is left as it was.

    Args:
        network: the super-network.
        architecture: the subnet.
        empty: have shapes alone, which take no memory, for :func:`run_subnet`.
    """
    plain: Any = unwrapped(network)
    config = subnet_config(plain, architecture)
    extra = {"add_pooling_layer": False} if getattr(plain, "pooler", 0) is None else {}
    first = next(plain.parameters())
    with torch.random.fork_rng(devices=[]), torch.device("meta" if empty else "cpu"):
        shell: nn.Module = type(plain)(config, **extra)
    return shell.to("meta" if empty else first.device, first.dtype).train(plain.training)


def sliced_weights(network: nn.Module, architecture: Architecture, shell: nn.Module) -> dict[str, Tensor]:
    """The subnet's weights by their names in ``shell``: views of the super-network's, with their gradient."""
    whole = dict(unwrapped(network).named_parameters())
    found = {}
    for name, value in shell.named_parameters():
        source = whole[_LAYER.sub(lambda m: str(architecture.layers[int(m[0])]), name)]
        found[name] = source[tuple(slice(0, n) for n in value.shape)]
    return found


def run_subnet(network: nn.Module, architecture: Architecture, shell: nn.Module, **inputs: Any) -> Any:
    """What a subnet gives, by the super-network's weights as they are, with their gradient.

    Args:
        network: the super-network.
        architecture: the subnet.
        shell: of the subnet; may be empty. It takes the super-network's mode.
        **inputs: of the encoder.
    """
    plain = unwrapped(network)
    shell.train(plain.training)
    tensors = {**sliced_weights(plain, architecture, shell), **dict(plain.named_buffers())}
    return functional_call(shell, tensors, (), inputs)


def exported(network: nn.Module, architecture: Architecture) -> nn.Module:
    """The subnet as an encoder of its own, with copies of the weights."""
    shell = subnet_shell(network, architecture)
    weights = sliced_weights(network, architecture, shell)
    with torch.no_grad():
        for name, value in shell.named_parameters():
            value.copy_(weights[name])
    return shell
