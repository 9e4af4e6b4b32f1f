"""A small graph with classes."""

from __future__ import annotations

import pytest

from limbeck.data.base import Data
from limbeck.data.graph_nodes import graph_nodes


@pytest.fixture
def nodes() -> Data:
    return graph_nodes(nodes=90, classes=3, per_class=6, test_size=40, words=6, degree=5.0, clarity=0.6)
