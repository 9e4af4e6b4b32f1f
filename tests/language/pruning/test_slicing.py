from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from limbeck.errors import UserError
from limbeck.language.pruning import blocks_of, bypassed, everything, shape_of, sliced

SIZES = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=4, n_head=4),
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE, attention_bias=True, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8),
}
IDS = torch.tensor([[1, 4, 2, 9, 3, 7], [5, 5, 10, 0, 8, 6]])


def network(kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).double().eval()
    for p in model.parameters():  # biases and norms too, which begin as constants
        p.data.normal_(0.2, 0.5)
    return model


def exact_norm(self, hidden_states):
    """RMSNorm without its cast to float32, which is all that such a model computes in less than float64."""
    mean = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(mean + self.variance_epsilon)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture(params=CONFIGS)
def model(request, monkeypatch):
    made = network(request.param)
    for kind in {type(m) for m in made.modules() if type(m).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(kind, "forward", exact_norm)
    return made


def test_all_of_a_model_is_the_model(model):
    whole = sliced(model, everything(shape_of(model)))
    assert type(whole) is type(model)
    assert whole.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(logits(whole), logits(model), rtol=0, atol=0)


def test_without_channels_that_are_zero_the_function_is_the_same(model):
    shape = shape_of(model)
    gpt2 = model.config.model_type == "gpt2"
    gone = torch.tensor([1, 6, 7, 12])
    kept = torch.tensor([i for i in range(16) if i not in gone])

    def only(weight, axis):
        """Zero in the channels that go; without a mean over the others, which LayerNorm takes off."""
        moved = weight.data.movedim(axis, -1)
        moved[..., gone] = 0
        if gpt2:
            moved[..., kept] -= moved[..., kept].mean(-1, keepdim=True)

    if gpt2:
        only(model.transformer.wte.weight, 1)
        only(model.transformer.wpe.weight, 1)
        writers = [layer for block in blocks_of(model) for layer in (block.attn.c_proj, block.mlp.c_proj)]
        axis = 1
    else:
        only(model.model.embed_tokens.weight, 1)
        writers = [layer for block in blocks_of(model) for layer in (block.self_attn.o_proj, block.mlp.down_proj)]
        axis = 0
    for layer in writers:
        only(layer.weight, axis)
        if layer.bias is not None:
            only(layer.bias, 0)
    if gpt2:
        # (0 - mean) / std is zero without a mean, but the bias is not: what reads these channels must see none.
        for norm in (n for b in blocks_of(model) for n in (b.ln_1, b.ln_2)):
            norm.bias.data[gone] = 0
        model.transformer.ln_f.bias.data[gone] = 0
    cut = replace(everything(shape), hidden=kept)
    if gpt2:  # as wide as its heads: one head goes too, which must give nothing
        for block in blocks_of(model):
            block.attn.c_proj.weight.data[4:8] = 0
        cut = replace(cut, groups=(torch.tensor([0, 2, 3]),) * 4)
    small = sliced(model, cut)
    assert shape_of(small).hidden == 12
    # Qwen3 has one epsilon for these norms and for those of its queries, which keep their width.
    near = 1e-6 if model.config.model_type == "qwen3" else 1e-9
    torch.testing.assert_close(logits(small), logits(model), rtol=near, atol=near)
    plain = sliced(model, cut, rescale=False)
    assert not torch.allclose(logits(plain), logits(model), rtol=1e-3)


def test_without_neurons_and_groups_that_give_nothing_the_function_is_the_same(model):
    if model.config.model_type == "gpt2":
        pytest.skip("its heads cannot go alone")
    neurons, groups = [], []
    for i, block in enumerate(blocks_of(model)):
        gone = i % 2
        block.mlp.down_proj.weight.data[:, [i, 10]] = 0
        wide = shape_of(model).head_dim * 2
        block.self_attn.o_proj.weight.data[:, gone * wide : (gone + 1) * wide] = 0
        neurons.append(torch.tensor([n for n in range(24) if n not in (i, 10)]))
        groups.append(torch.tensor([1 - gone]))
    small = sliced(model, replace(everything(shape_of(model)), ffn=tuple(neurons), groups=tuple(groups)))
    assert (shape_of(small).heads, shape_of(small).groups, shape_of(small).ffn) == (2, 1, 22)
    assert shape_of(small).head_dim == shape_of(model).head_dim
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-9, atol=1e-9)


def test_dropping_blocks_is_running_without_them(model):
    shape = shape_of(model)
    everywhere = everything(shape)
    small = sliced(model, replace(everywhere, layers=(0, 3), groups=everywhere.groups[:2], ffn=everywhere.ffn[:2]))
    with bypassed(model, [1, 2]):
        without = logits(model)
    torch.testing.assert_close(logits(small), without, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(without, logits(model))
    # and so it is where the list of blocks itself is shorter
    parent = model.transformer if model.config.model_type == "gpt2" else model.model
    name = "h" if model.config.model_type == "gpt2" else "layers"
    setattr(parent, name, nn.ModuleList([getattr(parent, name)[i] for i in (0, 3)]))
    model.config.num_hidden_layers = 2
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-12, atol=1e-12)


def test_the_smaller_model_loads_in_plain_transformers(model, tmp_path):
    shape = shape_of(model)
    torch.manual_seed(3)
    kept = replace(
        everything(shape),
        layers=(0, 2),
        hidden=torch.tensor([0, 2, 3, 5, 8, 9, 10, 15]),
        groups=(torch.tensor([0, 3]) if shape.groups == 4 else torch.tensor([1]),) * 2,
        ffn=(torch.tensor([1, 2, 20]), torch.tensor([0, 5, 23])),
    )
    small = sliced(model, kept)
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded), logits(small), rtol=0, atol=0)
    tied = bool(model.config.tie_word_embeddings)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied
    written = small.generate(IDS[:, :3], max_new_tokens=4, do_sample=False)
    assert written.shape[1] <= 7


def test_what_cannot_be_cut_is_refused():
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"BloomForCausalLM.*gpt2, llama"):
        shape_of(bloom)
    model = network("gpt2")
    with pytest.raises(UserError, match="12 channels need 3 heads, not 4"):
        sliced(model, replace(everything(shape_of(model)), hidden=torch.arange(12)))
    uneven = (torch.arange(3), *[torch.arange(4)] * 3)
    with pytest.raises(UserError, match="as many heads"):
        sliced(model, replace(everything(shape_of(model)), groups=uneven))
    model.config.scale_attn_by_inverse_layer_idx = True
    whole = everything(shape_of(model))
    with pytest.raises(UserError, match="number of its block"):
        sliced(model, replace(whole, layers=(1, 2, 3), groups=whole.groups[:3], ffn=whole.ffn[:3]))
