"""A text encoder with several exits, each of which is an encoder of its own."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.embedding import TextEncoder, bert, pool
from limbeck.registry import register


class ExitEncoder(TextEncoder):
    """A transformer that can be left after several of its layers, with a projection head at each of these exits.

    As a text encoder it is its last exit.

    Args:
        backbone: a BERT; gives ``hidden_states``.
        exits: after how many layers it can be left, in ascending order; the last one is its depth.
        **options: as of :class:`TextEncoder`; ``dim`` is that of every exit.
    """

    def __init__(self, backbone: nn.Module, *, exits: tuple[int, ...], **options: Any) -> None:
        super().__init__(backbone, **options)
        if sorted(set(exits)) != list(exits) or exits[0] < 1 or exits[-1] != self.config.num_hidden_layers:
            says = f"exits {list(exits)} do not ascend to the {self.config.num_hidden_layers} layers there are"
            raise UserError(f"exit_encoder: {says}")
        self.exits = exits
        width = self.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, self.dim, bias=False) for _ in exits[:-1])
        self.dense = nn.Linear(width, self.dim, bias=False)

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The vector [..., D] of each text [..., T], by every exit."""
        return self._vectors(self.exit_states(input_ids, attention_mask), input_ids, attention_mask)

    def exit_states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The states [..., T, H] of each text [..., T], at every exit."""
        ids, mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        states = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return [states[at].view(*input_ids.shape, -1) for at in self.exits]

    def _vectors(self, states: list[Tensor], input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        mask = attention_mask.flatten(0, -2)
        found = [
            head(pool(s.flatten(0, -3), mask, self.pooling)) for s, head in zip(states, self._heads(), strict=True)
        ]
        found = [nn.functional.normalize(x, dim=-1) for x in found] if self.normalize else found
        return [x.view(*input_ids.shape[:-1], -1) for x in found]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """Adds ``exits``, the vectors [..., D] of every exit; ``embedding`` is the last one.

        And ``exit_states`` [..., T, H], what the vectors are made of.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.exit_states(input_ids, mask)
        exits = self._vectors(states, input_ids, mask)
        named: dict[str, Any] = {"embedding": exits[-1], "exits": exits, "exit_states": states}
        if input_ids.dim() == 3 and input_ids.shape[1] > 1:
            named["logits"] = self.match((exits[-1][:, 0],), (exits[-1][:, 1:],))
        return named

    def at(self, layers: int) -> TextEncoder:
        """The encoder cut off at an exit: a plain one of so many layers, with copies of the weights.

        Raises:
            UserError: there is no exit after so many layers.
        """
        if layers not in self.exits:
            raise UserError(f"this encoder has exits after {list(self.exits)} layers, not after {layers}")
        backbone: Any = copy.deepcopy(self.backbone)
        backbone.encoder.layer = backbone.encoder.layer[:layers]
        backbone.config.num_hidden_layers = layers
        cut = TextEncoder(
            backbone, pooling=self.pooling, normalize=self.normalize, similarity=self.similarity, scale=self.scale
        )
        dense: Any = copy.deepcopy(self._heads()[self.exits.index(layers)])
        cut.dense, cut.dim = dense, self.dim
        return cut.train(self.training)

    def _heads(self) -> list[nn.Module]:
        heads: list[Any] = [*self.heads, self.dense]
        return heads


@register("model", gives={"embedding", "logits"})
def exit_encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    every: int = 1,
    dim: int | None = None,
    pooling: Literal["mean", "cls", "last", "max"] = "mean",
    normalize: bool = False,
    similarity: Literal["dot", "cosine"] = "cosine",
    scale: float = 10.0,
    dropout: float = 0.0,
    attention: Literal["sdpa", "eager"] = "sdpa",
    data: Any = None,
) -> ExitEncoder:
    """A BERT with fresh weights that gives each text one vector, after several of its layers.

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding.
        context: longest text, in tokens.
        every: an exit after so many layers each, counted back from the last one.
        dim: of the vectors; by default ``hidden``.
        pooling: how the states of a text's tokens become one vector.
        normalize: scale vectors to length 1.
        similarity: texts are compared by the dot product of their vectors, or by the cosine.
        scale: multiplies it.
        dropout: on embeddings, residuals and attention.
        attention: implementation of attention.
        data: the built data; gives the padding token.

    Raises:
        UserError: ``every`` is not positive, or the sizes do not go together.
    """
    if every < 1:
        raise UserError(f"exit_encoder: every must be 1 or more, got {every}")
    backbone = bert("BertModel", hidden, layers, heads, vocab_size, context, dropout, attention, data)
    return ExitEncoder(
        backbone, exits=tuple(reversed(range(layers, 0, -every))), pooling=pooling, dim=dim or hidden,
        normalize=normalize, similarity=similarity, scale=scale,
    )  # fmt: skip
