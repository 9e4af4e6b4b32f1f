"""Delivering models: this library's own folders, model cards, and formats that others read."""

from __future__ import annotations

from pathlib import Path


def export_model(path: Path, format: str, output: Path | None = None, *, trust_code: bool = False) -> Path:
    """Export a delivered model to a format that others read, and check the result against the model at once.

    Args:
        path: a run directory (its ``student`` is taken), or the folder of a model.
        format: ``onnx``, ``torch_export``, ``transformers``, ``int8`` (the same with weights in 8 bits, by torchao),
            ``sentence_transformers`` or ``diffusers``.
        output: the file (for the last four the folder) to write; by default beside the model's weights.
        trust_code: import the module that the model's folder names, where its class is not part of this library.

    Returns:
        What was written.

    Raises:
        UserError: no such model, a format that it cannot have, or a result whose outputs are not the model's
            (then nothing is written).
    """
    from limbeck.export.formats import export

    return export(Path(path), format, output, trust_code=trust_code)
