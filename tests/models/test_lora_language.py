"""LoRA and 8 bits on language models: what learns, what is delivered, what others read."""

import pytest
import torch
import transformers

import limbeck
from limbeck.data.tokenizer import char_tokenizer
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.formats import export
from limbeck.metrics.efficiency import stored_bytes
from limbeck.models.lora import Adapted
from limbeck.models.transformers import from_transformers

peft = pytest.importorskip("peft")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
TEXT = "the fox sees a hen. " * 60
IDS = torch.arange(12).remainder(9)[None]


def saved(path, kind="llama", tie=True, hidden=16):
    words = char_tokenizer([TEXT])
    words.chat_template = "{{ messages }}"
    words.save_pretrained(path)
    sizes = {**SIZES, "hidden_size": hidden, "vocab_size": len(words), "tie_word_embeddings": tie, "eos_token_id": 1}
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes, intermediate_size=24),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=len(words), n_embd=hidden, n_layer=1, n_head=2, n_positions=32, eos_token_id=1, bos_token_id=1
        ),
    }[kind]()
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def distilled(folder, runs, **changes):
    text = runs / "text.txt"
    text.write_text(TEXT, encoding="utf8")
    data = {"name": "text", "path": str(text), "tokenizer_path": str(folder), "context": 16}
    said = {"method": "word_kd", "steps": 4, "batch_size": 8, "lr": 0.02, "controls": False, "evaluate": ["perplexity"]}
    said |= {"student": {"name": "lora", "rank": 2, "base": {"name": "transformers", "path": str(folder)}}}
    return limbeck.distill(data=data, runs=runs, quiet=True, **{"teacher": folder, **said, **changes})


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_adapters_alone_learn_and_are_delivered_merged_and_apart(folder, tmp_path):
    result = distilled(folder, tmp_path, method={"name": "word_kd", "alpha": 0.5})
    path = result.folder / "student"
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    merged = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert type(merged) is type(base) and merged.state_dict().keys() == base.state_dict().keys()
    changed = {n for n, v in merged.state_dict().items() if not torch.equal(v, base.state_dict()[n])}
    linear = {f"{n}.weight" for n, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert changed == linear - {"lm_head.weight"}
    adapter = peft.PeftModel.from_pretrained(base, path / "adapter")
    torch.testing.assert_close(logits(adapter), logits(merged), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(result.student), logits(merged))
    assert transformers.AutoTokenizer.from_pretrained(path).chat_template == "{{ messages }}"
    assert str(folder) not in (path / store.CARD).read_text()


def test_adapters_of_a_student_that_is_cut_out_of_its_teacher(folder, tmp_path):
    base = {"name": "pruned", "hidden": 8, "samples": 4}
    result = distilled(folder, tmp_path, student={"name": "lora", "rank": 2, "base": base}, controls=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(result.folder / "student")
    assert model.config.hidden_size == 8 and "alone" in result.metrics


def test_the_last_layer_that_is_also_the_first_gets_no_adapter(tmp_path):
    model = from_transformers(path=saved(tmp_path))
    with pytest.raises(UserError, match="shares its weight with the first"):
        Adapted(model, 2, 2.0, ("lm_head",))
    apart = from_transformers(path=saved(tmp_path, tie=False))
    adapted = Adapted(apart, 2, 2.0, ("lm_head",))
    assert [n for n, p in adapted.named_parameters() if p.requires_grad and "lm_head" not in n] == []


# -- 8 bits ------------------------------------------------------------------------------------------------------------


def test_a_teacher_packed_by_bitsandbytes_is_nearly_the_same(tmp_path):
    pytest.importorskip("bitsandbytes")
    path = saved(tmp_path, hidden=64)
    whole, packed = from_transformers(path=path), from_transformers(path=path, quantise="bnb_int8")
    assert stored_bytes(packed) < stored_bytes(whole)
    apart, size = (logits(packed) - logits(whole)).abs().max(), logits(whole).abs().max()
    assert 0 < apart < 0.05 * size


def test_a_teacher_in_8_bits_is_smaller_and_nearly_the_same(tmp_path):
    pytest.importorskip("torchao")
    path = saved(tmp_path, hidden=64)
    whole, packed = from_transformers(path=path), from_transformers(path=path, quantise="int8")
    weights = sum(
        m.weight.numel() for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    scales = sum(m.out_features for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head")
    saving = stored_bytes(whole) - stored_bytes(packed)
    assert saving == 3 * weights - 5 * scales  # a byte for four; a scale and a zero point for each output
    apart, size = (logits(packed) - logits(whole)).abs().max(), logits(whole).abs().max()
    assert 0 < apart < 0.05 * size
    hashes = {
        Teacher(m, {"logits"}, "teacher").hash for m in (whole, packed, from_transformers(path=path, quantise="int8"))
    }
    assert len(hashes) == 2
    result = distilled(path, tmp_path, teacher={"path": str(path), "name": "transformers", "quantise": "int8"})
    assert result.metrics["teacher"]["perplexity"] > 1
    with pytest.raises(UserError, match="quantised do not train"):
        distilled(path, tmp_path, student={"path": str(path), "name": "transformers", "quantise": "int8"})


def test_a_student_is_exported_in_8_bits_with_what_that_costs(tmp_path):
    pytest.importorskip("torchao")
    path = saved(tmp_path, hidden=64)
    result = distilled(path, tmp_path, student=path, export=["int8"])
    folder = result.folder / "student" / "int8"
    packed = transformers.AutoModelForCausalLM.from_pretrained(folder)
    facts = store.read_card(result.folder / "student")["exports"]["int8"]
    before, after = (facts["bytes_of_weights"][k] for k in ("model", "int8"))
    assert after == (folder / "model.safetensors").stat().st_size < 0.6 * before
    own, theirs = (facts["checked"]["perplexity"][k] for k in ("model", "int8"))
    assert own != theirs and abs(theirs / own - 1) < 0.02
    assert 0 < (logits(packed) - logits(result.student)).abs().max() < 0.05 * logits(packed).abs().max()
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"
    assert "of the bytes; perplexity" in (result.folder / "student" / "README.md").read_text()
    assert export(result.folder / "student", "int8", tmp_path / "elsewhere").is_dir()


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    path = saved(tmp_path)
    monkeypatch.setattr("limbeck.models.quantised.find_spec", lambda name: None)
    for kind, package in {"int8": "torchao", "bnb_int8": "bitsandbytes", "bnb_nf4": "bitsandbytes"}.items():
        with pytest.raises(UserError, match=rf"needs the package '{package}'.*limbeck\[int8\]"):
            from_transformers(path=path, quantise=kind)
    with pytest.raises(UserError, match="no way to quantise is called 'int7'"):
        from_transformers(path=path, quantise="int7")
