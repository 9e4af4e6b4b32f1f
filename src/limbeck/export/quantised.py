"""A student with its weights in 8 bits, as a folder that plain transformers reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.export.calls import Call
from limbeck.export.checks import LIMIT, distance, quiet
from limbeck.export.store import Stored, is_transformers, no_bars
from limbeck.models.quantised import quantisation


def export_int8(call: Call, stored: Stored, source: Path, folder: Path) -> dict[str, Any]:
    """Write a model with int8 weights (torchao, weight-only) and say what that costs.

    Returns:
        Versions, the class to load it with, bytes of the weights before and after, how far its outputs are from the
        model's, and of a language model the perplexity of both on the examples.

    Raises:
        UserError: the student is no transformers model, torchao is not installed, or what is read again gives other
            outputs than what was written.
    """
    from limbeck.export.transformers import auto_class, copy_folder

    if not is_transformers(stored.module):
        says = f"the student is a {type(stored.module).__name__}, not a transformers model"
        raise UserError(f"{says}: int8 is for these")
    config = quantisation("int8")
    import transformers

    name = auto_class(stored.module)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    load = getattr(transformers, name).from_pretrained
    with quiet(), no_bars():
        made = load(source, dtype="auto", quantization_config=config, **options).eval()
        folder.mkdir()
        copy_folder(source, folder, weights=False)
        made.save_pretrained(folder)
        again = load(folder, dtype="auto", **options).eval()
    before, after = (sum(f.stat().st_size for f in place.glob("*.safetensors")) for place in (source, folder))
    return {
        "class": name,
        "inputs": call.signature(),
        "output": call.output,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "bytes_of_weights": {"model": before, "int8": after},
        "checked": _compared(call, made, again, f"{name} of transformers {transformers.__version__}"),
    }


def _compared(call: Call, made: Any, again: Any, against: str) -> dict[str, Any]:
    """How far int8 is from the model; the folder that is read again must be exactly what was written."""
    apart, largest = 0.0, 0.0
    losses: list[tuple[Tensor, Tensor]] = []
    for batch in call.batches:
        named = dict(zip(call.inputs, batch, strict=True))
        with torch.no_grad():
            exact, found, read = call.module(*batch), made(**named)[call.output], again(**named)[call.output]
        gap, scale = distance(found, read)
        if not gap <= LIMIT * scale:
            raise UserError(f"the int8 folder gives other outputs when it is read again, by {gap:.3g}")
        gap, scale = distance(exact, found)
        apart, largest = max(apart, gap), max(largest, scale)
        if "input_ids" in named and exact.ndim == 3:
            losses.append((_loss(exact, named), _loss(found, named)))
    facts: dict[str, Any] = {
        "against": against,
        "batches": [list(batch[0].shape) for batch in call.batches],
        "on": call.origin,
        "largest_difference": apart,
        "relative": apart / largest if largest else 0.0,
    }
    if losses:
        means = (float(torch.cat(side).mean()) for side in zip(*losses, strict=True))
        facts["perplexity"] = dict(zip(("model", "int8"), map(math.exp, means), strict=True))
    return facts


def _loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the next tokens that are no padding, in nats [N]."""
    tokens = batch["input_ids"]
    there = batch.get("attention_mask", torch.ones_like(tokens))[:, 1:].bool()
    return F.cross_entropy(logits[:, :-1][there].float(), tokens[:, 1:][there], reduction="none")
