"""Distillation losses for classifiers, as pure functions on tensors, each importable alone.

All are unreduced: one value for each sample. Those of :mod:`~limbeck.vision.losses.relations` compare the samples of a
batch with one another and give the value of each sample's row.
"""

from limbeck.losses import soft_kl
from limbeck.vision.losses.logits import binary_log_probs, dkd, nckd, tckd
from limbeck.vision.losses.maps import attention, attention_map
from limbeck.vision.losses.relations import rkd_angle, rkd_distance

__all__ = [
    "attention",
    "attention_map",
    "binary_log_probs",
    "dkd",
    "nckd",
    "rkd_angle",
    "rkd_distance",
    "soft_kl",
    "tckd",
]
