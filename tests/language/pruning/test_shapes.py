import itertools

import pytest
import torch
import transformers

from limbeck.errors import UserError
from limbeck.language.pruning import Cut, cut_out, parameters_of, shapes_within
from limbeck.language.pruning.choice import target_shape

LIKE = {
    "vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=4, n_head=4),
    "llama": lambda: transformers.LlamaConfig(**LIKE, attention_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**LIKE, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**LIKE, head_dim=8),
}
IDS = torch.tensor([[1, 4, 2, 9, 3, 7], [5, 5, 10, 0, 8, 6]])
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}]
SPACE = {"layers": [2, 3, 4], "hidden": [8, 10, 12, 16], "heads": [2, 4], "ffn": [8, 16, 24]}


def network(kind):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()


def count(model):
    return sum(p.numel() for p in model.parameters())


def fits(kind, sizes):
    """GPT-2 is as wide as its heads together; the width of the others is a multiple of their number."""
    return sizes["hidden"] == 4 * sizes["heads"] if kind == "gpt2" else sizes["hidden"] % sizes["heads"] == 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_number_is_that_of_the_model_that_is_cut_out(kind):
    model = network(kind)
    shapes = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]
    shapes = [s for s in shapes if fits(kind, s)]
    for sizes in shapes[::3]:
        cut = Cut(**sizes)
        assert parameters_of(model, target_shape(model, cut)) == count(cut_out(model, cut, BATCHES)), sizes
    assert parameters_of(model, target_shape(model, Cut())) == count(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_shapes_near_the_budget_are_found_and_no_others(kind):
    model = network(kind)
    whole = count(model)
    wanted = {}
    for values in itertools.product(*SPACE.values()):
        sizes = dict(zip(SPACE, values, strict=True))
        if not fits(kind, sizes):
            continue
        found = count(cut_out(model, Cut(**sizes), BATCHES))
        if abs(found - 0.6 * whole) <= 0.3 * 0.6 * whole:
            wanted[tuple(sizes.values())] = found
    found = shapes_within(model, SPACE, 0.6, 0.3)
    assert len(wanted) > 1 and {tuple(s.values()): n for s, n in found} == wanted
    distances = [abs(n - 0.6 * whole) for _, n in found]
    assert distances == sorted(distances)
    assert found == shapes_within(model, SPACE, 0.6 * whole, 0.3), "a share or a number of parameters"


def test_what_is_not_in_the_space_stays_as_it_is_given():
    model = network("llama")
    fixed = {"hidden": 8, "layers": 4}
    for sizes, number in shapes_within(model, {"layers": [1, 2], "ffn": [8, 24]}, 900, 0.9, fixed):
        assert number == count(cut_out(model, Cut(hidden=8, **sizes), BATCHES))


@pytest.mark.parametrize(
    ("space", "budget", "says"),
    [
        ({"width": [8]}, 0.5, "'width' is no size"),
        ({}, 0.5, "at least one size"),
        ({"hidden": []}, 0.5, "each a value"),
        ({"hidden": [8, 32]}, 0.5, "hidden 32 cannot be cut out of a teacher with 16"),
        ({"heads": [3]}, 0.5, "multiple of 2"),
        ({"hidden": [8, 12]}, 10, r"no shape of the space is within 5% of 10 parameters: its 2 shapes have [\d,]+ to"),
        ({"hidden": [8]}, 0.0, "budget is above 0"),
    ],
)
def test_what_cannot_be_is_said(space, budget, says):
    with pytest.raises(UserError, match=says):
        shapes_within(network("llama"), space, budget)


def test_sizes_that_transformers_would_not_save_are_refused_before_a_training():
    model = network("llama")
    with pytest.raises(UserError, match=r"LlamaForCausalLM of these sizes cannot be: .*multiple of the number of att"):
        target_shape(model, Cut(hidden=10, heads=4))
    assert {s["hidden"] for s, _ in shapes_within(model, {"hidden": [10, 12]}, 0.7, 0.9, {"heads": 4})} == {12}
