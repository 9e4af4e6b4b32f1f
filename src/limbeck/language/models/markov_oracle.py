"""The exact law of the texts of data ``markov``, as a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.data.markov import Chain
from limbeck.errors import UserError
from limbeck.registry import register


class ChainModel(nn.Module):
    """Gives the log-probabilities of a chain's next symbol as logits [B, T, V], for rows that begin a text."""

    table: Tensor

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.register_buffer("table", chain.table())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of the next symbol at each place; rows are padded on the right, which no place before sees."""
        return self.table[self.chain.states(input_ids)]


@register("model", gives={"logits", "text"}, exact=True)
def markov_oracle(*, data: Any = None) -> nn.Module:
    """The true next-token law of the recipe's data.

    Args:
        data: the built data ``markov``.

    Raises:
        UserError: the data is another, whose law nobody knows.
    """
    chain = getattr(data, "extra", {}).get("chain")
    if chain is None:
        raise UserError("markov_oracle is the law of data 'markov'; the recipe has other data")
    return ChainModel(chain)
