"""Delivering the student: its folder with a model card, and the formats that the recipe asks for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from limbeck import __version__
from limbeck.engine.checkpoint import atomic
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.calls import example_rows
from limbeck.export.card import stated_licence, write_card
from limbeck.export.deliver import deliver
from limbeck.export.formats import EXAMPLES, STUDENT, clear_leftovers, export, is_done
from limbeck.export.words import one_line
from limbeck.registry import Block, register
from limbeck.run import RESULTS, Context
from limbeck.stages.evaluate import FRESH, results
from limbeck.training import MODEL


@register("stage", name="export")
def export_student(context: Context) -> None:
    """Copy the student to ``student/``, write its card, and export and check every format of the recipe.

    Raises:
        UserError: no student was trained, or a format could not be made (the student itself is delivered by then).
    """
    context.once(partial(_deliver_and_export, context))


def _deliver_and_export(context: Context) -> None:
    folder = _deliver(context)
    failed = [f"{name}: {error}" for name in context.recipe.export if (error := _export(context, folder, name))]
    if failed:
        says = "; ".join(failed)
        raise UserError(f"the student is in {folder}, but not every format could be exported: {says}")


def _deliver(context: Context) -> Path:
    arm = context.arms.get("student")
    if arm is None or arm.folder is None:
        raise UserError("stage 'export' delivers the trained student: put it after the stage 'train'")
    clear_leftovers(context.folder)
    _keep_examples(context)
    folder = deliver(arm.folder / MODEL, context.folder / STUDENT, origin(context))
    clear_leftovers(folder)
    written = context.folder / RESULTS
    found = json.loads(written.read_text(encoding="utf8")) if written.is_file() else results(context)
    write_card(folder, found, context.recipe)
    context.files["student"] = STUDENT
    return folder


def _export(context: Context, folder: Path, format: str) -> UserError | None:
    """Export one format unless it is there; gives the error instead of raising it, so that the others are made too."""
    if is_done(folder, format):
        return None
    try:
        made = export(folder, format, trust_code=True)
    except UserError as error:
        return error
    checked = store.read_card(folder)["exports"][format]["checked"]
    context.say(f"export: {made}, largest difference {checked['largest_difference']:.1e} on {checked['on']}")
    return None


def _keep_examples(context: Context) -> None:
    """Keep a few real inputs in the run directory: this and later exports are tried on them."""
    main = context.ingredients.main
    source = main.test or main.val or main.train
    path = context.folder / EXAMPLES
    if source is None or path.exists():
        return
    rows = example_rows(source)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic(path, lambda aside: save_file(rows, aside))


def origin(context: Context) -> dict[str, Any]:
    """Where the student comes from: what its ``limbeck.json`` and its card say. No paths, no secrets."""
    recipe = context.recipe
    about = {
        "title": recipe.title,
        "slug": recipe.slug,
        "method": recipe.method.name,
        "paper": recipe.paper,
        "licence": recipe.licence,
        "base_model": _base_model(context),
        "teachers": [_teacher(context, role) for role in recipe.teachers],
        "data": [
            {
                "stream": stream,
                "name": spelt(recipe.data[stream]),
                "fingerprint": getattr(data.train or data.test, "fingerprint", ""),
                "licence": data.spec.licence,
            }
            for stream, data in context.data.items()
        ],
        "recipe": recipe.fingerprint(),
        "seed": context.seed,
        "limbeck": __version__,
    }
    if judge := next((block for block in recipe.evaluate or () if block.name == FRESH), None):
        about["learnt_by"] = judge.args
    return json.loads(recipe.redact(json.dumps(about, default=Block.tree)))


def spelt(block: Block) -> str:
    """A block in a few words: its name and its plain arguments, places on this machine left out."""
    plain = {k: v for k, v in block.args.items() if isinstance(v, int | float | str)}
    listed = ", ".join(f"{k}={v}" for k, v in plain.items())
    return one_line(f"{block.name}({listed})" if listed else block.name)


def _teacher(context: Context, role: str) -> dict[str, Any]:
    arm, teacher = context.arms.get(role), context.teachers.get(role)
    return {
        "role": role,
        "describe": one_line(arm.describe) if arm else context.recipe.teachers[role].block.name,
        "hash": teacher.hash if teacher else "",
        "licence": _licence(context.recipe.teachers[role]),
    }


def _licence(block: Any) -> str | None:
    """A teacher's licence: the recipe's word, or what the folder that it was loaded from says of itself."""
    if block.licence or block.path is None or not block.path.is_dir():
        return block.licence
    if (block.path / store.CARD).is_file():
        return store.read_card(block.path)["about"].get("licence")
    return stated_licence(block.path)


def _base_model(context: Context) -> str | None:
    """The hub's name of what the student started from, else of its teacher."""
    blocks = [context.recipe.student.block, *(t.block for t in context.recipe.teachers.values())]
    return next((str(b.args["hub"]) for b in blocks if b.args.get("hub")), None)
