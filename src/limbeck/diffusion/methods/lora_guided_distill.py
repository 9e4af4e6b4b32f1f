"""Guidance distillation by adapters on a frozen network, which is its own teacher."""

from __future__ import annotations

from limbeck.diffusion.methods.guidance_distillation import GuidanceDistillation
from limbeck.diffusion.self_guided import SelfGuided
from limbeck.registry import register


@register("method")
class LoRAGuidedDistill(SelfGuided, GuidanceDistillation):
    """LoRA-enhanced distillation of guided diffusion models (Golnari, arXiv 2312.06899).

    Guidance distillation in which the network stays as it is and low-rank adapters alone learn: with them it gives in
    one call what it gives guided, in two calls, without them. So teacher and student are one set of weights, and the
    optimizer has the adapters only. The student's network is ``lora`` over one like the teacher's, whose weights it
    takes; after that the teacher is asked for nothing but samples to noise, where the recipe has no data. The paper's
    fixed strength is ``scale_min`` equal to ``scale_max`` (and ``told: false``); by default they are drawn, and the
    base has an input for them (``guided: true``).

    What differs: adapters are on every linear layer and convolution, unless the network's ``targets`` say otherwise,
    where the paper has them on those of attention; the noise levels are weighted by ``max(SNR, 1)``.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"unguided": {"method": {"scale_max": 1.0}}}
    dial = "std"
