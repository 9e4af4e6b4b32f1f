"""Encoders in the layout of sentence-transformers, from a folder or the hub; weights from safetensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from limbeck.errors import UserError, needs_extra
from limbeck.export.sentence_transformers import MODULES, POOLING
from limbeck.export.store import no_bars
from limbeck.models.embedding import TextEncoder
from limbeck.models.transformers import check_folder
from limbeck.registry import Block, register

MODES = {mode: name for name, mode in POOLING.items()}
NAMES = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
"""Modes of pooling as newer versions write them, and our words."""
KEPT = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched from the hub: nothing that could run."""


@register("model", gives={"embedding", "logits"})
def sentence_transformer(
    *,
    path: Path | None = None,
    hub: str | None = None,
    revision: str | None = None,
    similarity: Literal["dot", "cosine"] | None = None,
    scale: float = 1.0,
    backbone: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
) -> TextEncoder:
    """An encoder that sentence-transformers saved: a transformer, pooling, linear layer, normalisation.

    Nothing is executed from the files: no pickle, no remote code, and no class but those of these four modules.

    Args:
        path: a folder with modules.json.
        hub: or a model id of the Hugging Face hub.
        revision: commit of the hub's repository; give it so that a run can be repeated.
        similarity: how vectors are compared; by default as the folder says, else by the cosine.
        scale: multiplies the similarity.
        backbone: in place of files, a configuration of transformers, for weights that are loaded later.
        head: with it, the other facts of the encoder (pooling, dim, bias, normalize).

    Raises:
        UserError: files are missing, or the encoder has modules that are not known here.
    """
    if backbone is not None:
        return _empty(backbone, {**(head or {}), "similarity": similarity or "cosine", "scale": scale})
    if (path is None) == (hub is None):
        raise UserError("model 'sentence_transformer' needs one of path (a folder) and hub (a model id)")
    return read_folder(path or _fetched(str(hub), revision), similarity=similarity, scale=scale)


def read_folder(folder: Path, *, similarity: str | None = None, scale: float = 1.0) -> TextEncoder:
    """The encoder in a folder of sentence-transformers.

    Raises:
        UserError: as :func:`sentence_transformer`.
    """
    transformers = _transformers()
    parts = _modules(folder)
    place = folder / parts[0][1]
    check_folder(place)
    with no_bars():
        backbone = transformers.AutoModel.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype="float32"
        )
    options, weights = _head(folder, parts[1:])
    chosen: Any = similarity or _similarity(folder)
    encoder = TextEncoder(_plain(backbone), similarity=chosen, scale=scale, **options)
    if weights is not None and encoder.dense is not None:
        encoder.dense.load_state_dict(weights)
    encoder.portable = Block(  # type: ignore[assignment]
        "sentence_transformer",
        {"backbone": _config(backbone), "head": options, "similarity": chosen, "scale": scale},
    )
    return encoder


def _empty(config: Mapping[str, Any], options: dict[str, Any]) -> TextEncoder:
    transformers = _transformers()
    known = {k: v for k, v in config.items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **known)
    return TextEncoder(_plain(transformers.AutoModel.from_config(made)), **options)


def _plain(backbone: Any) -> nn.Module:
    """Without a BERT's own pooling layer, which no vector comes through."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    module: nn.Module = backbone
    return module


def _config(backbone: Any) -> dict[str, Any]:
    kept = {**backbone.config.to_diff_dict(), "model_type": backbone.config.model_type}
    return json.loads(json.dumps({k: v for k, v in kept.items() if k not in ("architectures", "dtype")}, default=str))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of a folder: the last part of their class, and where they are."""
    file = folder / MODULES
    if not file.is_file():
        raise UserError(f"{folder} has no {MODULES}, so it is no folder that sentence-transformers saved")
    listed = json.loads(file.read_text(encoding="utf8"))
    parts = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in listed]
    kinds = [kind for kind, _ in parts]
    wanted = [k for k in ("Transformer", "Pooling", "Dense", "Normalize") if k in kinds]
    if kinds != wanted or kinds[:2] != ["Transformer", "Pooling"]:
        says = "a Transformer, then Pooling, then at most one Dense and Normalize"
        raise UserError(f"{file} has {', '.join(kinds)}; what can be read is {says}")
    return parts


def _head(folder: Path, parts: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    options: dict[str, Any] = {"normalize": any(kind == "Normalize" for kind, _ in parts)}
    weights = None
    for kind, path in parts:
        place = folder / path
        config = json.loads((place / "config.json").read_text(encoding="utf8")) if kind != "Normalize" else {}
        if kind == "Pooling":
            options["pooling"] = _pooling(place, config)
        if kind == "Dense":
            if not str(config["activation_function"]).endswith("Identity"):
                raise UserError(f"{place}: the linear layer has an activation ({config['activation_function']})")
            if not (place / "model.safetensors").is_file():
                raise UserError(f"{place} has no model.safetensors: pickled weights are not read; save it again")
            weights = {k.removeprefix("linear."): v for k, v in load_file(place / "model.safetensors").items()}
            options |= {"dim": int(config["out_features"]), "bias": bool(config["bias"])}
    return options, weights


def _pooling(place: Path, config: Mapping[str, Any]) -> str:
    new = config.get("pooling_mode")
    found = [NAMES.get(m, m) for m in ([new] if isinstance(new, str) else new or ())]
    found += [MODES.get(k, k) for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    if len(found) != 1 or found[0] not in POOLING:
        raise UserError(
            f"{place}: pooling by {', '.join(found) or 'nothing'}; what can be read is {', '.join(POOLING)}"
        )
    return found[0]


def _similarity(folder: Path) -> str:
    file = folder / "config_sentence_transformers.json"
    said = json.loads(file.read_text(encoding="utf8")).get("similarity_fn_name") if file.is_file() else None
    if said not in (None, "cosine", "dot"):
        raise UserError(f"{file}: vectors are compared by '{said}', and what can be read is cosine and dot")
    return said or "cosine"


def _fetched(hub: str, revision: str | None) -> Path:
    _transformers()
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub, revision=revision, allow_patterns=KEPT))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {hub} from the hub: {str(error).strip().splitlines()[0]}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    return transformers
