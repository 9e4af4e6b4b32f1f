"""Any model of the transformers library, from a folder or the hub; weights from safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import nn

from limbeck.data.tokenizer import load_tokenizer, tokenizer_hash
from limbeck.engine.progress import say
from limbeck.errors import UserError, needs_extra
from limbeck.export.store import no_bars
from limbeck.models.quantised import quantisation
from limbeck.registry import register

CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "image_classification": "AutoModelForImageClassification",
    "sequence_classification": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
}
_ENDINGS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForImageClassification": "image_classification",
    "ForSequenceClassification": "sequence_classification",
    "ForMaskedLM": "masked_lm",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@register("model", "transformers", gives={"logits", "hidden_states", "text"})
def from_transformers(
    *,
    path: Path | None = None,
    hub: str | None = None,
    revision: str | None = None,
    task: Literal["causal_lm", "image_classification", "sequence_classification", "masked_lm", "auto"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    attention: Literal["sdpa", "eager"] | None = None,
    quantise: Literal["int8", "bnb_int8", "bnb_nf4"] | None = None,
    allow_missing: bool = False,
) -> nn.Module:
    """A transformers model with its weights. Nothing is executed from the files: no pickle, no remote code.

    Args:
        path: a folder saved by ``save_pretrained``.
        hub: or a model id of the Hugging Face hub.
        revision: commit of the hub's repository; give it so that a run can be repeated.
        task: what the model is for; ``auto`` reads it from the architecture in config.json.
        dtype: of the weights; ``auto`` keeps the one they are stored in.
        attention: attention implementation; the library's choice by default.
        quantise: keep the weights of linear layers in 8 or 4 bits, for a teacher that takes less memory: ``int8`` by
            torchao, the rest by bitsandbytes. Such a model does not train.
        allow_missing: accept weights that the files lack (a new head on a pre-trained body): they are drawn at random.

    Raises:
        UserError: the folder, its config or its safetensors weights are missing, the task does not fit the
            architecture, or the weights do not fit the model.
    """
    try:
        import transformers
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    where = _where(path, hub)
    if path is not None:
        check_folder(path)
    options = {"revision": revision, "trust_remote_code": False, "local_files_only": path is not None}
    packed = {"quantization_config": quantisation(quantise)} if quantise else {}
    kind = _task(transformers, where, options) if task == "auto" else task
    loader = getattr(transformers, CLASSES[kind])
    try:
        with no_bars():
            model, info = loader.from_pretrained(
                where,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **packed,
                **options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"cannot load {where} as {kind}: {_first_line(error)}") from error
    _refuse_misfit(where, kind, info, allow_missing)
    if path is not None and (path / "tokenizer.json").is_file():
        model.tokenizer = load_tokenizer(path)
        model.tokenizer_hash = tokenizer_hash(model.tokenizer)
    return model


def check_folder(path: Path) -> None:
    """Refuse a folder that no model can be loaded from safely.

    Raises:
        UserError: it does not exist, has no config.json, or has no safetensors weights.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}: give one that save_pretrained wrote, or hub: for a model of the hub")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json, so it is not a folder that save_pretrained wrote")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(f.name for pattern in _PICKLES for f in path.glob(pattern))
    if pickles:
        says = f"{path} has only pickled weights ({pickles[0]}), which can run code when loaded"
        raise UserError(f"{says}: save it again with save_pretrained(..., safe_serialization=True)")
    raise UserError(f"{path} has no weights: expected *.safetensors")


def _where(path: Path | None, hub: str | None) -> str:
    if (path is None) == (hub is None):
        raise UserError("model 'transformers' needs one of path (a folder) and hub (a model id)")
    return str(path) if path is not None else str(hub)


def _task(transformers: Any, where: str, options: dict[str, Any]) -> str:
    try:
        config = transformers.AutoConfig.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the config of {where}: {_first_line(error)}") from error
    named = (config.architectures or ["nothing"])[0]
    for ending, task in _ENDINGS.items():
        if named.endswith(ending):
            return task
    raise UserError(f"{where} is a {named}; say what it is for with task: {', '.join(CLASSES)}")


def _refuse_misfit(where: str, kind: str, info: dict[str, Any], allow_missing: bool) -> None:
    """Weights drawn at random, or left unread, make a silent wrong teacher."""
    for problem in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(k) for k in info.get(f"{problem}_keys") or ())
        if not keys:
            continue
        named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        if not allow_missing:
            raise UserError(f"{where} as {kind}: {problem} weights {named}; allow_missing: true accepts that")
        say(f"{Path(where).name} as {kind}: {problem} weights {named}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
