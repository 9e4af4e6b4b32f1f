"""What a quantised network takes to store."""

from __future__ import annotations

from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import register
from limbeck.vision.quantise import packed_bits


@register(
    "metric",
    task={"classification"},
    better={"packed_bytes": "lower"},
    labels={"packed_bytes": ("Size, Huffman-coded", "bytes")},
)
def packing(evaluation: Evaluation, *, bucket_size: int | None = 256) -> Scores:
    """Bytes of the parameters when weights on few levels are Huffman-coded (Polino et al. 2018, section 2.3).

    A tensor of two axes or more that has at most 256 levels counts its code, its levels and two floats for each
    bucket; every other value counts 4 bytes.

    Args:
        evaluation: what is measured.
        bucket_size: values that share a scale, as they were quantised; None for all of a tensor.
    """
    bits = sum(packed_bits(p, bucket_size) if p.dim() > 1 else 32 * p.numel() for p in evaluation.model.parameters())
    return Scores({"packed_bytes": bits / 8})
