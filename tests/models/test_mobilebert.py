import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.errors import UserError
from limbeck.models.mobilebert import mobilebert

SIZES = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 20, "context": 12}


def test_blocks_are_thin_or_wide_inside_and_stack_feed_forward_layers():
    thin = mobilebert(**SIZES, bottleneck=8, ffn=12, stacked=3, classes=5)
    wide = mobilebert(**SIZES, bottleneck=32, stacked=1, norm="layer_norm", activation="gelu", task="masked_lm")
    ids = torch.arange(10).view(2, 5)
    assert thin(input_ids=ids).logits.shape == (2, 5)
    assert wide(input_ids=ids).logits.shape == (2, 5, 20)
    for model, inner, stacked in ((thin, 8, 3), (wide, 32, 1)):
        block = model.mobilebert.encoder.layer[1]
        assert block.attention.self.query.weight.shape == (inner, inner)
        assert len(getattr(block, "ffn", ())) == stacked - 1  # the last is the block's own
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert [s.shape[-1] for s in states] == [16, 16, 16]
    assert type(thin.mobilebert.encoder.layer[0].output.LayerNorm).__name__ == "NoNorm"
    assert isinstance(wide.mobilebert.encoder.layer[0].output.LayerNorm, torch.nn.LayerNorm)
    assert thin.mobilebert.encoder.layer[0].intermediate.dense.weight.shape == (12, 8)


def test_it_is_for_what_the_data_is_for_and_longer_padding_changes_nothing():
    data = masked_text(corpus="grammar", characters=2000, context=12)
    model = mobilebert(**SIZES | {"vocab_size": data.spec.vocab_size}, bottleneck=8, data=data).eval()
    pad = data.extra["tokenizer"].pad_token_id
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.cat([ids, torch.full((1, 3), pad)], 1)
    mask = (torch.arange(7) < 4).long()[None]
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, :4], model(input_ids=ids).logits)


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="bottleneck 7 is not a multiple of heads 2"):
        mobilebert(**SIZES, bottleneck=7, classes=2)
    with pytest.raises(UserError, match="embedding 16 must be below hidden 16"):
        mobilebert(**SIZES, bottleneck=8, embedding=16, classes=2)
    with pytest.raises(UserError, match="say what it is for"):
        mobilebert(**SIZES, bottleneck=8)
