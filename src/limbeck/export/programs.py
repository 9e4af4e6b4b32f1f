"""Models as torch.export programs (``.pt2``): they run where torch is, without this library or the model's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from limbeck.errors import UserError
from limbeck.export.calls import Call
from limbeck.export.checks import check, first_line, quiet


def trace(call: Call) -> ExportedProgram:
    """The model as a graph of torch operators with free axes.

    Raises:
        UserError: the model cannot be traced, or its code fixes the size of an axis.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(call.module, call.batches[0], dynamic_shapes=call.shapes(), strict=False)
    except Exception as error:  # tracing fails in as many ways as there are models
        fixed = "Constraints violated" in str(error)
        hint = " (its code fixes this size; len(x) does so, x.shape[0] does not)" if fixed else ""
        raise UserError(f"torch.export cannot trace this model: {first_line(error)}{hint}") from error
    forget(program)
    return program


def export_program(call: Call, file: Path) -> dict[str, Any]:
    """Write a model as a ``.pt2`` file and check it by reading it back.

    A ``.pt2`` file is a zip of weights, a graph as JSON and a small pickle of torch's. This library reads the one that
    it has just written, and never one that it was given.

    Returns:
        Versions, the signature, and how far its outputs are from the model's.

    Raises:
        UserError: the model cannot be traced, or the file's outputs are not the model's.
    """
    program = trace(call)
    with quiet():
        torch.export.save(program, file)
        module = torch.export.load(file).module()
    found = check(call, lambda batch: module(*batch), "the torch.export program")
    return {
        "inputs": call.signature(),
        "output": call.output,
        "versions": {"torch": torch.__version__},
        "checked": {"against": f"the file read back by torch {torch.__version__}", **found},
    }


def forget(program: ExportedProgram) -> None:
    """Take out what a file of a model must not tell: the samples it was traced with, and paths on this machine."""
    program._example_inputs = None
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "source_fn_stack", "from_node"):
                node.meta.pop(key, None)
