"""Where the parts of a decoder are: which axis of which weight runs over channels, heads or neurons.

The models are those of transformers: GPT-2, and Llama with its likes (Mistral, Qwen2, Qwen3), whose blocks have the
same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from limbeck.errors import UserError

Axes = tuple[str | None, ...]
"""What each axis of a weight runs over: ``hidden``, ``query``, ``key``, ``query_key_value``, ``ffn``, or nothing."""


@dataclass(frozen=True)
class Anatomy:
    """The names of one architecture.

    Attributes:
        blocks: path of the list of blocks.
        outer: axes of the weights outside the blocks, by name.
        inner: axes of a block's weights, by their names within it.
        norms: modules (ends of paths) that normalise over the hidden channels.
        readers: within a block, the layers that read the heads' outputs and the neurons.
        config: what the sizes are called in the configuration; ``eps`` is that of the norms.
        joined: whether the heads together are as wide as the model, by the model's own definition.
    """

    blocks: str
    outer: Mapping[str, Axes]
    inner: Mapping[str, Axes]
    norms: tuple[str, ...]
    readers: tuple[str, str]
    config: Mapping[str, str]
    joined: bool = False


_GPT2 = Anatomy(
    blocks="transformer.h",
    outer={
        "transformer.wte.weight": (None, "hidden"),
        "transformer.wpe.weight": (None, "hidden"),
        "transformer.ln_f.weight": ("hidden",),
        "transformer.ln_f.bias": ("hidden",),
        "lm_head.weight": (None, "hidden"),
    },
    inner={
        **{f"{norm}.{part}": ("hidden",) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
        "attn.c_attn.weight": ("hidden", "query_key_value"),
        "attn.c_attn.bias": ("query_key_value",),
        "attn.c_proj.weight": ("query", "hidden"),
        "attn.c_proj.bias": ("hidden",),
        "mlp.c_fc.weight": ("hidden", "ffn"),
        "mlp.c_fc.bias": ("ffn",),
        "mlp.c_proj.weight": ("ffn", "hidden"),
        "mlp.c_proj.bias": ("hidden",),
    },
    norms=("ln_1", "ln_2", "ln_f"),
    readers=("attn.c_proj", "mlp.c_proj"),
    config={"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "ffn": "n_inner", "eps": "layer_norm_epsilon"},
    joined=True,
)
_PROJECTIONS = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "mlp.gate_proj": ("ffn", "hidden"),
    "mlp.up_proj": ("ffn", "hidden"),
    "mlp.down_proj": ("hidden", "ffn"),
}
_LLAMA = Anatomy(
    blocks="model.layers",
    outer={
        "model.embed_tokens.weight": (None, "hidden"),
        "model.norm.weight": ("hidden",),
        "lm_head.weight": (None, "hidden"),
    },
    inner={
        "input_layernorm.weight": ("hidden",),
        "post_attention_layernorm.weight": ("hidden",),
        "self_attn.q_norm.weight": (None,),
        "self_attn.k_norm.weight": (None,),
        **{f"{name}.weight": axes for name, axes in _PROJECTIONS.items()},
        **{f"{name}.bias": axes[:1] for name, axes in _PROJECTIONS.items()},
    },
    norms=("input_layernorm", "post_attention_layernorm", "model.norm"),
    readers=("self_attn.o_proj", "mlp.down_proj"),
    config={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "groups": "num_key_value_heads",
        "head_dim": "head_dim",
        "ffn": "intermediate_size",
        "eps": "rms_norm_eps",
    },
)
ANATOMIES = {"gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
"""By the configuration's ``model_type``."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. ``groups`` are its key-value heads: each serves ``heads / groups`` query heads."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    groups: int = field(default=0)
    head_dim: int = field(default=0)

    @property
    def queries(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a transformers decoder.

    Raises:
        UserError: the model is of another architecture.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = ANATOMIES.get(str(kind))
    if known is None or not hasattr(model, "lm_head"):
        what = f"a {type(model).__name__}" + (f" ({kind})" if kind else "")
        raise UserError(f"cannot cut {what}: decoders of transformers that can be cut are {', '.join(ANATOMIES)}")
    return known


def shape_of(model: nn.Module) -> Shape:
    """The sizes that a model's configuration gives.

    Raises:
        UserError: the model is of an unknown architecture.
    """
    names, config = anatomy_of(model).config, model.config
    hidden, heads = int(getattr(config, names["hidden"])), int(getattr(config, names["heads"]))
    ffn = getattr(config, names["ffn"])
    return Shape(
        layers=int(getattr(config, names["layers"])),
        hidden=hidden,
        heads=heads,
        ffn=4 * hidden if ffn is None else int(ffn),  # GPT-2's own default
        groups=int(getattr(config, names["groups"])) if "groups" in names else heads,
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
    )


def blocks_of(model: nn.Module) -> list[Any]:
    """The model's blocks, in order."""
    return list(model.get_submodule(anatomy_of(model).blocks).children())
