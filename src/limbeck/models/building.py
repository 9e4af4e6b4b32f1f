"""Building the models that a recipe names: from a part, from a folder, with start weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.engine import rng
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.models.timm import without_download
from limbeck.registry import Block, build, complete, find


def build_model(
    block: Block,
    *,
    offers: Mapping[str, Any],
    seed: int,
    path: Path | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Stored:
    """The model that a block names, with weights from ``path`` where given.

    Args:
        block: the part; the name ``auto`` lets the folder at ``path`` decide.
        offers: facts of the data, for arguments that the recipe leaves out.
        seed: of the initial weights.
        path: a weights file, or a folder of this library or of transformers.
        spec: facts of the data, kept with the model.

    Raises:
        UserError: nothing loadable at ``path``, or weights that do not fit.
    """
    if block.name == "auto":
        return _from_folder(path, spec)
    rng.seed(seed)
    whole = complete("model", block, offers)
    module: nn.Module = build("model", whole)
    gives = frozenset(find("model", block.name).facts.get("gives", {"logits"}))
    if path is not None:
        store.load_weights(module, path / store.WEIGHTS if path.is_dir() else path)
    return Stored(module, portable(whole, module), gives, spec)


def portable(block: Block, module: nn.Module) -> Block:
    """The block that builds the same network from its weights alone, without the files or the hub it came from."""
    if block.name == "timm":
        return without_download(block, module)
    own: Block | None = getattr(module, "portable", None)
    if own is not None and block.name == own.name:
        return own
    inside = {k: getattr(module, k, None) for k, v in block.args.items() if isinstance(v, Block)}
    made = {k: portable(block.args[k], part) for k, part in inside.items() if isinstance(part, nn.Module)}
    return Block(block.name, {**block.args, **made})


def _from_folder(path: Path | None, spec: Mapping[str, Any] | None) -> Stored:
    if path is None:
        raise UserError("a model needs a name, or a path to load it from")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give a model folder, or a name beside the weights file")
    if (path / store.CARD).exists():
        return store.load(path)
    if (path / "config.json").exists():
        block = Block("transformers", {"path": path})
        module = build("model", block)
        gives = frozenset(find("model", "transformers").facts.get("gives", {"logits"}))
        return Stored(module, Block("transformers", {"path": str(path)}), gives, spec)
    raise UserError(f"{path} holds neither {store.CARD} nor config.json: it is no model folder")
