import json

import pytest
import torch

from limbeck.data.tokenizer import char_tokenizer, tokenizer_hash
from limbeck.errors import UserError
from limbeck.models.causal import causal_lm
from limbeck.models.forward import forward
from limbeck.models.transformers import from_transformers
from limbeck.registry import Block, build


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language")
    model = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=12, context=8)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vision")
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
    model = ViTForImageClassification(
        ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=5, hidden_dropout_prob=0.0)
    )
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_language_model_comes_back_as_it_was_saved(language):
    folder, model = language
    batch = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    again = build("model", Block("transformers", {"path": folder, "task": "causal_lm"}))
    assert torch.equal(forward(again, batch).logits, forward(model, batch).logits)
    assert type(again) is type(model) and not again.training


def test_an_image_classifier_runs_on_an_image_batch(vision):
    folder, model = vision
    batch = {"input": torch.randn(3, 1, 8, 8), "label": torch.zeros(3, dtype=torch.int64), "id": torch.arange(3)}
    again = from_transformers(path=folder)
    assert forward(again, batch).logits.shape == (3, 5)
    assert torch.equal(forward(again, batch).logits, forward(model, batch).logits)


def test_a_sequence_classifier_runs_on_a_token_batch(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=20, **sizes, num_labels=3)).save_pretrained(tmp_path)
    batch = {"input_ids": torch.ones(2, 6, dtype=torch.int64), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    assert forward(from_transformers(path=tmp_path), batch).logits.shape == (2, 3)


def test_the_weights_take_the_dtype_that_was_asked_for(language):
    assert from_transformers(path=language[0], dtype="bfloat16").dtype == torch.bfloat16
    assert from_transformers(path=language[0]).dtype == torch.float32


def test_a_model_saved_with_its_tokenizer_says_which(tmp_path, language):
    words = char_tokenizer(["abcdefgh"])
    language[1].save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = from_transformers(path=tmp_path)
    assert model.tokenizer_hash == tokenizer_hash(words)
    assert model.state_dict().keys() == language[1].state_dict().keys()


def test_a_missing_folder_and_a_folder_that_is_no_model_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        from_transformers(path=tmp_path / "no")
    with pytest.raises(UserError, match=r"no config\.json"):
        from_transformers(path=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        from_transformers(path=tmp_path)
    with pytest.raises(UserError, match="one of path"):
        from_transformers()


def test_pickled_weights_are_never_read(tmp_path, language):
    """A pickle runs code when it is loaded."""
    (tmp_path / "config.json").write_bytes((language[0] / "config.json").read_bytes())
    torch.save(language[1].state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        from_transformers(path=tmp_path)


def test_code_beside_the_weights_is_never_run(tmp_path, language):
    language[1].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    for task in ("auto", "causal_lm"):
        with pytest.raises(UserError, match="cannot"):
            from_transformers(path=tmp_path, task=task)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_a_model_for_another_task_is_refused(vision, task):
    with pytest.raises(UserError, match=f"as {task}"):
        from_transformers(path=vision[0], task=task)


def test_weights_drawn_at_random_are_refused_unless_allowed(language):
    """A language model as a classifier would get a fresh head: as a teacher it would teach noise."""
    with pytest.raises(UserError, match=r"missing weights score\.weight"):
        from_transformers(path=language[0], task="sequence_classification")
    model = from_transformers(path=language[0], task="sequence_classification", allow_missing=True)
    assert model.score.weight.shape[0] == 2


def test_damaged_weights_are_refused(tmp_path, language):
    (tmp_path / "config.json").write_bytes((language[0] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((language[0] / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="cannot load"):
        from_transformers(path=tmp_path)


def test_an_architecture_without_a_task_asks_for_one(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a BertModel; say what it is for"):
        from_transformers(path=tmp_path)
