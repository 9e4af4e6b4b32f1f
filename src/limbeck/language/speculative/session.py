"""A causal network that reads one row token by token, branches into trees of tokens, and forgets what was refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError, needs_extra
from limbeck.language.speculative.verify import ROOT
from limbeck.models.forward import Signals, signals


class Session:
    """One row in the key-value cache of a transformers network (or of a body that takes ``inputs_embeds``).

    The cache holds the tokens that stand, then those of the tree that is being tried. A token of the tree sees what
    stands, its ancestors and itself, at the position that it would have in the text, so that its logits are those
    of the plain row.

    Attributes:
        standing: how many tokens stand.
    """

    def __init__(self, module: nn.Module) -> None:
        try:
            from transformers import DynamicCache
        except ImportError as error:
            raise needs_extra("transformers", "text") from error
        self.module, self.standing = module, 0
        self.cache: Any = DynamicCache()
        self._ancestors: list[list[int]] = []

    def read(self, parents: Sequence[int] | None = None, **inputs: Tensor) -> Signals:
        """The network's signals for more tokens, given as ``input_ids`` [1, N] or ``inputs_embeds`` [1, N, d].

        Args:
            parents: for each token the number of its parent among all tokens tried since the last :meth:`stand`, or
                ``ROOT``; by default each follows the one before it.
            inputs: what the network reads.
        """
        count = next(iter(inputs.values())).shape[1]
        tried = len(self._ancestors)
        # After a line, plain causal attention is right, and faster than a mask.
        line = parents is None and all(len(a) == place for place, a in enumerate(self._ancestors))
        for place in range(count):
            parent = parents[place] if parents is not None else (tried + place - 1 if place or tried else ROOT)
            above = [] if parent == ROOT else [*self._ancestors[parent], parent]
            self._ancestors.append(above)
        positions = torch.tensor([[self.standing + len(a) for a in self._ancestors[tried:]]])
        mask = None if line else self._mask(tried, inputs)
        device = next(iter(inputs.values())).device
        return signals(
            self.module(
                **inputs,
                attention_mask=mask,
                position_ids=positions.to(device),
                past_key_values=self.cache,
                use_cache=True,
            )
        )

    def _mask(self, tried: int, inputs: dict[str, Tensor]) -> Tensor:
        """What is added to the attention scores, [1, 1, N, all]: 0 where a token may look."""
        weight = next(self.module.parameters())
        rows = self._ancestors[tried:]
        closed = torch.finfo(weight.dtype).min
        mask = torch.full((len(rows), self.standing + len(self._ancestors)), closed, dtype=weight.dtype)
        mask[:, : self.standing] = 0
        for row, above in enumerate(rows):
            mask[row, [self.standing + node for node in (*above, tried + row)]] = 0
        return mask[None, None].to(next(iter(inputs.values())).device)

    def stand(self, nodes: Sequence[int]) -> None:
        """Of the tokens tried keep these, a path from the root; the others leave the cache."""
        kept = torch.tensor([*range(self.standing), *(self.standing + node for node in nodes)], dtype=torch.int64)
        self._select(kept)
        self.standing += len(nodes)

    def shorten(self, length: int) -> None:
        """Keep the first ``length`` of the tokens that stand, and nothing that was tried."""
        self.standing = min(self.standing, length)
        self._select(torch.arange(self.standing))

    def _select(self, kept: Tensor) -> None:
        self._ancestors = []
        for layer in self.cache.layers:
            if getattr(layer, "is_sliding", False):
                raise UserError("speculative decoding cannot go back in a cache with a sliding window")
            if layer.keys is not None and len(kept) < layer.keys.shape[-2]:
                place = kept.to(layer.keys.device)
                layer.keys, layer.values = layer.keys[..., place, :], layer.values[..., place, :]
