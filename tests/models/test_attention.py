import math

import pytest
import torch
import transformers
from torch import nn

from limbeck.errors import UserError
from limbeck.models.attention import AttentionTaps, masked_log_softmax, pair_mask, projections, scores, split_heads
from limbeck.models.causal import causal_lm
from limbeck.models.encoder import encoder

SIZES = {"hidden": 16, "layers": 3, "heads": 4, "vocab_size": 20, "context": 12}


def bert(attention="sdpa"):
    torch.manual_seed(0)
    return encoder(**SIZES, task="masked_lm", attention=attention).eval()


def batch():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    return {"input_ids": torch.arange(12).view(2, 6) % 20, "attention_mask": mask}


def test_attention_maps_from_the_projections_are_those_of_the_model():
    model = bert("eager")
    taps = AttentionTaps(model, [0, -1])
    maps = model(**batch(), output_attentions=True).attentions
    for (q, k, _), layer in zip(taps.pop(), (0, 2), strict=True):
        own = masked_log_softmax(scores(split_heads(q, 4), split_heads(k, 4)), batch()["attention_mask"]).exp()
        torch.testing.assert_close(own, maps[layer], rtol=1e-4, atol=1e-6)
    taps.close()
    model(**batch())
    assert not taps._taps.values


def test_the_kernel_does_not_matter():
    found = []
    for kind in ("sdpa", "eager"):
        model = bert(kind)
        taps = AttentionTaps(model, [1])
        model(**batch())
        found.append(taps.pop()[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "llama"])
def test_projections_are_found_in_every_layer(name):
    if name == "distilbert":
        model = transformers.DistilBertModel(transformers.DistilBertConfig(dim=8, n_heads=2, n_layers=3, hidden_dim=8))
    elif name == "roberta":
        config = transformers.RobertaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=3)
        model = transformers.RobertaModel(config)
    else:
        model = bert() if name == "bert" else causal_lm(**SIZES, architecture="llama")
    there = projections(model)
    assert len(there) == 3
    named = dict(model.named_modules())
    for place in there:
        assert {isinstance(named[path], nn.Linear) for path in (place.q, place.k, place.v)} == {True}
    assert len({p.q for p in there} | {p.k for p in there} | {p.v for p in there}) == 9


def test_what_cannot_be_found_is_said():
    with pytest.raises(UserError, match="no attention layers"):
        projections(nn.Linear(2, 2))
    with pytest.raises(UserError, match="3 attention layers, so there is no layer 3"):
        AttentionTaps(bert(), [3])
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        split_heads(torch.zeros(1, 2, 16), 3)


def test_padding_takes_no_part():
    mask = torch.tensor([[1, 1, 0]])
    assert pair_mask(mask).tolist() == [[[[True, True, False], [True, True, False], [False, False, False]]]]
    law = masked_log_softmax(torch.zeros(1, 1, 3, 3), mask)
    assert law[0, 0, 0].tolist() == pytest.approx([-math.log(2), -math.log(2), -math.inf])
