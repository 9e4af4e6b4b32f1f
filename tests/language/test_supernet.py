import pytest
import torch
from torch.func import functional_call

from limbeck.errors import UserError
from limbeck.language.supernet import Architecture, exported, run_subnet, sliced_weights, subnet_shell
from limbeck.models.encoder import encoder

SIZES = {"vocab_size": 11, "context": 8, "task": "masked_lm"}
PART = Architecture(layers=(0, 2), heads=2, ffn=20)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = encoder(hidden=24, layers=3, heads=3, ffn=40, **SIZES).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(0, 0.3)  # norms and biases, too, are to differ from entry to entry
    return made


@pytest.fixture
def ids():
    return torch.randint(1, 11, (2, 8), generator=torch.Generator().manual_seed(1))


def test_an_exported_subnet_gives_what_the_sliced_one_gives(network, ids):
    shell = subnet_shell(network, PART)
    sliced = functional_call(shell, sliced_weights(network, PART, shell), (ids,)).logits
    plain = exported(network, PART)
    assert type(plain) is type(network)
    config = plain.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 16, 2)
    assert torch.equal(plain(ids).logits, sliced)


def test_the_weights_are_the_first_rows_and_columns_and_norms_are_shared(network):
    own, whole = exported(network, PART).state_dict(), network.state_dict()
    query = "encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(own["bert." + query.format(1)], whole["bert." + query.format(2)][:16, :16])
    norm = "bert.encoder.layer.{}.output.LayerNorm.weight"
    assert torch.equal(own[norm.format(1)], whole[norm.format(2)][:16])
    assert torch.equal(own["cls.predictions.decoder.weight"], own["bert.embeddings.word_embeddings.weight"])


def test_the_first_heads_are_whole(network, ids):
    """A subnet's heads see the same scores as the super-network's first ones, where all other widths are zero."""
    projection = network.bert.encoder.layer[0].attention.self.query
    own = exported(network, PART).bert.encoder.layer[0].attention.self
    states = torch.zeros(1, 5, 24)
    states[..., :16] = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    assert own.attention_head_size == 24 // 3
    assert torch.allclose(own.query(states[..., :16]), projection(states)[..., :16], atol=1e-6)


def test_the_whole_network_is_a_subnet(network, ids):
    whole = exported(network, Architecture((0, 1, 2), 3, 40))
    assert torch.equal(whole(ids).logits, network(ids).logits)


def test_gradients_reach_the_shared_weights_and_no_others(network, ids):
    shell = subnet_shell(network, PART)
    functional_call(shell, sliced_weights(network, PART, shell), (ids,)).logits.square().sum().backward()
    layers = network.bert.encoder.layer
    assert layers[1].output.dense.weight.grad is None
    gradient = layers[2].output.dense.weight.grad
    assert gradient[:16, :20].abs().min() > 0
    assert gradient[16:].abs().sum() == 0 and gradient[:, 20:].abs().sum() == 0


def test_an_empty_shell_runs_by_the_super_networks_weights(network, ids):
    shell = subnet_shell(network, PART, empty=True)
    assert {value.device.type for value in shell.parameters()} == {"meta"}
    state = torch.get_rng_state()
    shown = run_subnet(network, PART, shell, input_ids=ids).logits
    assert torch.equal(shown, exported(network, PART)(ids).logits)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.bert.embeddings.position_ids.device.type == "cpu"
    network.train()
    run_subnet(network, PART, shell, input_ids=ids)
    assert shell.training


@pytest.mark.parametrize("wrong", [Architecture((0, 3), 1, 4), Architecture((0,), 4, 4), Architecture((), 1, 4)])
def test_what_the_network_does_not_have_is_refused(network, wrong):
    with pytest.raises(UserError, match="3 layers, 3 heads and 40 neurons"):
        exported(network, wrong)
