"""From a folder of transformers, with a tokenizer and a chat template, to a student's folder of the same kind."""

import json

import pytest
import torch
import transformers

import limbeck
from limbeck.data.tokenizer import bpe_tokenizer
from limbeck.export import store

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
TALK = [{"role": "user", "content": "the fox sees"}]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    from limbeck.data.grammar import generate

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(generate(6000), encoding="utf8")
    return path


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, text, tmp_path_factory):
    """A small model as people have them: weights, tokenizer, chat template and generation settings."""
    path = tmp_path_factory.mktemp(request.param)
    words = bpe_tokenizer([text.read_text(encoding="utf8")], 300)
    words.chat_template = TEMPLATE
    words.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 304, "intermediate_size": 32, "max_position_embeddings": 32}
    ids = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param](**sizes, **ids))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(path)
    return path


def distilled(folder, text, runs, teacher=None, **changes):
    data = {"name": "text", "path": str(text), "tokenizer_path": str(folder), "context": 16}
    said = {
        "method": "word_kd",
        "steps": 3,
        "batch_size": 8,
        "controls": False,
        "quiet": True,
        "evaluate": ["perplexity"],
    }
    return limbeck.distill(teacher=teacher or folder, data=data, runs=runs, **{**said, **changes})


def used_as_people_do(path):
    """The folder read with plain transformers: what it says to a chat, and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    words = transformers.AutoTokenizer.from_pretrained(path)
    given = words.apply_chat_template(TALK, return_tensors="pt", return_dict=True)
    written = model.generate(**given, do_sample=False)
    assert 0 < written.shape[1] - given["input_ids"].shape[1] <= 5  # as the generation settings say
    assert isinstance(words.decode(written[0]), str)
    return model, words


@pytest.mark.parametrize("kind", ["pruned", "folder", "fresh"])
def test_the_student_is_a_folder_like_its_teachers(folder, text, tmp_path, kind):
    student = {
        "pruned": {"name": "pruned", "layers": 1, "hidden": 12, "heads": 2, "ffn": 20, "samples": 8},
        "folder": folder,
        "fresh": {"name": "causal_lm", "architecture": "llama", "hidden": 8, "layers": 1, "heads": 2},
    }[kind]
    result = distilled(folder, text, tmp_path, student=student, method="minitron")
    path = result.folder / "student"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        f.name for f in path.iterdir()
    }
    if kind == "fresh":
        words = transformers.AutoTokenizer.from_pretrained(path)
        assert words.apply_chat_template(TALK, tokenize=False) == "<user>the fox sees</user>"
        return
    model, words = used_as_people_do(path)
    assert words.apply_chat_template(TALK, tokenize=False) == "<user>the fox sees</user>"
    own, teacher = model.config, transformers.AutoConfig.from_pretrained(folder)
    assert own.model_type == teacher.model_type and own.vocab_size == teacher.vocab_size
    if kind == "pruned":
        assert (own.num_hidden_layers, own.hidden_size, own.num_attention_heads, own.num_key_value_heads) == (
            1,
            12,
            2,
            1,
        )
        assert own.intermediate_size == 20
    batch = {"input_ids": torch.arange(10)[None]}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, result.student(**batch).logits)
    assert "auto_class" in json.loads((path / store.CARD).read_text())


@pytest.mark.parametrize("named", [False, True])
def test_a_teacher_that_never_saw_the_data_is_trained_on_it_a_little(folder, text, tmp_path, monkeypatch, named):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    given = {"name": "transformers", "path": str(folder)} if named else {"path": str(folder)}
    runs = {
        finetune: distilled(folder, text, tmp_path / str(finetune), student=folder, teacher={**given, **own})
        for finetune, own in {
            False: {},
            True: {"finetune": True, "train": {"steps": 20, "optimizer": {"name": "adamw", "lr": 0.01}}},
        }.items()
    }
    plain, corrected = (run.metrics["teacher"]["perplexity"] for run in runs.values())
    assert corrected < 0.9 * plain
    again = distilled(folder, text, tmp_path / "False", student=folder, teacher=given)
    assert again.metrics["teacher"]["perplexity"] == plain  # the folder itself stayed


def test_finetune_of_a_teacher_that_is_not_loaded_is_refused(text):
    fresh = {"name": "causal_lm", "hidden": 8, "layers": 1, "heads": 2}
    data = {"name": "text", "path": str(text), "context": 16}
    with pytest.raises(limbeck.UserError, match="finetune is for a teacher that is loaded"):
        limbeck.distill(teacher={**fresh, "finetune": True}, student=fresh, data=data, method="word_kd")
