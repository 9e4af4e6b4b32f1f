"""Weights in 8 or 4 bits for models of transformers, by torchao or bitsandbytes: smaller and inexact, not trained."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from limbeck.errors import UserError, needs_extra

Quantise = Literal["int8", "bnb_int8", "bnb_nf4"]
PACKAGES = {"int8": "torchao", "bnb_int8": "bitsandbytes", "bnb_nf4": "bitsandbytes"}


def quantisation(kind: Quantise) -> Any:
    """What transformers takes as ``quantization_config``.

    ``int8`` (torchao) keeps the weights of linear layers as whole numbers with one scale for each output, on any
    device; the last layer and the embeddings stay as they are. ``bnb_int8`` (LLM.int8(), arXiv 2208.07339) and
    ``bnb_nf4`` (arXiv 2305.14314) are those of bitsandbytes.

    Raises:
        UserError: the package is not installed.
    """
    if kind not in PACKAGES:
        raise UserError(f"no way to quantise is called '{kind}': there is {', '.join(PACKAGES)}")
    if find_spec(PACKAGES[kind]) is None:
        raise needs_extra(PACKAGES[kind], "int8")
    import transformers

    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    if kind == "bnb_int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
