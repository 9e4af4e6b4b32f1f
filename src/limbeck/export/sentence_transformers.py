"""A text encoder in the layout of sentence-transformers, for people who do not have this library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError
from limbeck.export.calls import Call
from limbeck.export.checks import check, quiet
from limbeck.export.store import Stored, no_bars

MODULES = "modules.json"
TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Dense": "sentence_transformers.models.Dense",
    "Normalize": "sentence_transformers.models.Normalize",
}
"""Names that old and new versions of the library know."""
POOLING = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def refuse_encoder(stored: Stored) -> Any:
    """The encoder in a model that this layout can hold.

    Raises:
        UserError: there is none, or it pools several layers.
    """
    module: Any = stored.module
    encoder = getattr(module, "encoder", module)
    if not hasattr(encoder, "pooling") or not hasattr(encoder, "backbone"):
        raise UserError(f"export: sentence_transformers: the student '{stored.block.name}' is no text encoder")
    if encoder.top_layers > 1:
        raise UserError(
            "export: sentence_transformers pools the last layer alone, and the student several (top_layers)"
        )
    return encoder


def export_sentence_transformers(call: Call, stored: Stored, source: Path, folder: Path) -> dict[str, Any]:
    """Write a text encoder, its pooling and its linear layer to a folder, and check the vectors that come out of it.

    Returns:
        Versions, and how far its vectors are from the model's.

    Raises:
        UserError: the student is no text encoder, its tokenizer is missing, or what is read gives other vectors.
    """
    encoder = refuse_encoder(stored)
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json, which a folder of sentence-transformers needs")
    folder.mkdir()
    write_folder(encoder, source, folder)
    try:
        import sentence_transformers
    except ImportError:
        # The folder is plain; what is read from it by our own reader must be the model at least.
        from limbeck.models.sentence_transformer import read_folder

        name, run = "limbeck's own reader", _own(read_folder(folder))
    else:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "device": "cpu"}
        with quiet(), no_bars():
            reader = sentence_transformers.SentenceTransformer(str(folder), **options)
        name, run = f"SentenceTransformer of sentence-transformers {sentence_transformers.__version__}", _theirs(reader)
    return {
        "class": "SentenceTransformer",
        "inputs": call.signature(),
        "output": "embedding",
        "checked": {"against": name, **check(call, run, "the folder")},
    }


def write_folder(encoder: Any, source: Path, folder: Path) -> None:
    """The files of the layout: a transformer with its tokenizer, pooling, the linear layer, and a normalisation."""
    with no_bars():
        encoder.backbone.save_pretrained(folder)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    config = encoder.config
    longest = min(_length(source) or config.max_position_embeddings, config.max_position_embeddings)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    modules = [("Transformer", "")]
    width = int(config.hidden_size)
    modes = {mode: name == encoder.pooling for name, mode in POOLING.items()}
    modules.append(("Pooling", _module(folder, 1, "Pooling", {"word_embedding_dimension": width, **modes})))
    if encoder.dense is not None:
        modules.append(("Dense", _dense(folder, len(modules), encoder.dense)))
    if encoder.normalize:
        modules.append(("Normalize", _module(folder, len(modules), "Normalize", {})))
    listed = [{"idx": i, "name": str(i), "path": path, "type": TYPES[kind]} for i, (kind, path) in enumerate(modules)]
    (folder / MODULES).write_text(json.dumps(listed, indent=2), encoding="utf8")
    similarity = "cosine" if encoder.similarity == "cosine" else "dot"
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": similarity})


def _dense(folder: Path, number: int, layer: nn.Linear) -> str:
    facts = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    path = _module(folder, number, "Dense", facts)
    weights = {f"linear.{k}": v.detach().cpu().contiguous().clone() for k, v in layer.state_dict().items()}
    save_file(weights, folder / path / "model.safetensors")
    return path


def _module(folder: Path, number: int, kind: str, config: dict[str, Any]) -> str:
    path = f"{number}_{kind}"
    (folder / path).mkdir()
    if kind != "Normalize":
        write_json(folder / path / "config.json", config)
    return path


def _length(source: Path) -> int | None:
    """The length that the tokenizer says it was made for."""
    file = source / "tokenizer_config.json"
    found = json.loads(file.read_text(encoding="utf8")).get("model_max_length") if file.is_file() else None
    return int(found) if isinstance(found, int) and found < 1_000_000 else None


def _theirs(model: Any) -> Any:
    def run(batch: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = model({"input_ids": batch[0], "attention_mask": batch[1]})["sentence_embedding"]
        return found

    return run


def _own(model: Any) -> Any:
    def run(batch: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = model(input_ids=batch[0], attention_mask=batch[1])["embedding"]
        return found

    return run
