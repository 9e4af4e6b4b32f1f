import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.errors import UserError

DATA = {"corpus": "grammar", "characters": 20_000, "context": 50}


def everything(data, view=0):
    return data.train.batch(torch.arange(len(data.train)), view)


def test_the_label_is_the_token_at_each_hidden_place_and_nowhere_else():
    data = masked_text(**DATA)
    whole, batch = data.train.rows.batch(torch.arange(len(data.train))), everything(data)
    hidden = batch["label"] != -100
    assert torch.equal(batch["label"][hidden], whole["input_ids"][hidden])
    assert torch.equal(batch["input_ids"][~hidden], whole["input_ids"][~hidden])


def test_shares_are_as_asked():
    data = masked_text(**DATA, rate=0.3, masked=0.5, replaced=0.3)
    batch, words = everything(data), data.extra["tokenizer"]
    hidden = batch["label"] != -100
    seen, true = batch["input_ids"][hidden], batch["label"][hidden]
    assert abs(hidden.float().mean() - 0.3) < 0.02
    assert abs((seen == words.mask_token_id).float().mean() - 0.5) < 0.03
    # A random token is the true one now and then.
    assert abs((seen == true).float().mean() - 0.2) < 0.04
    assert not torch.isin(seen[seen != words.mask_token_id], data.train.special).any()


def test_it_depends_on_the_row_and_the_view_alone():
    data = masked_text(**DATA)
    first, again, other = everything(data), everything(data), everything(data, view=1)
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["label"], other["label"])
    alone = data.train.batch(torch.tensor([3]))
    assert torch.equal(alone["input_ids"][0], first["input_ids"][3])


def test_shares_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"rate must be in \(0, 1\)"):
        masked_text(**DATA, rate=0.0)
    with pytest.raises(UserError, match="add up to 1 at most"):
        masked_text(**DATA, masked=0.8, replaced=0.3)
