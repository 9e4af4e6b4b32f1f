"""Distillation losses for classifiers, as pure functions on tensors, each importable alone.

All are unreduced: one value for each sample. Those of :mod:`~limbeck.vision.losses.relations`, and ``dist_intra``,
compare the samples of a batch with one another and give the value of each sample's row.
"""

from limbeck.losses import soft_kl
from limbeck.vision.losses.embeddings import gaussian, nce
from limbeck.vision.losses.factors import factor
from limbeck.vision.losses.logits import (
    balanced_kl,
    binary_log_probs,
    dist_inter,
    dist_intra,
    dkd,
    nckd,
    nkd,
    soft_cross_entropy,
    standardized,
    standardized_kl,
    tckd,
    tempered_kl,
)
from limbeck.vision.losses.maps import (
    activation_boundary,
    attention,
    attention_map,
    class_attention,
    cwd,
    fsp_matrix,
    nst,
    partial_l2,
    squared_error,
)
from limbeck.vision.losses.relations import congruence, pkt, rkd_angle, rkd_distance, similarity
from limbeck.vision.losses.review import hcl
from limbeck.vision.losses.soft import mean_probabilities, subclass_kl

__all__ = [
    "activation_boundary",
    "attention",
    "attention_map",
    "balanced_kl",
    "binary_log_probs",
    "class_attention",
    "congruence",
    "cwd",
    "dist_inter",
    "dist_intra",
    "dkd",
    "factor",
    "fsp_matrix",
    "gaussian",
    "hcl",
    "mean_probabilities",
    "nce",
    "nckd",
    "nkd",
    "nst",
    "partial_l2",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "soft_cross_entropy",
    "soft_kl",
    "squared_error",
    "standardized",
    "standardized_kl",
    "subclass_kl",
    "tckd",
    "tempered_kl",
]
