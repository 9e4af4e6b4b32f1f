import pytest
import torch

from limbeck.data.commands import INTENTS, SLOTS, commands
from limbeck.data.labelled import labelled_text
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.models.building import build_model
from limbeck.models.forward import forward
from limbeck.registry import Block

SIZES = {"hidden": 16, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def data():
    return commands(train_size=8, test_size=4)


def made(data):
    return build_model(
        Block("tagger", SIZES), offers={**data.spec.offers(), "data": data}, seed=0, spec=data.spec.as_dict()
    )


def test_it_gives_intents_slots_and_words(data):
    module, batch = made(data).module.eval(), data.train.batch(torch.arange(5))
    found = forward(module, batch, output_hidden_states=True)
    assert found.logits.shape == (5, len(INTENTS)) and found.slot_logits.shape == (5, 20, len(SLOTS))
    assert [h.shape for h in found.hidden_states] == [(5, 20, 16)] * 3
    assert torch.allclose(found.logits, module.intent(found.hidden_states[-1][:, 0]))
    words = forward(module, batch, words=True)
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    assert torch.equal(words.logits, module.encoder(**given).logits)


def test_it_is_stored_and_read_without_its_data(data, tmp_path):
    stored = made(data)
    store.save(tmp_path / "model", stored)
    again = store.load(tmp_path / "model").module.eval()
    batch = data.train.batch(torch.arange(3))
    assert torch.equal(forward(again, batch).slot_logits, forward(stored.module.eval(), batch).slot_logits)


def test_data_without_slots_is_refused():
    texts = labelled_text(corpus="topics", train_size=8, test_size=4, context=20)
    with pytest.raises(UserError, match="no classes or no slots"):
        made(texts)
