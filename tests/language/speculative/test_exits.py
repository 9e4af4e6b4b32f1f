import pytest
import torch

from limbeck.errors import UserError
from limbeck.language.speculative.exits import depth_of, exit_at, read_out, watched
from limbeck.models.causal import causal_lm


def network(architecture="llama", layers=3):
    torch.manual_seed(0)
    return causal_lm(architecture=architecture, hidden=16, layers=layers, heads=2, vocab_size=9, context=12).eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_model_cut_off_shares_the_weights_and_leaves_the_whole_as_it_was(architecture):
    model, tokens = network(architecture), torch.randint(9, (2, 6))
    before = model(input_ids=tokens).logits
    early = exit_at(model, 2)
    with watched(model) as hidden:
        torch.testing.assert_close(model(input_ids=tokens).logits, before)
    torch.testing.assert_close(early(input_ids=tokens).logits, read_out(model, hidden[1]))
    torch.testing.assert_close(read_out(model, hidden[-1]), before)
    assert (depth_of(early), depth_of(model), model.config.get_text_config().num_hidden_layers) == (2, 3, 3)
    with watched(model) as hidden:
        pass
    model(input_ids=tokens)
    assert not hidden, "nothing is left behind in the model"
    shared = {id(p) for p in model.parameters()}
    assert all(id(p) in shared for p in early.parameters())


def test_an_exit_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="after layer 1 to 3, not 4"):
        exit_at(network(), 4)
