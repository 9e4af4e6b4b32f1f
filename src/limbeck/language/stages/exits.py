"""Delivering a student with exits as the plain encoder that ends at one of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.language.models.exits import ExitEncoder
from limbeck.registry import Block, register

if TYPE_CHECKING:
    from limbeck.run import Context

LOG = "metrics.jsonl"


@register("stage")
def cut_at_exit(context: Context, *, layers: int) -> None:
    """Deliver the student cut off at an exit: a ``text_encoder`` of so many layers with the weights of the whole.

    Goes after ``train`` in a recipe's ``stages``; what follows judges and exports the encoder that was cut off, also as
    a folder of sentence-transformers. The whole network stays among the run's artifacts, so that a run with another
    number cuts it elsewhere and trains nothing. Controls stay whole.

    Args:
        context: of the run.
        layers: after how many layers.

    Raises:
        UserError: nothing was trained before, the student has no exits, or none after so many layers.
    """
    arm = context.arms.get("student")
    if arm is None or arm.folder is None:
        raise UserError("cut_at_exit: there is no trained student to cut: put the stage after 'train'")
    folder = arm.folder.with_name(f"{arm.folder.name}-exit{layers}")
    context.once(partial(_cut, arm.folder, folder, layers))
    words = f"text_encoder, cut off after {layers} layers of {arm.describe}"
    context.arms["student"] = replace(arm, folder=folder, describe=words)
    context.say(f"cut_at_exit: the student is a {words}")


def _cut(whole: Path, folder: Path, layers: int) -> None:
    stored = store.load(whole / store.MODEL)
    if not isinstance(stored.module, ExitEncoder):
        raise UserError(f"cut_at_exit: the student must be an exit_encoder, not '{stored.block.name}'")
    made = stored.module.at(layers)
    given = {name: value for name, value in stored.block.args.items() if name != "every"}
    block = Block("text_encoder", {**given, "layers": layers, "dim": made.dim})
    cut = Stored(made, block, stored.gives, stored.spec, stored.about)
    store.save(folder / store.MODEL, cut, tokenizer=getattr(stored.module, "tokenizer", None))
    if (whole / LOG).is_file():
        shutil.copyfile(whole / LOG, folder / LOG)
