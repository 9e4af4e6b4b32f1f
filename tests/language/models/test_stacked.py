import pytest
import torch

from limbeck.data.tokenizer import known_words, tokenizer_hash
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.language.models.stacked import inner, mean_pooled, pooled_lm, stacked_lm
from limbeck.models.building import build_model
from limbeck.models.causal import causal_lm
from limbeck.models.encoder import encoder
from limbeck.registry import Block

BODY = Block("causal_lm", {"architecture": "llama", "hidden": 16, "layers": 1, "heads": 2})
READS = Block("encoder", {"hidden": 12, "layers": 1, "heads": 2, "task": "masked_lm"})
SIZES = {"classes": 3, "vocab_size": 20, "context": 8}
BATCH = {
    "input_ids": torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
}


def below():
    torch.manual_seed(3)
    return encoder(hidden=12, layers=1, heads=2, vocab_size=20, context=8, task="masked_lm").eval()


def lm(hidden=16):
    torch.manual_seed(4)
    return causal_lm(architecture="llama", hidden=hidden, layers=1, heads=2, vocab_size=30, context=8).eval()


def stack():
    torch.manual_seed(5)
    return stacked_lm(encoder=READS, body=BODY, rank=2, **SIZES).eval()


def test_the_mean_is_over_what_is_there():
    states = torch.arange(12.0).view(2, 3, 2)
    found = mean_pooled(states, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert found.tolist() == [[1.0, 2.0], [6.0, 7.0]]


def test_a_pooled_model_classifies_the_mean_of_the_bodys_last_states():
    torch.manual_seed(0)
    model, other = pooled_lm(body=BODY, rank=2, classes=3, vocab_size=30, context=8).eval(), lm()
    model.begin(other)
    states = other(**BATCH, output_hidden_states=True).hidden_states[-1]
    found = model(**BATCH)
    assert torch.allclose(found["pooled"][1], states[1, :2].mean(0), atol=1e-5)
    assert torch.allclose(found["logits"], model.head(found["pooled"]))


def test_a_stack_hands_the_encoders_states_to_the_body():
    model, first, second = stack(), below(), lm()
    model.assemble(first, second)
    states = first(**BATCH, output_hidden_states=True).hidden_states[-1]
    out = second.model(inputs_embeds=model.up(states), attention_mask=BATCH["attention_mask"]).last_hidden_state
    assert torch.allclose(model(**BATCH)["pooled"], mean_pooled(out, BATCH["attention_mask"]), atol=1e-5)


def test_what_is_taken_is_frozen_and_the_map_and_adapters_learn():
    model = stack()
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"up.weight", "up.bias"} <= learn
    assert all(name.startswith("up.") or ".lora_" in name for name in learn)
    assert not any("embed_tokens" in name for name, _ in model.named_parameters() if name.startswith("body"))
    before = {name: p.clone() for name, p in model.named_parameters() if name in learn}
    model.assemble(below(), lm())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in learn)


def test_padding_changes_nothing():
    model = stack()
    short = {name: values[1:, :2] for name, values in BATCH.items()}
    assert torch.allclose(model(**BATCH)["logits"][1:], model(**short)["logits"], atol=1e-5)


def test_it_is_stored_and_read(tmp_path):
    made = build_model(Block("stacked_lm", {"encoder": READS, "body": BODY}), offers=SIZES, seed=0)
    store.save(tmp_path, Stored(made.module, made.block))
    assert torch.equal(store.load(tmp_path).module(**BATCH)["logits"], made.module.eval()(**BATCH)["logits"])


def test_shapes_that_differ_are_refused():
    with pytest.raises(UserError, match=r"the language model has \[.*where the student has"):
        stack().assemble(below(), lm(hidden=32))
    with pytest.raises(UserError, match="the encoder has"):
        stack().assemble(lm(), lm())
    with pytest.raises(UserError, match="the data has none"):
        pooled_lm(body=BODY, vocab_size=30, context=8)
    assert inner(torch.nn.Linear(1, 1)).in_features == 1


def test_its_tokenizer_is_stored_beside_it(tmp_path):
    words = known_words(["one", "two"])
    made = build_model(Block("pooled_lm", {"body": BODY}), offers=SIZES, seed=0)
    store.save(tmp_path, Stored(made.module, made.block), tokenizer=words)
    read = store.load(tmp_path).module
    assert read.tokenizer.get_vocab() == words.get_vocab()
    assert read.tokenizer_hash == tokenizer_hash(words)
