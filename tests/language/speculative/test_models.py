"""Drafts are stored alone, without their target, and come back as they were."""

import pytest
import torch

from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.registry import Block, build

DRAFTS = [
    Block("medusa_heads", {"hidden": 8, "vocab_size": 5, "count": 2}),
    Block("eagle_draft", {"hidden": 8, "heads": 2, "fused": 3}),
    Block("falcon_draft", {"hidden": 8, "heads": 2, "block": 2}),
    Block(
        "medusa_lm", {"base": Block("causal_lm", {"hidden": 8, "layers": 1, "heads": 2, "vocab_size": 5, "context": 6})}
    ),
]


@pytest.mark.parametrize("block", DRAFTS, ids=lambda block: block.name)
def test_a_draft_comes_back_from_disk(block, tmp_path):
    made = build("model", block)
    store.save(tmp_path, Stored(made, block, frozenset({"draft"})))
    again = store.load(tmp_path).module
    assert type(again) is type(made) and list(again.state_dict()) == list(made.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in made.state_dict().items())
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
