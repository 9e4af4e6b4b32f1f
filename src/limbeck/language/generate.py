"""Continuing token rows with any causal language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.engine.noise import uniform
from limbeck.models.forward import forward


@torch.no_grad()
def continue_tokens(
    module: nn.Module,
    prompts: Tensor,
    steps: int,
    *,
    context: int,
    temperature: float = 0.0,
    ids: Tensor | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Tensor:
    """``steps`` more tokens for each prompt, int64 [B, T] -> [B, steps].

    The model sees the last ``context`` tokens each time. A row's draws depend on the seed, its id and the step alone,
    so its continuation is the same in any batch.

    Args:
        module: gives logits [B, T, V] for ``input_ids`` and ``attention_mask``.
        prompts: rows of equal length, without padding.
        steps: how many tokens to add.
        context: longest input of the model.
        temperature: 0 takes the likeliest token, otherwise samples from the tempered distribution.
        ids: int64 [B], a name for each row; by default its number.
        seed: of the samples.
        vocab_size: never give a token beyond these (padding of the vocabulary).

    Raises:
        ValueError: the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    rows = torch.arange(len(prompts), device=prompts.device) if ids is None else ids
    tokens = prompts
    for step in range(steps):
        seen = tokens[:, -context:]
        logits = forward(module, {"input_ids": seen, "attention_mask": torch.ones_like(seen)}).logits[:, -1]
        logits = logits[:, :vocab_size].float()
        if temperature > 0:
            # The largest of logits + Gumbel noise is a draw from their softmax.
            u = uniform(rows, (logits.shape[-1],), (seed, step, "continue")).clamp(min=1e-12)
            logits = logits / temperature - torch.log(-torch.log(u))
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :]
