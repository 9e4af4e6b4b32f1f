"""Models on disk: weights as safetensors and a small ``limbeck.json`` that says how to build the model again.

A transformers model is stored in its own layout (``save_pretrained``), so it loads without this library; ``limbeck.json``
then only adds what limbeck knows about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.engine.checkpoint import atomic, tensor_hash, write_json
from limbeck.errors import UserError
from limbeck.registry import Block, build, nearest

FORMAT = 1
WEIGHTS = "model.safetensors"
CARD = "limbeck.json"


@dataclass
class Stored:
    """A model and what is known of it.

    Attributes:
        module: the network.
        block: the part and the complete arguments that build it.
        gives: the signals it has.
        spec: facts of the data it was made for (:meth:`limbeck.data.base.DataSpec.as_dict`).
        about: anything else worth keeping: metrics, the recipe's title, licences.
    """

    module: nn.Module
    block: Block
    gives: frozenset[str] = frozenset({"logits"})
    spec: Mapping[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module stores itself in the transformers layout."""
    return hasattr(module, "save_pretrained") and hasattr(module, "config")


def save(folder: Path, stored: Stored, *, tokenizer: Any = None) -> None:
    """Write a model to a folder (made if missing); a file is only ever replaced by a whole one.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = stored.module
    if is_transformers(module):
        module.save_pretrained(folder)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
        atomic(folder / WEIGHTS, lambda path: save_file(weights, path))
    card = {
        "format": FORMAT,
        "layout": "transformers" if is_transformers(module) else "limbeck",
        "model": _plain(stored.block),
        "gives": sorted(stored.gives),
        "hash": tensor_hash(module.state_dict()),
        "spec": stored.spec,
        "about": stored.about,
    }
    write_json(folder / CARD, card)


def load(folder: str | Path) -> Stored:
    """Read a model that :func:`save` wrote.

    Raises:
        UserError: the folder holds no such model, or its weights are damaged or do not fit.
    """
    folder = Path(folder)
    card = read_card(folder)
    block = Block(card["model"]["name"], {k: v for k, v in card["model"].items() if k != "name"})
    if card["layout"] == "transformers":
        module = build("model", Block("transformers", {"path": folder, "task": card["about"].get("task", "auto")}))
    else:
        module = build("model", block)
        load_weights(module, folder / WEIGHTS)
    if tensor_hash(module.state_dict()) != card["hash"]:
        raise UserError(f"the weights in {folder} are not those that {CARD} describes: they were changed or damaged")
    return Stored(module.eval(), block, frozenset(card["gives"]), card["spec"], card["about"])


def read_card(folder: Path) -> dict[str, Any]:
    """The ``limbeck.json`` of a model folder.

    Raises:
        UserError: it is missing, unreadable or of a newer format.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model of this library: there is no {CARD} in it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path} is of format {card.get('format')!r}; this version reads format {FORMAT}")
    return card


def load_weights(module: nn.Module, path: Path, *, strict: bool = True) -> tuple[list[str], list[str]]:
    """Load a safetensors file into a module; returns the missing and the unexpected keys.

    Raises:
        UserError: no such file, not safetensors, or (when strict) keys or shapes that do not fit.
    """
    weights = read_weights(path)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if wrong:
        k = sorted(wrong)[0]
        raise UserError(f"{path}: '{k}' has shape {tuple(weights[k].shape)}, the model needs {tuple(own[k].shape)}")
    if strict and (missing or unexpected):
        first = (missing or unexpected)[0]
        hint = nearest(first, unexpected if missing else own)
        kind = "lacks" if missing else "has an unknown key"
        raise UserError(
            f"{path} {kind} '{first}' ({len(missing)} missing, {len(unexpected)} unexpected keys in all)"
            + (f"; its nearest key is '{hint}'" if hint else "")
        )
    module.load_state_dict(weights, strict=False)
    return missing, unexpected


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: no such file, or not safetensors (pickled weights are never read).
    """
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise UserError(f"{path} is a pickle file, which is never read: convert it to safetensors first")
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no weights file {path}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def _plain(block: Block) -> dict[str, Any]:
    """The block for JSON: arguments that are no plain values (the built data, say) are left out."""
    tree = block.tree()
    return {k: v for k, v in tree.items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)
