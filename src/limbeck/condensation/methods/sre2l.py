"""SRe2L: images recovered from a trained network, with its labels for every crop."""

from __future__ import annotations

from limbeck.condensation.recover import DecoupledMethod
from limbeck.registry import register


@register("method")
class SRe2L(DecoupledMethod):
    """Squeeze, Recover and Relabel (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092).

    The teacher is what the data is squeezed into. The paper recovers from Gaussian noise (the student's ``init:
    noise``) with 4000 steps of rate 0.25 and a roll of 32 of 224 pixels; for images of 32 pixels with 1000 steps, whole
    images (``crop: 1``) and a roll of 4. The labels are those of the student ``relabelled_images``: 300 epochs, CutMix,
    temperature 20.
    """
