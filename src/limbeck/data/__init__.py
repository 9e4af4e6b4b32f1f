"""Data: sources of batches by index, the streams that draw from them, and the data sets a recipe can name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.data.base import Data
    from limbeck.registry import Block


def load_data(block: Block) -> Data:
    """Build the data that a recipe's block names: one of this package's, or a user's ``package.module:function``.

    Raises:
        UserError: the data cannot be read, or a user's function returned something that is no data.
    """
    from limbeck import registry
    from limbeck.data.python import as_data

    return as_data(registry.build("data", block), f"data '{block.name}'")
