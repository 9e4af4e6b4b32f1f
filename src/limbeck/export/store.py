"""Models on disk: weights as safetensors and a small ``limbeck.json`` that says how to build the model again.

A transformers model is stored in its own layout (``save_pretrained``), so it loads without this library;
``limbeck.json`` then only adds what limbeck knows about it.

Reading a model runs no code that the folder names: a model of someone's own class is built when this process named it
itself, when the caller trusts it, or around a network that the caller built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck import registry
from limbeck.engine.checkpoint import atomic, tensor_hash, write_json
from limbeck.errors import UserError
from limbeck.recipe.blocks import Checker
from limbeck.recipe.environment import Environment
from limbeck.recipe.mistakes import Mistake
from limbeck.recipe.source import Where, from_plain
from limbeck.registry import Block, Param, build, nearest

FORMAT = 1
WEIGHTS = "model.safetensors"
CARD = "limbeck.json"
ADAPTER = "adapter"
MODEL = "model"
"""The folder of the model inside what a training leaves."""
LAYOUTS = ("limbeck", "transformers")
_FIELDS = {"model": dict, "layout": str, "gives": list, "hash": str, "about": dict}
"""What every card holds, and of which type."""


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


def reads_tokens(module: nn.Module) -> bool:
    """Whether a module reads token ids, so that its tokenizer is kept with it."""
    return is_transformers(module) or getattr(module, "main_input_name", None) == "input_ids"


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars that transformers shows for every file, however small."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save(folder: Path, stored: Stored, *, tokenizer: Any = None) -> None:
    """Write a model to a folder (made if missing); a file is only ever replaced by a whole one.

    A transformers model with adapters is written as the model that it is with them added to its weights, which loads
    anywhere; the adapters alone lie in ``adapter/``, as peft reads them.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module: Any = stored.module
    if is_transformers(module) and hasattr(module, "save_adapter"):
        module.save_adapter(folder / ADAPTER)
        module = module.merged()
    if is_transformers(module):
        with no_bars():
            module.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
        atomic(folder / WEIGHTS, lambda path: save_file(weights, path))
    if tokenizer is not None and reads_tokens(module):
        tokenizer.save_pretrained(folder)
    card = {
        "format": FORMAT,
        "layout": "transformers" if is_transformers(module) else "limbeck",
        "model": _plain(stored.block, is_transformers(module)),
        "gives": sorted(stored.gives),
        "hash": tensor_hash(module.state_dict()),
        "spec": stored.spec,
        "about": stored.about,
    }
    write_json(folder / CARD, card)


def load(folder: str | Path, *, into: nn.Module | None = None, trust_code: bool = False) -> Stored:
    """Read a model that :func:`save` wrote.

    Args:
        folder: the model's.
        into: a network to load the weights into, instead of building the one that the folder names.
        trust_code: import the module that the folder names, where the model's class is not part of this library.

    Raises:
        UserError: the folder holds no such model, its weights are damaged or do not fit, or it names code that is
            neither part of this library nor trusted.
    """
    folder = Path(folder)
    card = read_card(folder)
    tree = card["model"]
    if into is not None:
        block, module = Block(tree["name"], {k: v for k, v in tree.items() if k != "name"}), into
        load_weights(module, folder / WEIGHTS)
    elif card["layout"] == "transformers":
        block = Block(tree["name"], {k: v for k, v in tree.items() if k != "name"})
        with no_bars():
            module = build("model", Block("transformers", _transformers_arguments(folder, card)))
    else:
        block = _block(folder, tree, trust_code)
        module = build("model", block)
        load_weights(module, folder / WEIGHTS)
        _attach_tokenizer(module, folder)
    if tensor_hash(module.state_dict()) != card["hash"]:
        raise UserError(f"the weights in {folder} are not those that {CARD} describes: they were changed or damaged")
    return Stored(module.eval(), block, frozenset(card["gives"]), card.get("spec"), card["about"])


def _attach_tokenizer(module: Any, folder: Path) -> None:
    """The tokenizer that lies beside a network which reads tokens, as transformers models have theirs."""
    if reads_tokens(module) and (folder / "tokenizer.json").is_file():
        from limbeck.data.tokenizer import load_tokenizer, tokenizer_hash

        module.tokenizer = load_tokenizer(folder)
        module.tokenizer_hash = tokenizer_hash(module.tokenizer)


def _transformers_arguments(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """As it was saved: the stored dtype, and the attention that it was trained with (no config keeps that)."""
    attention = card["model"].get("attention")
    kept = {"attention": attention} if attention in ("sdpa", "eager") else {}
    return {"path": folder, "task": card["about"].get("task", "auto"), "dtype": "auto", **kept}


def _block(folder: Path, tree: Mapping[str, Any], trust_code: bool) -> Block:
    """The block that a card spells, checked as a recipe's would be; its file may not read the environment."""
    foreign = [name for name in _names(tree) if ":" in name and name not in registry.named_paths()]
    if foreign and not trust_code:
        raise UserError(
            f"the model in {folder} is of the class {foreign[0]}, which is not part of limbeck, and no file makes "
            f"limbeck run code: load it with trust_code=True (--trust-code), or into= a network that you built; "
            f"in a recipe, give 'name: {foreign[0]}' beside its path"
        )
    mistakes: list[Mistake] = []
    check = Checker(folder, Environment({}), mistakes)
    block = check.block("model", from_plain(dict(tree), Where(str(folder / CARD)), mistakes), ("model",))
    if not check.mistakes:
        return block
    if not any(_exists(name) for name in _names(tree)):
        raise UserError(
            f"the model in {folder} was made of a live network ('{tree['name']}'), which this process does not have: "
            f"build the same network and load its weights with into="
        )
    raise UserError(str(check.mistakes[0]))


def _names(tree: Any) -> list[str]:
    """Every ``name`` in a card's model block, its own first."""
    if isinstance(tree, Mapping):
        own = [tree["name"]] if isinstance(tree.get("name"), str) else []
        return own + [name for k, v in tree.items() if k != "name" for name in _names(v)]
    return [name for v in tree for name in _names(v)] if isinstance(tree, list) else []


def _exists(name: str) -> bool:
    try:
        return bool(registry.find("model", name))
    except LookupError:
        return False


def read_card(folder: Path) -> dict[str, Any]:
    """The ``limbeck.json`` of a model folder.

    Raises:
        UserError: it is missing, unreadable, incomplete or of a newer format.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no model of this library: there is no {CARD} in it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise UserError(f"{path} is of format {found!r}; this version reads format {FORMAT}")
    wrong = [k for k, kind in _FIELDS.items() if not isinstance(card.get(k), kind)]
    if wrong or card["layout"] not in LAYOUTS or not isinstance(card["model"].get("name"), str):
        raise UserError(f"{path} is not what this library writes: look at {(wrong or ['layout', 'model.name'])[0]}")
    return card


def update_card(folder: Path, **fields: Any) -> dict[str, Any]:
    """Change fields of a model's ``limbeck.json``; returns the new content."""
    card = {**read_card(folder), **fields}
    write_json(folder / CARD, card)
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


def _plain(block: Block, transformers: bool) -> dict[str, Any]:
    """The block for JSON: with today's defaults, without what is no plain value (the built data, say).

    A transformers model is read from its own folder, so where it once came from is left out.
    """
    tree = _spelled_out(block).tree()
    tree = _without_paths(tree) if transformers else tree
    return {k: v for k, v in tree.items() if _is_plain(v)}


def _without_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_paths(v) if isinstance(v, Mapping) else v for k, v in tree.items() if k != "path"}


def _spelled_out(block: Block) -> Block:
    """The block with the defaults it leaves to the signature: a later version may have others."""
    try:
        part = registry.find("model", block.name)
    except (LookupError, UserError):
        return block
    args = {k: _spelled_out(v) if isinstance(v, Block) else v for k, v in block.args.items()}
    defaults = {p.name: p.default for p in part.params if p.name not in args and _is_literal(p)}
    return Block(block.name, {**args, **defaults})


def _is_literal(p: Param) -> bool:
    """Whether a default is a value for sure: a constant of the module (``math.pi``) is read as its source text."""
    said = p.source.startswith(("str", "Literal"))
    return isinstance(p.default, bool | int | float) or (isinstance(p.default, str) and said)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)
