"""Drafts that look at their target's features: heads, and small bodies that predict the next feature.

They hold no part of the target: its embedding and output layer are handed in where they are needed, so that what is
stored is the draft alone. A feature is what the target's output layer takes (the last hidden state).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError, needs_extra
from limbeck.language.speculative.drafters import Shape
from limbeck.language.speculative.heads import FeatureDrafter, LevelsDrafter
from limbeck.registry import ModelBlock, build, register


class ResidualHead(nn.Module):
    """``W2 (h + SiLU(W1 h))``, with W1 zero at first."""

    def __init__(self, hidden: int, vocab_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, vocab_size, bias=False)
        nn.init.zeros_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., V] from features [..., d]."""
        logits: Tensor = self.out(features + F.silu(self.inner(features)))
        return logits


class MedusaHeads(nn.Module):
    """K heads on the target's features; head k (from 1) predicts the k-th token after the one the target predicts.

    Args:
        hidden: width of the target's features.
        vocab_size: of the target.
        count: K.
    """

    def __init__(self, hidden: int, vocab_size: int, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ResidualHead(hidden, vocab_size) for _ in range(count))

    @torch.no_grad()
    def begin(self, target: nn.Module) -> None:
        """Start each head as the target's own output layer.

        Raises:
            UserError: the sizes differ.
        """
        weight = output_layer(target).weight
        heads: Any = self.heads
        for head in heads:
            if head.out.weight.shape != weight.shape:
                sizes = f"{list(head.out.weight.shape)}, the target's output layer {list(weight.shape)}"
                raise UserError(f"medusa: a head is [vocab_size, hidden] = {sizes}")
            head.out.weight.copy_(weight)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [..., K, V] from features [..., d]."""
        return torch.stack([head(features) for head in self.heads], dim=-2)

    def first_guess(self, hidden_states: tuple[Tensor, ...], input_ids: Tensor, target: nn.Module) -> Tensor:
        """Logits [B, T-2, V] of the tokens from the third on, each by head 1 two tokens before it."""
        logits: Tensor = self.heads[0](hidden_states[-1][:, :-2])
        return logits

    def drafter(self, target: nn.Module, shape: Shape, vocab_size: int | None) -> LevelsDrafter:
        """Proposes chains or trees of the heads' likeliest tokens."""

        def levels(features: Tensor, row: list[int], depth: int) -> Tensor:
            return self(features[-1])[:depth, :vocab_size]

        return LevelsDrafter(levels, shape)

    def example_inputs(self, batch_size: int) -> Tensor:
        """Features for one token of each text, to measure on."""
        first: Any = self.heads[0]
        return torch.zeros(batch_size, first.inner.in_features)


@register("model", gives={"draft"})
def medusa_heads(*, hidden: int, vocab_size: int, count: int = 4) -> MedusaHeads:
    """Heads that draft for a frozen target (Medusa-1, Cai et al. 2024, arXiv 2401.10774).

    Args:
        hidden: width of the target.
        vocab_size: of the target.
        count: how many tokens ahead.

    Raises:
        UserError: there is no head.
    """
    if count < 1:
        raise UserError(f"medusa_heads: count must be 1 or more, got {count}")
    return MedusaHeads(hidden, vocab_size, count)


class MedusaLM(nn.Module):
    """A language model with heads of its own, which is its own target (Medusa-2)."""

    def __init__(self, base: nn.Module, count: int) -> None:
        super().__init__()
        rows, width = output_layer(base).weight.shape
        self.base = base
        self.heads = MedusaHeads(width, rows, count)
        self.config = base.config

    @property
    def target(self) -> nn.Module:
        """What verifies the heads' proposals."""
        return self.base

    def begin(self, target: nn.Module) -> None:
        """Start as the target, which must be a network of the same shape.

        Raises:
            UserError: it is not.
        """
        own, theirs = self.base.state_dict(), target.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
            raise UserError("medusa_lm: the base must be of the target's shape, because it starts with its weights")
        self.base.load_state_dict(theirs)
        self.heads.begin(target)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """What the base gives."""
        return self.base(input_ids=input_ids, attention_mask=attention_mask, **options)

    def first_guess(self, hidden_states: tuple[Tensor, ...], input_ids: Tensor, target: nn.Module) -> Tensor:
        """See :meth:`MedusaHeads.first_guess`."""
        return self.heads.first_guess(hidden_states, input_ids, target)

    def drafter(self, target: nn.Module, shape: Shape, vocab_size: int | None) -> LevelsDrafter:
        """See :meth:`MedusaHeads.drafter`."""
        return self.heads.drafter(target, shape, vocab_size)


@register("model", gives={"logits", "hidden_states", "draft"})
def medusa_lm(
    *, base: ModelBlock, count: int = 4, vocab_size: int | None = None, context: int | None = None, data: Any = None
) -> MedusaLM:
    """A language model that learns together with the heads that draft for it (Medusa-2, arXiv 2401.10774).

    Args:
        base: the model; it starts with the teacher's weights.
        count: how many tokens ahead.
        vocab_size: for a base that does not say.
        context: for a base that does not say.
        data: the built data, for the base.
    """
    offers = {"vocab_size": vocab_size, "context": context, "data": data}
    return MedusaLM(build("model", base, offers=offers), count)


class EagleDraft(nn.Module):
    """``FC([feature_t ; emb(x_{t+1})])``, then decoder layers: the feature of place t + 1.

    Args:
        hidden: width of the target.
        layers: decoder layers.
        heads: attention heads.
        fused: how many of the target's hidden states are joined into a feature: 1 takes the last one (EAGLE-1 and 2),
            3 the low, the middle and the last one, through a layer (EAGLE-3).
        look: what the draft sees of the past.
    """

    def __init__(self, hidden: int, layers: int, heads: int, fused: int, look: str) -> None:
        super().__init__()
        self.hidden, self.look, self.levels = hidden, look, fused
        self.fuse = nn.Linear(fused * hidden, hidden, bias=False) if fused > 1 else nn.Identity()
        self.join = nn.Linear(2 * hidden, hidden)
        self.body = decoder(hidden, layers, heads)

    def features(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """The features [..., d] that the draft reads, from the target's hidden states, the embedding's first."""
        if self.levels == 1:
            return hidden_states[-1]
        last = len(hidden_states) - 1
        chosen = [hidden_states[round(1 + i * (last - 1) / (self.levels - 1))] for i in range(self.levels)]
        fused: Tensor = self.fuse(torch.cat(chosen, dim=-1))
        return fused

    def forward(self, features: Tensor, embedded: Tensor, **options: Any) -> Any:
        """The body's output for features of places t and embeddings of the tokens at t + 1, both [B, T, d]."""
        return self.body(inputs_embeds=self.joined(features, embedded), **options)

    def joined(self, features: Tensor, embedded: Tensor) -> Tensor:
        """The body's input."""
        seen = torch.zeros_like(features) if self.look == "tokens" else features
        found: Tensor = self.join(torch.cat([seen, embedded], dim=-1))
        return found

    def first_guess(self, hidden_states: tuple[Tensor, ...], input_ids: Tensor, target: nn.Module) -> Tensor:
        """Logits [B, T-2, V] of the tokens from the third on, each from the target's features two tokens before it."""
        embedded = embedding(target)(input_ids)
        found = self(self.features(hidden_states)[:, :-2], embedded[:, 1:-1], use_cache=False)
        logits: Tensor = output_layer(target)(found.last_hidden_state)
        return logits

    def drafter(self, target: nn.Module, shape: Shape, vocab_size: int | None) -> FeatureDrafter:
        """Proposes chains or trees, each token from the feature that the draft predicted before it."""
        return FeatureDrafter(self, target, shape, vocab_size)


@register("model", gives={"draft"})
def eagle_draft(
    *, hidden: int, layers: int = 1, heads: int = 4, fused: int = 1, look: Literal["both", "tokens"] = "both"
) -> EagleDraft:
    """A draft that continues its target's features (EAGLE, Li et al. 2024, arXiv 2401.15077, and its successors).

    Args:
        hidden: width of the target.
        layers: decoder layers.
        heads: attention heads.
        fused: hidden states of the target that a feature is made of: 1, or 3 for EAGLE-3.
        look: ``both`` feature and token, or the ``tokens`` alone, as a plain language model does (for comparison).

    Raises:
        UserError: the sizes do not go together.
    """
    if hidden % heads or min(layers, fused) < 1:
        raise UserError(f"eagle_draft: hidden {hidden} must be a multiple of heads {heads}, layers and fused 1 or more")
    return EagleDraft(hidden, layers, heads, fused, look)


class FalconDraft(nn.Module):
    """A draft that says k tokens at once: from f_t and x_{t+1} it predicts f_{t+k}, and so x_{t+k+1}.

    Places see each other within blocks of k, and all before; the last k places are a block. A recurrent layer and an
    MLP follow.

    Args:
        hidden: width of the target.
        block: k.
        layers: decoder layers.
        heads: attention heads.
    """

    def __init__(self, hidden: int, block: int, layers: int, heads: int) -> None:
        super().__init__()
        self.hidden, self.block = hidden, block
        self.join = nn.Linear(2 * hidden, hidden)
        self.body = decoder(hidden, layers, heads)
        self.recurrent = nn.LSTM(hidden, hidden, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, features: Tensor, embedded: Tensor, shift: int = 0) -> Tensor:
        """Features k places on, from features of places t and embeddings of the tokens at t + 1, all [B, T, d].

        Args:
            features: of the target, or imagined.
            embedded: the tokens after them.
            shift: places that the blocks are moved to the left, for reading at other ends.
        """
        number = self.blocks(features.shape[1], shift, features.device)
        seen = (number[None] <= number[:, None])[None, None]
        joined = self.join(torch.cat([features, embedded], dim=-1))
        hidden = self.body(inputs_embeds=joined, attention_mask=seen, use_cache=False).last_hidden_state
        hidden = hidden + self.recurrent(hidden)[0]
        found: Tensor = hidden + self.mix(hidden)
        return found

    def blocks(self, count: int, shift: int = 0, device: Any = None) -> Tensor:
        """The number of the block that each of ``count`` places is in; the last k places are one."""
        first = (-count) % self.block + shift
        return (torch.arange(count, device=device) + first) // self.block

    def first_guess(self, hidden_states: tuple[Tensor, ...], input_ids: Tensor, target: nn.Module) -> Tensor:
        """Logits [B, T-k-1, V] of the tokens from number k + 1 on, each as the first of a block that ends before it."""
        features, embedded = hidden_states[-1][:, :-2], embedding(target)(input_ids)[:, 1:-1]
        count, k = features.shape[1], self.block
        found = features.new_empty(len(features), count - k + 1, self.hidden)
        for shift in range(k):
            starts = torch.arange((-shift - (-count) % k) % k, count - k + 1, k, device=features.device)
            found[:, starts] = self(features, embedded, shift)[:, starts]
        logits: Tensor = output_layer(target)(found)
        return logits

    def drafter(self, target: nn.Module, shape: Shape, vocab_size: int | None) -> LevelsDrafter:
        """Proposes chains or trees of the likeliest tokens of each block; a block follows the likeliest one before."""
        embed, out = embedding(target), output_layer(target)

        def levels(features: Tensor, row: list[int], depth: int) -> Tensor:
            tokens = torch.tensor(row[1:], device=features.device)
            found: list[Tensor] = []
            # Before there is a whole block nothing is proposed.
            while len(tokens) >= self.block and len(found) * self.block < depth:
                imagined = self(features[None], embed(tokens)[None])[0, -self.block :]
                found.append(out(imagined)[:, :vocab_size])
                features = torch.cat([features, imagined])
                tokens = torch.cat([tokens, found[-1].argmax(-1)])
            return torch.cat(found)[:depth] if found else features.new_empty(0, 1)

        return LevelsDrafter(levels, shape)


@register("model", gives={"draft"})
def falcon_draft(*, hidden: int, block: int = 2, layers: int = 1, heads: int = 4) -> FalconDraft:
    """A semi-autoregressive draft on its target's features (Falcon, Gao et al. 2024, arXiv 2412.12639).

    Args:
        hidden: width of the target.
        block: k, tokens for each of its forwards.
        layers: decoder layers with relaxed causal attention, before a recurrent one.
        heads: attention heads.

    Raises:
        UserError: the sizes do not go together.
    """
    if hidden % heads or layers < 1 or block < 2:
        raise UserError(f"falcon_draft: hidden {hidden} must be a multiple of heads {heads}, layers 1, block 2 or more")
    return FalconDraft(hidden, block, layers, heads)


def decoder(hidden: int, layers: int, heads: int) -> Any:
    """Decoder layers with rotary positions that read embeddings, without a vocabulary of their own."""
    try:
        from transformers import LlamaConfig, LlamaModel
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    more: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = LlamaConfig(
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=hidden,
        intermediate_size=8 * round(hidden / 3),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )
    body: Any = LlamaModel(config)
    body.embed_tokens = nn.Identity()
    return body


def output_layer(target: nn.Module) -> Any:
    """The layer that turns the target's features into logits.

    Raises:
        UserError: it does not say.
    """
    found = getattr(target, "get_output_embeddings", lambda: None)()
    if found is None:
        raise UserError(f"a draft on features needs a causal model of transformers, not {type(target).__name__}")
    return found


def embedding(target: nn.Module) -> Any:
    """The target's embedding of tokens."""
    return target.get_input_embeddings()  # type: ignore[operator]
