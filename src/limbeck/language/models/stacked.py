"""Bodies of language models under other heads: with a class for a text, and with an encoder in the place of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.lora import Adapted, without_adapters
from limbeck.registry import ModelBlock, build, register


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean state of the tokens that are there, [B, T, H] and [B, T] -> [B, H]."""
    there = mask.to(states.dtype)[..., None]
    return (states * there).sum(1) / there.sum(1).clamp(min=1)


class PooledLM(nn.Module):
    """A language model's body with low-rank adapters, its mean state, and a class from it.

    Args:
        body: a transformers body; its weights are frozen.
        width: of its states.
        classes: number of classes.
        rank: of the adapters, which alone learn in the body.
    """

    main_input_name = "input_ids"

    def __init__(self, body: nn.Module, width: int, classes: int, rank: int) -> None:
        super().__init__()
        self.body = Adapted(body, rank, rank)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, K] and ``pooled`` [B, H]."""
        return self.classified(self.body(input_ids=input_ids, attention_mask=attention_mask), attention_mask)

    def classified(self, output: Any, mask: Tensor) -> dict[str, Tensor]:
        """The logits and the mean state of a body's output."""
        pooled = mean_pooled(output.last_hidden_state, mask)
        return {"logits": self.head(pooled), "pooled": pooled}

    def begin(self, lm: nn.Module) -> None:
        """Take a language model's body.

        Raises:
            UserError: it is of another shape.
        """
        take(self.body, inner(lm), "the language model")


class StackedLM(PooledLM):
    """An encoder, a linear map of its states to a body's width, and the body in the place of its embeddings.

    The encoder and the head are frozen; the map and the body's adapters learn.

    Args:
        encoder: a transformers encoder, with or without a head.
        encoder_width: of its states.
        body, width, classes, rank: as of :class:`PooledLM`.
    """

    def __init__(
        self, encoder: nn.Module, encoder_width: int, body: nn.Module, width: int, classes: int, rank: int
    ) -> None:
        super().__init__(body, width, classes, rank)
        self.encoder = encoder.requires_grad_(False)
        self.up = nn.Linear(encoder_width, width)
        self.head.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, K] and ``pooled`` [B, H] of tokens that the encoder reads."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.classified(self.body(inputs_embeds=self.up(states), attention_mask=attention_mask), attention_mask)

    def assemble(self, encoder: nn.Module, lm: nn.Module) -> None:
        """Take an encoder's weights and a language model's body.

        Raises:
            UserError: one is of another shape.
        """
        take(self.encoder, inner(encoder), "the encoder")
        self.begin(lm)


def inner(module: nn.Module) -> nn.Module:
    """What is under the head of a transformers model."""
    found: nn.Module = getattr(module, "base_model", module)
    return found


@torch.no_grad()
def take(own: nn.Module, other: nn.Module, name: str) -> None:
    """Copy the weights of a network into one of its shape that may have adapters, and may lack its embedding of tokens.

    Raises:
        UserError: a weight is missing or of another shape.
    """
    given = other.state_dict()
    for key, weight in without_adapters(own).items():
        if key not in given or given[key].shape != weight.shape:
            has = list(given[key].shape) if key in given else "nothing"
            raise UserError(f"{name} has {has} where the student has {key} {list(weight.shape)}: make them alike")
        weight.copy_(given[key])


@register("model", gives={"logits", "pooled"})
def pooled_lm(
    *,
    body: ModelBlock,
    rank: int = 8,
    classes: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    data: Any = None,
) -> PooledLM:
    """A language model that gives a text a class from its mean state; adapters and head learn.

    Args:
        body: the language model; its own head is left out.
        rank: of the adapters.
        classes: number of classes.
        vocab_size: of the tokens.
        context: longest input in tokens.
        data: the built data.

    Raises:
        UserError: the number of classes is not known.
    """
    made = _built(body, {"vocab_size": vocab_size, "context": context, "data": data})
    return PooledLM(made, _width(made), _known(classes), rank)


@register("model", gives={"logits", "pooled"})
def stacked_lm(
    *,
    encoder: ModelBlock,
    body: ModelBlock,
    rank: int = 8,
    classes: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    data: Any = None,
) -> StackedLM:
    """An encoder in front of a language model's body, with a class from the mean state; map and adapters learn.

    Args:
        encoder: reads the tokens; its own head is left out.
        body: the language model; its own head and its embedding of tokens are left out.
        rank: of the adapters.
        classes: number of classes.
        vocab_size: of the encoder's tokens.
        context: longest input in tokens.
        data: the built data.

    Raises:
        UserError: the number of classes is not known.
    """
    below = _built(encoder, {"vocab_size": vocab_size, "context": context, "classes": classes, "data": data})
    made: Any = _built(body, {"vocab_size": 1, "context": context})
    made.set_input_embeddings(None)  # it is handed what stands in their place
    return StackedLM(below, _width(below), made, _width(made), _known(classes), rank)


def _built(block: ModelBlock, offers: Mapping[str, Any]) -> nn.Module:
    return inner(build("model", block, offers=offers))


def _width(module: nn.Module) -> int:
    config: Any = module.config
    return int(config.hidden_size)


def _known(classes: int | None) -> int:
    if classes is None:
        raise UserError("a text's class is asked for, and the data has none: give classes")
    return classes
