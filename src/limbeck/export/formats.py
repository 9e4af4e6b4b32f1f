"""Exporting a model folder: from its weights to a file that was checked, with a record of the check."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck import __version__
from limbeck.engine.checkpoint import sha256
from limbeck.errors import UserError
from limbeck.export import card, image_sets, store
from limbeck.export.calls import call_of
from limbeck.export.image_sets import export_datasets, export_image_folder
from limbeck.export.onnx import export_onnx
from limbeck.export.onnx import packages as onnx_packages
from limbeck.export.programs import export_program
from limbeck.export.quantised import export_int8
from limbeck.export.sentence_transformers import export_sentence_transformers, refuse_encoder
from limbeck.export.store import Stored
from limbeck.export.transformers import export_transformers
from limbeck.models.quantised import quantisation
from limbeck.registry import nearest

STUDENT = "student"
EXAMPLES = Path("artifacts") / "examples.safetensors"
"""Inputs of a run's test split, kept in the run directory (never in the student's folder) to try exports on."""


@dataclass(frozen=True)
class Format:
    """A format: the name of what it writes, and how (call, model, its folder, target) -> facts.

    The call is a :class:`~limbeck.export.calls.Call`, or None for sets of images.
    """

    name: str
    write: Callable[[Any, Stored, Path, Path], dict[str, Any]]


FORMATS = {
    "onnx": Format("model.onnx", lambda call, stored, source, target: export_onnx(call, target)),
    "torch_export": Format("model.pt2", lambda call, stored, source, target: export_program(call, target)),
    "transformers": Format("transformers", export_transformers),
    "int8": Format("int8", export_int8),
    "sentence_transformers": Format("sentence_transformers", export_sentence_transformers),
    "diffusers": Format("diffusers", lambda call, stored, source, folder: _saves_pipelines(stored)(folder)),
    "datasets": Format("datasets", lambda call, stored, source, folder: export_datasets(stored, folder)),
    "image_folder": Format("image_folder", lambda call, stored, source, folder: export_image_folder(stored, folder)),
}
FOLDERS = ("transformers", "int8", "sentence_transformers", "diffusers", *image_sets.FORMATS)
"""Formats that are a folder and not a file."""


def _saves_pipelines(stored: Stored) -> Callable[[Path], dict[str, Any]]:
    save: Callable[[Path], dict[str, Any]] | None = getattr(stored.module, "save_pipeline", None)
    if save is None:
        raise UserError(f"export: diffusers: the student '{stored.block.name}' is no generator over a pipeline")
    return save


def export(path: Path, format: str, output: Path | None = None, *, trust_code: bool = False) -> Path:
    """See :func:`limbeck.export.export_model`."""
    if format not in FORMATS:
        hint = nearest(format, FORMATS)
        says = f"; did you mean '{hint}'?" if hint else ""
        raise UserError(f"no export format is called '{format}': there is {', '.join(FORMATS)}{says}")
    source = model_folder(path)
    target = _target(source, format, output)
    stored = store.load(source, trust_code=trust_code)
    facts = write(stored, source, format, target)
    record(source, format, target, facts)
    return target


def refuse_early(stored: Stored, formats: Iterable[str]) -> None:
    """Say before a training what could not be exported after it.

    Raises:
        UserError: a package is missing, or the model is of a kind that a format does not hold.
    """
    for format in formats:
        _refuse_kind(stored, format)
        if "images" in stored.gives:
            continue
        if format in ("transformers", "int8") and not store.is_transformers(stored.module):
            raise UserError(f"export: {format}: the student '{stored.block.name}' is no transformers model")
        if format == "int8":
            quantisation("int8")
        if format == "sentence_transformers":
            refuse_encoder(stored)
        if format == "diffusers":
            _saves_pipelines(stored)
        if format == "onnx":
            onnx_packages()


def _refuse_kind(stored: Stored, format: str) -> None:
    """Sets of images have formats of their own."""
    if "images" in stored.gives and format not in image_sets.FORMATS:
        instead = " or ".join(image_sets.FORMATS)
        raise UserError(
            f"export: {format}: the student is a set of images, which is delivered as images.npz; export {instead}"
        )
    if "images" not in stored.gives and format in image_sets.FORMATS:
        raise UserError(f"export: {format}: the student '{stored.block.name}' is no set of images")


def model_folder(path: Path) -> Path:
    """The model of a run directory, or the folder itself.

    Raises:
        UserError: there is no model.
    """
    for folder in (path, path / STUDENT):
        if (folder / store.CARD).is_file():
            return folder
    if not path.exists():
        raise UserError(f"there is no folder {path}: give a run directory or the folder of a model")
    raise UserError(f"{path} is neither a finished run (no {STUDENT}/ in it) nor the folder of a model")


def _target(source: Path, format: str, output: Path | None) -> Path:
    """Where to write. What is there is only ever replaced when it is an earlier export, or a file that was named."""
    name = FORMATS[format].name
    if output is None:
        return source / name
    if format in FOLDERS:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output} exists and is not empty: give a new folder")
        return output
    target = output / name if output.is_dir() else output
    if target.suffix != Path(name).suffix:
        raise UserError(f"format {format} is a {Path(name).suffix} file, not {target.name}")
    return target


def write(stored: Stored, source: Path, format: str, target: Path) -> dict[str, Any]:
    """Write one format under a temporary name, check it, and only then give it its name; returns the facts."""
    _refuse_kind(stored, format)
    call = None if format in image_sets.FORMATS else call_of(stored, examples(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as aside:
        made = Path(aside) / target.name
        facts = FORMATS[format].write(call, stored, source, made)
        for piece in sorted(Path(aside).iterdir()):
            place = target.parent / piece.name
            if place.is_dir():
                place.rename(Path(aside) / f".{piece.name}.old")
            piece.replace(place)
    return facts


def examples(source: Path) -> dict[str, Tensor] | None:
    """The rows that the run of a student kept, if the folder is a run's."""
    kept = source.parent / EXAMPLES
    return store.read_weights(kept) if source.name == STUDENT and kept.is_file() else None


def record(source: Path, format: str, target: Path, facts: dict[str, Any]) -> None:
    """Note an export in the model's ``limbeck.json`` and in its card."""
    exports = dict(store.read_card(source).get("exports") or {})
    exports[format] = {"file": target.name, **_identity(target), "limbeck": __version__, **facts}
    store.update_card(source, exports=exports)
    card.refresh_exports(source)


def is_done(source: Path, format: str) -> bool:
    """Whether a format lies beside the model as its ``limbeck.json`` says."""
    noted = dict(store.read_card(source).get("exports") or {}).get(format)
    target = source / FORMATS[format].name
    return noted is not None and target.exists() and all(noted.get(k) == v for k, v in _identity(target).items())


def _identity(target: Path) -> dict[str, Any]:
    if target.is_dir():
        files = {str(f.relative_to(target)): sha256(f) for f in sorted(target.rglob("*")) if f.is_file()}
        files.pop("README.md", None)
        return {"files": files}
    return {"sha256": sha256(target), "bytes": target.stat().st_size}


def clear_leftovers(folder: Path) -> None:
    """Delete what an interrupted export left behind in a folder."""
    for left in [*folder.glob(".export-*"), *folder.glob(f".{STUDENT}-*")]:
        shutil.rmtree(left, ignore_errors=True)
