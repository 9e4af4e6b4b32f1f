"""Masked diffusion of tokens: a network that fills masks in is the score of a law of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.diffusion.discrete import Corruption, generator, inverse, log_linear, step_law
from limbeck.engine import noise as numbers

STD = 0.02
"""Of embeddings and places at first."""
FLOOR = -30.0
"""The logarithm of the score of what cannot be."""


class MaskedTransformer(nn.Module):
    """The law of every masked token given those that are left, as a concrete score (arXiv 2406.07524).

    A token that is not masked stays what it is, and the network is not told the time: both hold for the exact law of
    clean tokens, so that it fills in a mask with the same words whenever it is asked. It has the attributes of
    :class:`~limbeck.diffusion.discrete.MarkovChain`, whose samplers it goes into.

    Args:
        tokens: of the vocabulary; the mask is one more.
        length: of a sequence.
        width: of the hidden states.
        layers: of the transformer.
        heads: of each.
        total: corruption time at t = 1; the share ``e^-total`` of tokens is then untouched.
    """

    rates: Tensor
    corruption: Corruption = "absorb"

    def __init__(self, tokens: int, length: int, width: int, layers: int, heads: int, total: float = 6.0) -> None:
        super().__init__()
        self.tokens = tokens
        self.length = length
        self.total = total
        self.register_buffer("rates", generator("absorb", tokens).float())
        self.embed = nn.Embedding(tokens + 1, width)
        # As large as the places: larger embeddings hide where a token stands, and nothing but frequencies is learnt.
        nn.init.normal_(self.embed.weight, std=STD)
        self.places = nn.Parameter(STD * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sequence."""
        return (self.length,)

    @property
    def states(self) -> int:
        """The tokens, and the mask."""
        return self.tokens + 1

    def fill(self, x: Tensor) -> Tensor:
        """Logits [B, L, V] of the clean tokens of sequences int64 [B, L] with masks, which are the state V."""
        return self.head(self.norm(self.layers(self.embed(x) + self.places[: x.shape[1]])))

    def forward(self, x: Tensor, time: Tensor | float) -> Tensor:
        """Logarithm of the concrete score at corruption time ``time``, [B, L, S], of sequences int64 [B, L]."""
        time = torch.as_tensor(time, device=x.device)
        odds = -torch.log(torch.expm1(time.float()))  # of a token that is left against one that is masked
        law = nn.functional.pad(self.fill(x).log_softmax(-1) + odds, (0, 1))  # of staying masked: 0
        stays = torch.full_like(law, FLOOR).scatter(2, x[..., None], 0.0)
        return torch.where((x == self.tokens)[..., None], law, stays)

    @torch.no_grad()
    def draw(self, ids: Tensor, key: object, steps: int = 64) -> Tensor:
        """Samples int64 [B, L] with these numbers (int64 [B]) of the endless list that ``key`` names.

        By the exact law of one token in each of the steps; the last leaves no mask.
        """
        times = log_linear(torch.linspace(1, 0, steps + 1), self.total).tolist()
        x = torch.full((len(ids), self.length), self.tokens, dtype=torch.long, device=ids.device)
        for k in range(steps):
            law = step_law(self(x, times[k]), x, times[k], times[k + 1], self.rates, "tweedie")
            if k == steps - 1:
                law[..., -1] = 0
            x = inverse(law, numbers.uniform(ids, (self.length,), (key, "step", k)))
        return x

    def example_inputs(self, batch_size: int) -> tuple[Tensor, float]:
        """Arguments for one call."""
        return torch.full((batch_size, self.length), self.tokens), 1.0
