"""Small causal language models, built from a configuration of a transformers architecture."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from limbeck.errors import UserError, needs_extra
from limbeck.registry import register


@register("model", gives={"logits", "hidden_states", "text"})
def causal_lm(
    *,
    architecture: Literal["gpt2", "llama"] = "gpt2",
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    dropout: float = 0.0,
    tie: bool = True,
    attention: Literal["sdpa", "eager"] = "sdpa",
    data: Any = None,
) -> nn.Module:
    """A transformers causal language model with fresh weights, drawn from torch's global generator.

    Args:
        architecture: ``gpt2`` (learnt positions, LayerNorm, GELU) or ``llama`` (rotary positions, RMSNorm, SwiGLU).
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding; at least the tokenizer's, more to pad it.
        context: longest input, in tokens.
        dropout: on embeddings, residuals and attention (llama: attention alone).
        tie: share the embedding with the output layer.
        attention: ``sdpa``, or ``eager`` where attention maps are read.
        data: the built data; gives the ids of the end-of-text and padding tokens.

    Raises:
        UserError: the sizes do not go together.
    """
    _check(hidden, heads, vocab_size, data)
    try:
        import transformers
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": tie,
        "attn_implementation": attention,
        **_special_ids(data),
    }
    if architecture == "gpt2":
        rates: dict[str, Any] = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        sizes: dict[str, Any] = {"n_positions": context, "n_embd": hidden, "n_layer": layers, "n_head": heads}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **rates, **shared))
    config = transformers.LlamaConfig(
        max_position_embeddings=context,
        hidden_size=hidden,
        # SwiGLU has three matrices where GELU has two: 8/3 of the width keeps the number of parameters.
        intermediate_size=8 * round(hidden / 3),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        attention_dropout=dropout,
        **shared,
    )
    return transformers.LlamaForCausalLM(config)


def _check(hidden: int, heads: int, vocab_size: int, data: Any) -> None:
    if hidden % heads:
        raise UserError(f"causal_lm: hidden {hidden} is not a multiple of heads {heads}")
    tokens = getattr(getattr(data, "spec", None), "vocab_size", None) or 0
    if vocab_size < tokens:
        raise UserError(f"causal_lm: vocab_size {vocab_size} is smaller than the tokenizer's {tokens}")


def _special_ids(data: Any) -> dict[str, int | None]:
    words = getattr(data, "extra", {}).get("tokenizer")
    return {name: getattr(words, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
