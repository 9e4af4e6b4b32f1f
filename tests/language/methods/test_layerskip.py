import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.language.methods.layerskip import LayerSkip, exit_weights, skip_rates
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=12)


def network(data, architecture="llama", layers=4):
    torch.manual_seed(1)
    sizes = {"hidden": 16, "layers": layers, "heads": 2, "vocab_size": data.spec.vocab_size, "context": 12}
    return causal_lm(architecture=architecture, **sizes)


def ready(data, architecture="llama", **arguments):
    method = LayerSkip(**arguments)
    method.setup(Parts(network(data, architecture), {}, data.spec, streams={"data": data.train}))
    return method


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_skipping_an_exit_is_the_model_cut_off_there(data, architecture):
    method = ready(data, architecture, drop=0.0, curriculum="none", exit_scale=0.4)
    batch = data.train.batch(torch.arange(3))
    batch["labels"][0, :4] = -100
    found = method.exits(batch, Clock(0, 10))
    weights = [0.4 * n for n in (1, 3, 6)] + [4 + 0.4 * 6]
    for layers, weight in enumerate(weights, 1):
        short = network(data, architecture, layers=layers)
        whole = method.student.state_dict()
        short.load_state_dict({k: whole[k] for k in short.state_dict()})
        logits = short.eval()(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        term = found["last" if layers == 4 else f"exit_{layers}"]
        torch.testing.assert_close(term.sum, loss, rtol=1e-4, atol=1e-4)
        assert term.weight == pytest.approx(weight / sum(weights)) and int(term.count) == 3 * 11 - 3


def test_a_row_skips_layers_of_its_own_and_the_later_the_more_often():
    torch.testing.assert_close(skip_rates(0.2, 3), torch.tensor([0.0, 0.2 * (2**0.5 - 1), 0.2], dtype=torch.float64))
    assert skip_rates(0.2, 1).tolist() == [0.0]


def test_a_skipped_layer_hands_on_what_it_was_given(data):
    """The last layer, skipped in some rows: their last exit says what the exit before it says."""
    method = ready(data, drop=0.9, curriculum="none")
    batch, clock = data.train.batch(torch.arange(16)), Clock(3, 10)
    skipped = clock.uniform(batch["id"], (4,), "layers") < skip_rates(0.9, 4)
    assert int(skipped[:, 3].sum()) > 4 and not skipped[:, 0].any()
    for rows in (skipped[:, 3], ~skipped[:, 3]):
        part = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        if len(part["id"]):
            found = method.exits(part, clock)
            same = torch.allclose(found["last"].sum, found["exit_3"].sum)
            assert same == bool(rows.equal(skipped[:, 3]))


def test_the_last_exit_teaches_the_others_without_learning_from_them(data):
    method = ready(data, drop=0.0, curriculum="none", exit_loss="kl")
    batch = data.train.batch(torch.arange(3))
    found = method.exits(batch, Clock(0, 10))
    last = [p for n, p in method.student.named_parameters() if "layers.3" in n]
    assert all(g is None for g in torch.autograd.grad(found["exit_3"].sum, last, allow_unused=True, retain_graph=True))
    assert all(g is not None for g in torch.autograd.grad(found["last"].sum, last))


def test_the_curricula_switch_exits_on_in_turn_or_from_the_last_one_down(data):
    turns = ready(data, rotation=3)
    assert [turns.open(Clock(step, 80)).tolist() for step in (0, 1, 2)] == [
        [False, False, True, True],
        [True, False, False, True],
        [False, True, False, True],
    ]
    gradual = ready(data, curriculum="gradual")
    assert [int(gradual.open(Clock(step, 80)).sum()) for step in (0, 9, 10, 20, 30, 79)] == [1, 1, 2, 3, 4, 4]
    assert ready(data, curriculum="none").open(Clock(0, 80)).all()


def test_weights_are_of_the_exits_that_are_on_and_sum_to_one():
    weights = exit_weights(torch.tensor([False, True, True]), 0.5)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.5, 4.5], dtype=torch.float64) / 6.0)


def test_numbers_out_of_range_and_other_models_are_refused(data):
    with pytest.raises(UserError, match=r"drop must be in \[0, 1\).*got drop 1.0"):
        ready(data, drop=1.0)
    with pytest.raises(UserError, match="a causal model of transformers with a list of layers, not Linear"):
        LayerSkip().setup(Parts(torch.nn.Linear(2, 2), {}, data.spec))
