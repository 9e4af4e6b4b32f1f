import pytest
import torch
from torch import nn

from limbeck.data.text import text
from limbeck.errors import UserError
from limbeck.models.causal import causal_lm
from limbeck.models.forward import forward
from limbeck.registry import Block, build, find

SIZES = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 11, "context": 8}
IDS = torch.arange(16).view(2, 8) % 11
ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def made(architecture, **changes):
    torch.manual_seed(0)
    return causal_lm(architecture=architecture, **{**SIZES, **changes}).eval()


def logits(model, ids=IDS, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    return forward(model, {"input_ids": ids, "attention_mask": mask, "id": torch.arange(len(ids))}).logits


@ARCHITECTURES
def test_logits_and_hidden_states_have_the_promised_shapes(architecture):
    model = made(architecture)
    given = forward(model, {"input_ids": IDS}, output_hidden_states=True)
    assert given.logits.shape == (2, 8, 11)
    assert [h.shape for h in given.hidden_states] == [(2, 8, 16)] * 3
    assert find("model", "causal_lm").facts["gives"] == {"logits", "hidden_states", "text"}


@ARCHITECTURES
def test_a_prediction_never_sees_what_it_predicts(architecture):
    changed = IDS.clone()
    changed[:, 5] = 0
    before, after = logits(made(architecture)), logits(made(architecture), changed)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])


@ARCHITECTURES
def test_padding_on_the_right_does_not_change_the_rest(architecture):
    model, mask = made(architecture), torch.ones_like(IDS)
    mask[1, 5:] = 0
    other = IDS.clone()
    other[1, 5:] = 3
    assert torch.allclose(logits(model, mask=mask)[1, :5], logits(model, other, mask)[1, :5], atol=1e-6)
    assert torch.allclose(logits(model, mask=mask)[1, :5], logits(model, IDS[1:, :5])[0], atol=1e-6)


@ARCHITECTURES
def test_the_seed_decides_the_weights(architecture):
    one, same = made(architecture), made(architecture)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    torch.manual_seed(1)
    other = causal_lm(architecture=architecture, **SIZES)
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)


@ARCHITECTURES
def test_tied_embeddings_are_one_tensor_and_untied_are_two(architecture):
    tied, untied = made(architecture), made(architecture, tie=False)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert untied.get_input_embeddings().weight is not untied.get_output_embeddings().weight


def test_dropout_is_off_by_default_and_on_when_asked():
    def differs(model):
        model.train()
        return not torch.equal(logits(model), logits(model))

    assert not differs(made("gpt2")) and not differs(made("llama"))
    assert differs(made("gpt2", dropout=0.5)) and differs(made("llama", dropout=0.5))


def test_the_attentions_agree():
    assert torch.allclose(logits(made("llama")), logits(made("llama", attention="eager")), atol=1e-5)


def test_it_is_built_from_the_facts_of_the_data():
    data = text(corpus="grammar", characters=3000, context=16)
    offers = {**data.spec.offers(), "data": data}
    model = build("model", Block("causal_lm", {"hidden": 16, "layers": 1, "heads": 2}), offers=offers)
    assert isinstance(model, nn.Module)
    assert model.config.vocab_size == data.spec.vocab_size and model.config.n_positions == 16
    assert model.config.eos_token_id == data.extra["tokenizer"].eos_token_id
    with pytest.raises(UserError, match=r"smaller than the tokenizer's \d\d"):
        build("model", Block("causal_lm", {"hidden": 16, "layers": 1, "heads": 2, "vocab_size": 20}), offers=offers)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="hidden 16 is not a multiple of heads 3"):
        made("gpt2", heads=3)
