import pytest
import torch

from limbeck.data.tokenizer import char_tokenizer
from limbeck.errors import UserError
from limbeck.export import export_model, store


@pytest.fixture
def language_model(tmp_path, model):
    made = model("causal_lm")
    store.save(tmp_path / "m", made, tokenizer=char_tokenizer(["abcdefghi"]))
    (tmp_path / "m" / "README.md").write_text("# licences\n")
    return made, tmp_path / "m"


def test_the_copy_is_what_transformers_users_expect(language_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made, folder = language_model
    copy = export_model(folder, "transformers")
    assert copy == folder / "transformers" and not (copy / store.CARD).exists() and (copy / "README.md").is_file()
    again = AutoModelForCausalLM.from_pretrained(copy)
    ids = torch.randint(12, (3, 8))
    assert torch.equal(again(ids).logits, made.module(ids).logits)
    assert AutoTokenizer.from_pretrained(copy).decode([3, 4]) == "ab"
    noted = store.read_card(folder)["exports"]["transformers"]
    assert noted["class"] == "AutoModelForCausalLM" and set(noted["files"]) >= {"config.json", "model.safetensors"}


def test_an_earlier_copy_is_replaced_whole(language_model):
    _, folder = language_model
    copy = export_model(folder, "transformers")
    (copy / "left_over.json").write_text("{}")
    assert not (export_model(folder, "transformers") / "left_over.json").exists()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_attention_that_was_trained_eagerly_agrees_closely(saved):
    _, folder = saved("eager")
    export_model(folder, "transformers")
    assert store.read_card(folder)["exports"]["transformers"]["checked"]["relative"] < 1e-5


def test_other_networks_are_refused_with_a_way_out(saved):
    _, folder = saved("cnn")
    with pytest.raises(UserError, match="not a transformers model: use the formats onnx or torch_export"):
        export_model(folder, "transformers")
    assert not (folder / "transformers").exists()
