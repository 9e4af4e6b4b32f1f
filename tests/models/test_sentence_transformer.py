"""sentence-transformers' models in and out: the same vectors on both sides, by the real library."""

import json

import pytest
import torch

from limbeck.data.retrieval import retrieval
from limbeck.errors import UserError
from limbeck.export import export_model, store
from limbeck.models.embedding import sparse_encoder, text_encoder
from limbeck.models.sentence_transformer import sentence_transformer
from limbeck.registry import Block

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "context": 12}
TEXTS = ["the red fox by the river", "someone left a key", "with lamp"]


@pytest.fixture(scope="module")
def data():
    return retrieval(corpus="catalogue", documents=20, queries=8, test_queries=6, negatives=2, context=12)


def delivered(data, folder, **options):
    torch.manual_seed(0)
    block = Block("text_encoder", {**SIZES, "vocab_size": data.spec.vocab_size, **options})
    model = text_encoder(**block.args).eval()
    stored = store.Stored(model, block, frozenset({"embedding", "logits"}), data.spec.as_dict())
    store.save(folder, stored, tokenizer=data.extra["tokenizer"])
    return model


def own_vectors(data, model):
    words = data.extra["tokenizer"](TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])["embedding"]


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 6},
        {"dim": 6, "bias": True, "normalize": True},
        {"pooling": "cls"},
        {"pooling": "last"},
        {"pooling": "max"},
    ],
)
def test_a_student_loads_in_sentence_transformers_and_back(data, tmp_path, options):
    library = pytest.importorskip("sentence_transformers")
    model = delivered(data, tmp_path / "student", **options)
    folder = export_model(tmp_path / "student", "sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    wanted = own_vectors(data, model)
    torch.testing.assert_close(theirs.encode(TEXTS, convert_to_tensor=True), wanted, rtol=1e-4, atol=1e-5)
    again = sentence_transformer(path=folder).eval()
    torch.testing.assert_close(own_vectors(data, again), wanted, rtol=1e-4, atol=1e-5)
    assert again.similarity == "dot" and again.dim == options.get("dim", 16)


def test_what_the_library_saves_today_is_read(data, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    delivered(data, tmp_path / "student", dim=6, normalize=True, similarity="cosine")
    folder = export_model(tmp_path / "student", "sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    model = sentence_transformer(path=tmp_path / "saved").eval()
    wanted = theirs.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(own_vectors(data, model), wanted, rtol=1e-4, atol=1e-5)
    assert model.similarity == "cosine"


def test_one_that_was_loaded_is_stored_and_built_again_without_its_folder(data, tmp_path):
    delivered(data, tmp_path / "student", dim=6)
    folder = export_model(tmp_path / "student", "sentence_transformers")
    model = sentence_transformer(path=folder).eval()
    store.save(tmp_path / "kept", store.Stored(model, model.portable, frozenset({"embedding"})))
    again = store.load(tmp_path / "kept").module
    torch.testing.assert_close(own_vectors(data, again), own_vectors(data, model))


def test_what_could_run_or_is_unknown_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"no modules\.json"):
        sentence_transformer(path=tmp_path)
    delivered(data, tmp_path / "student", dim=6)
    folder = export_model(tmp_path / "student", "sentence_transformers")
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        sentence_transformer(path=folder)
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "evil.Module"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="Transformer, Module, Dense"):
        sentence_transformer(path=folder)


def test_what_the_layout_cannot_hold_is_refused_early(data, tmp_path):
    from limbeck.export.formats import refuse_early

    size = data.spec.vocab_size
    for model, says in (
        (text_encoder(**{**SIZES, "layers": 2}, vocab_size=size, top_layers=2), "pools the last layer alone"),
        (sparse_encoder(**SIZES, vocab_size=size), "no text encoder"),
    ):
        with pytest.raises(UserError, match=says):
            refuse_early(store.Stored(model, Block("x", {})), ["sentence_transformers"])
