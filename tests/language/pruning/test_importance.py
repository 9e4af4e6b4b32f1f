import math

import pytest
import torch
import transformers
from torch import nn

from limbeck.errors import UserError
from limbeck.language.pruning import (
    Importance,
    angular_distances,
    block_influence,
    blocks_of,
    evenly,
    importance,
    loss_increase,
    most_important,
    random_importance,
    shape_of,
    without_span,
)
from limbeck.language.pruning.choice import Cut, choose, cut_out, target_shape

LLAMA = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **LLAMA, num_key_value_heads=2, intermediate_size=24, max_position_embeddings=16, attn_implementation="eager"
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for p in model.parameters():
        p.data.normal_(0.1, 0.3)
    return model


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=11, n_embd=16, n_layer=3, n_head=4)).eval()


def batch(seed=0, rows=4):
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (rows, 7), generator=drawn)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def row(whole, i):
    """A row without its padding."""
    kept = whole["attention_mask"][i].bool()
    return whole["input_ids"][i : i + 1, kept]


def aggregated(values, how):
    return values.mean(0) if how == "mean" else values.pow(2).mean(0).sqrt()


@torch.no_grad()
def block_by_hand(block, state, model):
    """What a Llama block's norms, heads and neurons give for one row [1, T, D], and what it gives itself."""
    rotary = model.model.rotary_emb(state, torch.arange(state.shape[1])[None])
    seen = block.input_layernorm(state)
    q = block.self_attn.q_proj(seen).unflatten(-1, (4, 4)).transpose(1, 2)
    k = block.self_attn.k_proj(seen).unflatten(-1, (2, 4)).transpose(1, 2)
    v = block.self_attn.v_proj(seen).unflatten(-1, (2, 4)).transpose(1, 2)
    q, k = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, *rotary)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.transpose(-1, -2) / 2
    causal = torch.ones(scores.shape[-2:]).tril().bool()
    heads = scores.masked_fill(~causal, -math.inf).softmax(-1) @ v
    state = state + block.self_attn.o_proj(heads.transpose(1, 2).flatten(2))
    read = block.post_attention_layernorm(state)
    neurons = nn.functional.silu(block.mlp.gate_proj(read)) * block.mlp.up_proj(read)
    return [seen[0], read[0]], heads[0], neurons[0], state + block.mlp.down_proj(neurons)


@pytest.mark.parametrize(("sequence", "over"), [("l2", "mean"), ("mean", "l2"), ("mean", "mean")])
def test_importance_is_the_size_of_activations_over_tokens_then_samples(sequence, over):
    model, whole = llama(), batch()
    hidden, groups, ffn = [], [], []
    for i in range(4):
        state, channels = model.model.embed_tokens(row(whole, i)).detach(), torch.zeros(2 * 3, 16)
        of_groups, of_neurons = [], []
        for number, block in enumerate(blocks_of(model)):
            norms, heads, neurons, state = block_by_hand(block, state, model)
            channels[2 * number : 2 * number + 2] = torch.stack([aggregated(n.abs(), sequence) for n in norms])
            of_heads = aggregated(heads.norm(dim=-1).T, sequence)
            of_groups.append(of_heads)
            of_neurons.append(aggregated(neurons.abs(), sequence))
        hidden.append(channels)
        groups.append(torch.stack(of_groups))
        ffn.append(torch.stack(of_neurons))
    wanted = [aggregated(torch.stack(found), over) for found in (hidden, groups, ffn)]
    pieces = [{k: v[rows] for k, v in whole.items()} for rows in (slice(0, 1), slice(1, 4))]
    for batches in ([whole], pieces):
        found = importance(model, batches, sequence=sequence, batch=over)
        near = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
        torch.testing.assert_close(found.hidden, wanted[0].sum(0), **near)
        torch.testing.assert_close(found.groups, wanted[1].unflatten(1, (2, 2)).sum(-1), **near)
        torch.testing.assert_close(found.ffn, wanted[2], **near)


def test_the_state_of_the_model_stays():
    model = gpt2().train()
    importance(model, [batch()])
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_a_channel_that_is_nowhere_and_a_neuron_that_sleeps_matter_least():
    model = gpt2()
    block = model.transformer.h[1]
    block.mlp.c_fc.weight.data[:, 7], block.mlp.c_fc.bias.data[7] = 0, 0
    for b in blocks_of(model):
        for norm in (b.ln_1, b.ln_2):
            norm.weight.data[3], norm.bias.data[3] = 0, 0
    found = importance(model, [batch()])
    assert found.hidden.argmin() == 3 and found.hidden[3] == 0
    assert found.ffn[1].argmin() == 7 and found.ffn[1, 7] == 0


@torch.no_grad()
def states_by_hand(model, ids):
    state, found = model.model.embed_tokens(ids), []
    for block in blocks_of(model):
        found.append(state[0])
        state = block_by_hand(block, state, model)[-1]
    return torch.stack([*found, state[0]])


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def test_block_influence_and_angular_distance_are_their_formulas():
    model, whole = llama(), batch()
    influence, angles = [], []
    for i in range(4):
        states = states_by_hand(model, row(whole, i))
        influence.append(1 - cosine(states[:-1], states[1:]))
        angles.append(cosine(states[:-2, -1], states[2:, -1]).arccos() / math.pi)
    near = {"rtol": 1e-4, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(block_influence(model, [whole]), torch.cat(influence, 1).mean(1), **near)
    torch.testing.assert_close(angular_distances(model, [whole], 2), torch.stack(angles).mean(0), **near)
    with pytest.raises(ValueError, match="between 1 and the 3 blocks"):
        angular_distances(model, [whole], 4)


def test_loss_increase_is_the_loss_of_the_model_without_each_block():
    model, whole = llama(), batch()

    def loss():
        with torch.no_grad():
            return model(**whole, use_cache=False).loss

    found, full, blocks = loss_increase(model, [whole]), loss(), blocks_of(model)
    for i in range(3):
        model.model.layers = nn.ModuleList(b for j, b in enumerate(blocks) if j != i)
        model.config.num_hidden_layers = 2
        torch.testing.assert_close(float(found[i]), float(loss() - full), rtol=1e-3, atol=1e-5)


def test_which_blocks_stay():
    assert most_important(torch.tensor([0.5, 0.1, 0.5, 0.9]), 2) == (0, 3)
    assert without_span(torch.tensor([0.4, 0.2, 0.3]), 4, 2) == (0, 3)
    assert evenly(6, 3) == (0, 2, 5) and evenly(6, 1) == (0,) and evenly(4, 4) == (0, 1, 2, 3)


def test_random_choice_is_another_and_is_drawn_from_torchs_generator():
    model = llama()
    torch.manual_seed(5)
    first = random_importance(model)
    torch.manual_seed(5)
    again, other = random_importance(model), random_importance(model)
    assert isinstance(first, Importance) and torch.equal(first.ffn, again.ffn) and not torch.equal(first.ffn, other.ffn)
    cut = {"hidden": 8, "ffn": 12, "heads": 2}
    by_size = choose(model, Cut(**cut), [batch()])
    by_chance = choose(model, Cut(**cut, by="random"), [batch()])
    assert not torch.equal(by_size.hidden, by_chance.hidden)


@pytest.mark.parametrize("depth", ["block_influence", "loss", "angular", "even"])
def test_every_way_to_cut_gives_the_sizes_that_were_asked_for(depth):
    small = cut_out(llama(), Cut(layers=2, hidden=10, heads=2, ffn=9, depth=depth), [batch()])
    shape = shape_of(small)
    assert (shape.layers, shape.hidden, shape.heads, shape.groups, shape.ffn) == (2, 10, 2, 1, 9)


def test_where_heads_and_channels_are_tied_one_follows_from_the_other():
    assert target_shape(gpt2(), Cut(hidden=8)).heads == 2
    assert target_shape(gpt2(), Cut(heads=3)).hidden == 12


@pytest.mark.parametrize(
    ("make", "cut", "says"),
    [
        (llama, {"hidden": 32}, "hidden 32 cannot be cut out of a teacher with 16"),
        (llama, {"layers": 0}, "layers 0"),
        (llama, {"heads": 3}, "multiple of 2"),
        (gpt2, {"hidden": 8, "heads": 4}, "of 4 channels each"),
        (gpt2, {"hidden": 9}, "hidden 9 and heads 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, cut, says):
    with pytest.raises(UserError, match=says):
        target_shape(make(), Cut(**cut))
