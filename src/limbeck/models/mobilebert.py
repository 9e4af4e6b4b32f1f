"""Encoders of thin layers between bottlenecks, built from transformers' MobileBERT."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from limbeck.errors import UserError, needs_extra
from limbeck.models.encoder import task_of
from limbeck.registry import register


@register("model", gives={"logits", "hidden_states"})
def mobilebert(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    bottleneck: int | None = None,
    ffn: int | None = None,
    stacked: int = 4,
    embedding: int | None = None,
    norm: Literal["no_norm", "layer_norm"] = "no_norm",
    activation: Literal["relu", "gelu"] = "relu",
    dropout: float = 0.0,
    task: Literal["auto", "masked_lm", "classification"] = "auto",
    attention: Literal["sdpa", "eager"] = "sdpa",
    classes: int | None = None,
    data: Any = None,
) -> nn.Module:
    """A transformers MobileBERT (Sun et al. 2020, arXiv 2004.02984) with fresh weights, of torch's global generator.

    A teacher is as wide between its blocks as the student and wider inside: ``bottleneck`` above ``hidden``, with
    ``stacked: 1``, ``norm: layer_norm`` and ``activation: gelu``, is the paper's inverted bottleneck.

    Args:
        hidden: width between the blocks.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding; at least the tokenizer's.
        context: longest input, in tokens.
        bottleneck: width inside the blocks, a multiple of ``heads``; by default a quarter of ``hidden``.
        ffn: neurons of each feed-forward layer; by default four times ``bottleneck``.
        stacked: feed-forward layers of a block.
        embedding: width of a token's embedding, three of which make up the first state; by default a quarter of
            ``hidden``.
        norm: of the states; ``no_norm`` is a scale and a shift for each channel.
        activation: of the feed-forward layers.
        dropout: on hidden states and attention.
        task: fill in hidden tokens, or give texts a class; ``auto`` is what the data is for.
        attention: ``sdpa``, or ``eager`` where attention maps are read.
        classes: number of classes.
        data: the built data; gives the task and the ids of special tokens.

    Raises:
        UserError: transformers is missing, the sizes do not go together, or nothing says what the encoder is for.
    """
    try:
        import transformers
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    inner, token = bottleneck or max(hidden // 4, 1), embedding or max(hidden // 4, 1)
    if inner % heads:
        raise UserError(f"mobilebert: bottleneck {inner} is not a multiple of heads {heads}")
    if token >= hidden or stacked < 1:
        raise UserError(
            f"mobilebert: embedding {token} must be below hidden {hidden}, and stacked {stacked} at least 1"
        )
    words = getattr(data, "extra", {}).get("tokenizer")
    base: dict[str, Any] = {"num_labels": classes or 2, "attn_implementation": attention}
    config = transformers.MobileBertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        intra_bottleneck_size=inner,
        intermediate_size=ffn or 4 * inner,
        num_feedforward_networks=stacked,
        embedding_size=token,
        normalization_type=norm,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=getattr(words, "pad_token_id", None) or 0,
        **base,
    )
    if task_of(task, data, classes) == "masked_lm":
        return transformers.MobileBertForMaskedLM(config)
    return transformers.MobileBertForSequenceClassification(config)
