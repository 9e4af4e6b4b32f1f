"""Models as ONNX files, checked with onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError, needs_extra
from limbeck.export.calls import Call
from limbeck.export.checks import check, first_line, quiet
from limbeck.export.programs import trace

INSIDE = 1_500_000_000
"""Bytes of weights that go into the file itself; protobuf allows 2 GiB, more goes into a file beside it."""


def export_onnx(call: Call, file: Path) -> dict[str, Any]:
    """Write a model as ONNX with a free batch axis, and compare onnxruntime with torch.

    Returns:
        Versions, the signature, and how far its outputs are from the model's.

    Raises:
        UserError: a package is missing, the model cannot be translated, or onnxruntime gives other outputs.
    """
    onnx, runtime = packages()
    call.module.float()  # CPU runtimes lack most operators in half precision
    traced = trace(call)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                traced, input_names=list(call.inputs), output_names=[call.output], dynamo=True, verbose=False
            )
    except Exception as error:  # translation fails in as many ways as there are models
        raise UserError(f"torch.onnx cannot translate this model: {first_line(error)}") from error
    assert program is not None
    name_axes(program.model, call)
    forget(program.model)
    with quiet():
        program.save(file, external_data=_bytes(call.module) > INSIDE)
    onnx.checker.check_model(file)
    return {
        "inputs": call.signature(),
        "output": call.output,
        "opset": program.model.opset_imports[""],
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
        "checked": {"against": f"onnxruntime {runtime.__version__}", **_compare(call, file, runtime)},
    }


def forget(model: Any) -> None:
    """Take out where on this machine each operator's source was, and how it was made."""
    for graph in (model.graph, *(f for f in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()


def name_axes(model: Any, call: Call) -> None:
    """Call the free axes what they are (``batch``) in place of the tracer's symbols (``s43``), wherever they occur."""
    words = {
        str(value.shape[axis]): name
        for value, axes in zip(model.graph.inputs, call.axes, strict=True)
        for axis, name in axes.items()
    }
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")
    values = [*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[axis] = pattern.sub(lambda m: words[m[0]], str(size))


def _compare(call: Call, file: Path, runtime: Any) -> dict[str, Any]:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        given: dict[str, np.ndarray] = {n: x.numpy() for n, x in zip(call.inputs, batch, strict=True)}
        return torch.from_numpy(session.run([call.output], given)[0])

    return check(call, run, "the ONNX model")


def packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime.

    Raises:
        UserError: one of them, or what torch translates with, is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs_extra(error.name or "onnx", "onnx") from error
    return onnx, onnxruntime


def _bytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())
