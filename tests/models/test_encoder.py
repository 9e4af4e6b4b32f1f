import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.data.masked import masked_text
from limbeck.errors import UserError
from limbeck.models.encoder import encoder
from limbeck.models.forward import forward

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "vocab_size": 60, "context": 24}


def test_it_is_for_what_the_data_is_for():
    pairs = labelled_text(corpus="nli", train_size=10, test_size=4, context=24)
    model = encoder(**SIZES, classes=3, data=pairs).eval()
    batch = pairs.train.batch(torch.arange(4))
    assert forward(model, batch).logits.shape == (4, 3)
    other = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    assert not torch.allclose(forward(model, batch).logits, forward(model, other).logits)
    hidden = masked_text(corpus="grammar", characters=2000, context=24)
    model = encoder(**SIZES, data=hidden)
    assert forward(model, hidden.train.batch(torch.arange(2))).logits.shape == (2, 24, 60)


def test_padding_changes_nothing():
    data = labelled_text(corpus="topics", train_size=10, test_size=4, context=24)
    model, batch = encoder(**SIZES, classes=4, data=data).eval(), data.train.batch(torch.arange(4))
    longest = int(batch["attention_mask"].sum(1).max())
    short = {
        k: v[:, :longest] if k in ("input_ids", "attention_mask", "token_type_ids") else v for k, v in batch.items()
    }
    torch.testing.assert_close(forward(model, batch).logits, forward(model, short).logits, rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="not a multiple of heads"):
        encoder(**{**SIZES, "heads": 3}, task="masked_lm")
    with pytest.raises(UserError, match="say what it is for"):
        encoder(**SIZES)
