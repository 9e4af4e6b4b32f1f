import math

import pytest
import torch
import transformers
from torch import nn

from limbeck.errors import UserError
from limbeck.models.attention import AttentionTaps, masked_log_softmax, pair_mask, projections, scores, split_heads
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


WIDTHS = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 32}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MOBILE = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2}
NETWORKS = {
    "bert": lambda t: t.BertModel(t.BertConfig(vocab_size=20, **WIDTHS)),
    "roberta": lambda t: t.RobertaModel(t.RobertaConfig(vocab_size=20, **WIDTHS)),
    "distilbert": lambda t: t.DistilBertModel(t.DistilBertConfig(vocab_size=20, dim=16, n_heads=4, n_layers=3)),
    "mobilebert": lambda t: t.MobileBertModel(t.MobileBertConfig(vocab_size=20, **WIDTHS, **MOBILE)),
    "modernbert": lambda t: t.ModernBertModel(t.ModernBertConfig(vocab_size=20, **WIDTHS, **MARKS, local_attention=16)),
    "gpt2": lambda t: t.GPT2Model(t.GPT2Config(vocab_size=20, **GPT2)),
    "llama": lambda t: t.LlamaModel(t.LlamaConfig(vocab_size=20, num_key_value_heads=2, **WIDTHS)),
}


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name](transformers).eval()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_scores_are_those_of_the_networks_own_attention(name):
    ids, model = torch.arange(3, 17).view(2, 7), network(name)
    model.set_attn_implementation("eager")
    maps = model(input_ids=ids, output_attentions=True).attentions
    model = network(name)
    there = projections(model)
    named = dict(model.named_modules())
    assert len({p.q for p in there}) == len(there) == 3 and all(p.v in named for p in there)
    taps = AttentionTaps(model, [0, 1, 2])
    model(input_ids=ids)
    for (q, k, v), theirs in zip(taps.pop(), maps, strict=True):
        own = scores(split_heads(q, taps.heads), split_heads(k, taps.groups))
        if name in ("gpt2", "llama"):
            own = own.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
        torch.testing.assert_close(own.softmax(-1), theirs, atol=1e-5, rtol=1e-4)
        assert v.shape[1] == 7
    assert (taps.heads, taps.groups) == (4, 2 if name == "llama" else 4)


def test_hooks_go():
    model = network("llama")
    taps = AttentionTaps(model, [-1])
    taps.close()
    assert not any(m._forward_hooks for m in model.modules())


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
