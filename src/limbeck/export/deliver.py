"""Delivering a student: a folder that appears whole, says where it comes from, and is not made twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.calls import call_of
from limbeck.export.images import write_images
from limbeck.export.store import Stored, is_transformers

OWN = (store.CARD, "README.md")
"""What a delivered folder has of its own, and is not copied from the artifact."""


def deliver(artifact: Path, folder: Path, about: Mapping[str, Any]) -> Path:
    """Copy a trained model to the folder that users take, with what is known of it in ``limbeck.json``.

    The folder is made aside and renamed, so it is never half there. It is left as it is (with exports that were added
    to it) when it holds this very model with the same facts.

    Args:
        artifact: the model's folder below the run's artifacts.
        folder: ``<run>/student``.
        about: titles, licences, teachers, data: goes into ``limbeck.json``, and from there into the card.

    Raises:
        UserError: the artifact is missing or damaged, or the folder cannot be written.
    """
    key = delivery_key(artifact, about)
    if _delivered_key(folder) == key:
        return folder
    stored = store.load(artifact, trust_code=True)  # of this run, whose recipe named its code
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
            made = Path(aside) / folder.name
            ignore = shutil.ignore_patterns(".*", *OWN)
            # Contents alone: weights are written for their owner's eyes, and a student is for others too.
            shutil.copytree(artifact, made, ignore=ignore, copy_function=shutil.copyfile)
            write_json(made / store.CARD, _card(artifact, stored, about, key))
            if "images" in stored.gives:
                write_images(made, stored, about)
            if folder.exists():
                folder.rename(Path(aside) / "replaced")
            made.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def delivery_key(artifact: Path, about: Mapping[str, Any]) -> str:
    """What a delivered folder depends on: the artifact's description (with its weights' hash) and the facts."""
    facts = [store.read_card(artifact), about, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _delivered_key(folder: Path) -> str | None:
    try:
        return store.read_card(folder).get("delivered")
    except UserError:
        return None


def _card(artifact: Path, stored: Stored, about: Mapping[str, Any], key: str) -> dict[str, Any]:
    card = store.read_card(artifact)
    card["about"] = {**card["about"], **about}
    try:
        call = call_of(stored)
        card["call"] = {"inputs": call.signature(), "output": call.output}
    except Exception:  # a model that is no function of tensors: the card then shows no call
        card["call"] = None
    if is_transformers(stored.module):
        from limbeck.export.transformers import auto_class

        try:
            card["auto_class"] = auto_class(stored.module)
        except UserError:
            card["auto_class"] = type(stored.module).__name__
    return {**card, "delivered": key}
