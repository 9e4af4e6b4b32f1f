"""Small encoders of text, built from transformers' BERT."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from limbeck.errors import UserError, needs_extra
from limbeck.registry import register


@register("model", gives={"logits", "hidden_states"})
def encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    ffn: int | None = None,
    dropout: float = 0.0,
    task: Literal["auto", "masked_lm", "classification"] = "auto",
    attention: Literal["sdpa", "eager"] = "sdpa",
    classes: int | None = None,
    data: Any = None,
) -> nn.Module:
    """A transformers BERT with fresh weights, drawn from torch's global generator.

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding; at least the tokenizer's.
        context: longest input, in tokens.
        ffn: neurons of each feed-forward layer; by default four times ``hidden``.
        dropout: on embeddings, hidden states and attention.
        task: fill in hidden tokens, or give texts a class; ``auto`` is what the data is for.
        attention: ``sdpa``, or ``eager`` where attention maps are read.
        classes: number of classes.
        data: the built data; gives the task and the ids of special tokens.

    Raises:
        UserError: the sizes do not go together, or nothing says what the encoder is for.
    """
    if hidden % heads:
        raise UserError(f"encoder: hidden {hidden} is not a multiple of heads {heads}")
    words = getattr(data, "extra", {}).get("tokenizer")
    config = bert_config(
        hidden,
        layers,
        heads,
        vocab_size,
        context,
        dropout,
        attention,
        intermediate_size=ffn or 4 * hidden,
        num_labels=classes or 2,
        pad_token_id=getattr(words, "pad_token_id", None) or 0,
    )
    import transformers

    if task_of(task, data, classes) == "masked_lm":
        return transformers.BertForMaskedLM(config)
    return transformers.BertForSequenceClassification(config)


def bert_config(
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    positions: int,
    dropout: float,
    attention: str,
    **more: Any,
) -> Any:
    """A transformers ``BertConfig`` of these sizes, and whatever else it is given.

    Raises:
        UserError: transformers is missing.
    """
    try:
        from transformers import BertConfig
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    options: dict[str, Any] = {"attn_implementation": attention, "intermediate_size": 4 * hidden, **more}
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **options,
    )


def task_of(task: str, data: Any, classes: int | None) -> str:
    """``masked_lm`` or ``classification``: as said, or what the data is for.

    Raises:
        UserError: neither says it.
    """
    if task != "auto":
        return task
    kind = getattr(getattr(data, "spec", None), "task", None)
    if kind == "masked_language":
        return "masked_lm"
    if kind == "classification" or classes:
        return "classification"
    raise UserError("encoder: say what it is for with task: masked_lm or classification")
