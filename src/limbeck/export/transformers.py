"""A student in the plain transformers layout, for people who do not have this library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError, needs_extra
from limbeck.export.calls import Call
from limbeck.export.checks import check, quiet
from limbeck.export.store import CARD, Stored, is_transformers, no_bars
from limbeck.models.transformers import CLASSES

KEPT = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")
"""What a transformers folder is made of: configs, weights, tokenizer; and the card, which carries the licences."""


def export_transformers(call: Call, stored: Stored, source: Path, folder: Path) -> dict[str, Any]:
    """Copy a model to a folder that plain transformers reads, and check it by reading it that way.

    Returns:
        Versions, the class to load it with, and how far its outputs are from the model's.

    Raises:
        UserError: the student is no transformers model, or what transformers reads gives other outputs.
    """
    if not is_transformers(stored.module):
        kind = type(stored.module).__name__
        raise UserError(f"the student is a {kind}, not a transformers model: use the formats onnx or torch_export")
    try:
        import transformers
    except ImportError as error:
        raise needs_extra("transformers", "text") from error
    folder.mkdir()
    copy_folder(source, folder)
    name = auto_class(stored.module)
    options = {"local_files_only": True, "trust_remote_code": False}
    with quiet(), no_bars():
        model = getattr(transformers, name).from_pretrained(folder, use_safetensors=True, dtype="auto", **options)
        if (folder / "tokenizer.json").is_file():
            transformers.AutoTokenizer.from_pretrained(folder, **options)

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        return model(**dict(zip(call.inputs, batch, strict=True)))[call.output]

    return {
        "class": name,
        "inputs": call.signature(),
        "output": call.output,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "checked": {"against": f"{name} of transformers {transformers.__version__}", **check(call, run, "the folder")},
    }


def copy_folder(source: Path, folder: Path, *, weights: bool = True) -> None:
    """Copy what a transformers folder is made of; without its ``weights`` where others will be written."""
    for file in (f for pattern in KEPT for f in source.glob(pattern)):
        if file.name != CARD and (weights or ".safetensors" not in file.name):
            shutil.copyfile(file, folder / file.name)


def auto_class(module: Any) -> str:
    """The ``Auto...`` class of transformers that reads a model.

    Raises:
        UserError: there is none for its class.
    """
    import transformers

    for name in CLASSES.values():
        if getattr(transformers, name)._model_mapping.get(type(module.config), None) is type(module):
            return name
    raise UserError(f"transformers has no Auto class for {type(module).__name__}")
