import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.masked import masked_text
from limbeck.data.scenes import scenes
from limbeck.errors import UserError
from limbeck.language.metrics.looks import looks, probe, thing_vectors
from limbeck.metrics.base import Evaluation


class Says(nn.Module):
    """An encoder whose state at each position is a row of a table, by the token alone; it keeps what it was shown."""

    def __init__(self, table):
        super().__init__()
        self.table, self.shown = table, []

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        self.shown.append(input_ids)
        return {"logits": self.table[input_ids], "hidden_states": (None, self.table[input_ids])}


@pytest.fixture(scope="module")
def data():
    return scenes(train_size=2, test_size=150, things=24)


def table_of(data, trait=None):
    """States that are noise, and at the names say one trait."""
    table = torch.randn(data.spec.vocab_size, 6, generator=torch.Generator().manual_seed(0))
    if trait:
        known = data.test.looks
        table[known.tokens] = nn.functional.one_hot(known.traits[trait], 6) + 0.1 * table[known.tokens]
    return table


def judged(data, model, **arguments):
    return looks(Evaluation(model, data.spec, data.test, batch_size=64), **arguments)


def test_who_knows_colours_is_right_of_colours_alone(data):
    found = judged(data, Says(table_of(data, "colour")), ridge=1.0)
    assert found.values["colour_accuracy"] == 1
    assert found.values["size_accuracy"] < 0.7
    assert found.values["looks_accuracy"] == (1 + found.values["size_accuracy"]) / 2
    assert found.details == {"things": 24, "colour_commonest": 4 / 24, "size_commonest": 8 / 24}
    assert judged(data, Says(table_of(data, "size")), ridge=1.0).values["size_accuracy"] == 1


def test_the_network_is_shown_whole_texts(data):
    model = Says(table_of(data))
    judged(data, model)
    whole = data.test.captions.batch(torch.arange(150))["input_ids"]
    assert torch.equal(torch.cat(model.shown), whole)


def test_a_things_vector_is_the_mean_state_at_its_name(data):
    class Places(nn.Module):
        def forward(self, input_ids, attention_mask, output_hidden_states=False):
            states = torch.stack([input_ids.sum(1, keepdim=True).expand_as(input_ids), input_ids * 0], -1).float()
            states[..., 1] = torch.arange(input_ids.shape[1])
            return {"logits": states, "hidden_states": (states,)}

    found = thing_vectors(Evaluation(Places(), data.spec, data.test, batch_size=64), data.test.looks.tokens)
    whole = data.test.captions.batch(torch.arange(150))["input_ids"]
    for token, vector in zip(data.test.looks.tokens.tolist(), found, strict=True):
        states = [(float(row.sum()), float(t)) for row in whole for t, other in enumerate(row) if int(other) == token]
        np.testing.assert_allclose(vector, np.mean(states, axis=0))


def test_the_probe_is_ridge_regression_on_things_not_seen():
    vectors = torch.randn(13, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.tensor([0, 0, 1, 1, 2, 2] * 2 + [0])
    vectors[:, 0] += truth  # something to be found
    right = 0
    for part in range(3):
        seen, asked = [i for i in range(13) if i % 3 != part], [i for i in range(13) if i % 3 == part]
        x = vectors[seen].numpy()
        mean, std = x.mean(0), x.std(0)
        # Ridge regression as plain least squares: rows of sqrt(ridge) are added, and the free constant is not punished.
        design = np.vstack([np.hstack([(x - mean) / std, np.ones((len(seen), 1))]), np.eye(5)[:4] * np.sqrt(0.7)])
        wanted = np.vstack([np.eye(3)[truth[seen]], np.zeros((4, 3))])
        map_ = np.linalg.lstsq(design, wanted, rcond=None)[0]
        for i in asked:
            guess = np.append((vectors[i].numpy() - mean) / std, 1) @ map_
            right += int(guess.argmax() == int(truth[i]))
    assert 0 < right < 13
    assert probe(vectors, truth, 3, 0.7) == right / 13


def test_two_things_can_be_judged():
    assert probe(torch.eye(2).double(), torch.tensor([0, 1]), 2, 1.0) == 0


def test_what_cannot_be_judged_is_refused(data):
    plain = masked_text(corpus="grammar", characters=4000, context=24)
    with pytest.raises(UserError, match="asks for the looks of things: take data 'scenes'"):
        looks(Evaluation(Says(torch.zeros(99, 2)), plain.spec, plain.test))
    for wrong in ({"folds": 1}, {"folds": 25}, {"ridge": 0.0}):
        with pytest.raises(UserError, match="needs 2 to 24 folds and a ridge above 0"):
            judged(data, Says(table_of(data)), **wrong)
    few = scenes(train_size=2, test_size=3, things=24)
    with pytest.raises(UserError, match=r"does not name \d+ of the things: give it more rows"):
        judged(few, Says(table_of(few)))

    class Silent(nn.Module):
        def forward(self, input_ids, attention_mask, output_hidden_states=False):
            return {"logits": torch.zeros(*input_ids.shape, 2)}

    with pytest.raises(UserError, match="model 'Silent' gives no hidden states"):
        judged(data, Silent())
