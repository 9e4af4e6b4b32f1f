"""What metrics are called, how they are written, and which of them a page is about.

Directions, labels and units come from the registered metrics (read without importing them). The table here adds what
only a page needs: the group a value is shown in, how it is written, and the noun a sentence uses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from limbeck import registry

Group = Literal["quality", "fidelity", "calibration", "cost", "other"]
GROUPS: dict[Group, str] = {
    "quality": "Quality",
    "fidelity": "Fidelity to the teacher",
    "calibration": "Calibration",
    "cost": "Size and speed",
    "other": "Other measurements",
}


@dataclass(frozen=True)
class Metric:
    """How a value is shown.

    Attributes:
        key: its name in the results.
        label: what to call it.
        unit: as :func:`limbeck.report.units.quantity` takes it.
        better: which way is better, if known.
        group: where it is shown.
        noun: its name inside a sentence.
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    group: Group = "other"
    noun: str = ""

    @property
    def name(self) -> str:
        """The noun, or the label with a small first letter (unless that is part of an abbreviation)."""
        return self.noun or (self.label[:1].lower() + self.label[1:] if self.label[1:2].islower() else self.label)

    def gain(self, value: float, other: float) -> float:
        """How much better ``value`` is than ``other``, in the value's unit; positive is better."""
        return other - value if self.better == "lower" else value - other


_TABLE: tuple[Metric, ...] = (
    Metric("fresh_accuracy", "Accuracy of fresh networks", "%", "higher", "quality", "accuracy of fresh networks"),
    Metric("fresh_accuracy_std", "Its spread over networks", "%", "lower", "quality"),
    Metric("accuracy", "Accuracy", "%", "higher", "quality"),
    Metric("top5_accuracy", "Top-5 accuracy", "%", "higher", "quality"),
    Metric("miou", "Mean intersection over union", "%", "higher", "quality", "mean intersection over union"),
    Metric("pixel_accuracy", "Pixel accuracy", "%", "higher", "quality"),
    Metric("ap50", "Average precision (AP50)", "%", "higher", "quality", "average precision"),
    Metric("perplexity", "Perplexity", "", "lower", "quality"),
    Metric("bits_per_token", "Bits per token", "bits", "lower", "quality"),
    Metric("bits_per_character", "Bits per character", "bits", "lower", "quality"),
    Metric("nll_per_token", "Negative log-likelihood per token", "nats", "lower", "quality"),
    Metric("ndcg_10", "nDCG@10", "%", "higher", "quality"),
    Metric("mrr_10", "MRR@10", "%", "higher", "quality"),
    Metric("recall_10", "Recall@10", "%", "higher", "quality"),
    Metric("recall_100", "Recall@100", "%", "higher", "quality"),
    Metric("asymmetric_ndcg_10", "nDCG@10, documents by the teacher", "%", "higher", "quality"),
    Metric("asymmetric_recall_10", "Recall@10, documents by the teacher", "%", "higher", "quality"),
    Metric("truncated_ndcg_10", "nDCG@10, truncated vectors", "%", "higher", "quality"),
    Metric("int8_ndcg_10", "nDCG@10, int8 vectors", "%", "higher", "quality"),
    Metric("binary_ndcg_10", "nDCG@10, binary vectors", "%", "higher", "quality"),
    Metric("spearman", "Spearman correlation", "", "higher", "quality"),
    Metric("pearson", "Pearson correlation", "", "higher", "quality"),
    Metric("energy_distance", "Energy distance", "", "lower", "quality"),
    Metric("mmd", "Maximum mean discrepancy", "", "lower", "quality"),
    Metric("oracle_nll", "Negative log-likelihood under the true law", "nats", "lower", "quality"),
    Metric("mode_coverage", "Modes covered", "%", "higher", "quality", "mode coverage"),
    Metric("outlier_rate", "Outliers", "%", "lower", "quality", "share of outliers"),
    Metric("nll", "Negative log-likelihood", "nats", "lower", "quality"),
    Metric("agreement", "Agreement with the teacher", "%", "higher", "fidelity"),
    Metric("teacher_kl", "KL from the teacher", "nats", "lower", "fidelity"),
    Metric("ece", "Calibration error (ECE)", "%", "lower", "calibration", "calibration error"),
    Metric("brier", "Brier score", "", "lower", "calibration"),
    Metric("nfe", "Network evaluations per sample", "", "lower", "cost", "network evaluations"),
    Metric("images", "Images", "", "lower", "cost"),
    Metric("image_bytes", "Bytes of images", "bytes", "lower", "cost"),
    Metric("label_bytes", "Bytes of labels", "bytes", "lower", "cost"),
    Metric("parameters", "Parameters", "count", "lower", "cost"),
    Metric("bytes", "Size", "bytes", "lower", "cost"),
    Metric("flops", "FLOPs per sample", "flops", "lower", "cost"),
    Metric("latency_ms", "Latency", "ms", "lower", "cost", "latency"),
    Metric("latency_p90_ms", "Latency, 90th percentile", "ms", "lower", "cost"),
    Metric("texts_per_second", "Texts encoded", "per s", "higher", "cost"),
    Metric("active_query", "Non-zero weights of a query", "", "lower", "cost"),
    Metric("active_document", "Non-zero weights of a document", "", "lower", "cost"),
    Metric("overlap_flops", "Multiplications per query and document", "", "lower", "cost"),
    Metric("throughput", "Throughput", "samples/s", "higher", "cost"),
)
OWN: dict[str, Metric] = {m.key: m for m in _TABLE}
SHORT = {
    "latency_ms": "Latency",
    "miou": "mIoU",
    "ap50": "AP50",
    "ece": "Calibration error",
    "latency_p90_ms": "Latency p90",
    "nll": "NLL",
    "nfe": "Evaluations",
    "image_bytes": "Image bytes",
    "label_bytes": "Label bytes",
}
MAIN = {
    "classification": ("fresh_accuracy", "accuracy", "top5_accuracy", "nll"),
    "segmentation": ("miou", "pixel_accuracy"),
    "detection": ("ap50",),
    "language": ("perplexity", "bits_per_token", "accuracy", "nll"),
    "embedding": ("ndcg_10", "spearman", "accuracy"),
    "generation": ("energy_distance", "frechet", "mmd", "oracle_nll", "mode_coverage"),
}


def info(key: str, labels: Mapping[str, object] | None = None) -> Metric:
    """How to show a value; a key that nobody knows is shown under its own name.

    Args:
        key: its name in the results.
        labels: overrides by key, each ``(label, unit)``.
    """
    said = (labels or {}).get(key)
    known = _registered(tuple(registry.names("metric"))).get(key) or OWN.get(key) or Metric(key, _words(key))
    if isinstance(said, list | tuple) and len(said) == 2 and all(isinstance(s, str) for s in said):
        return replace(known, label=said[0], unit=said[1] or known.unit)
    return known


def short(metric: Metric) -> str:
    """A label for narrow places."""
    return SHORT.get(metric.key, metric.label)


def main_metric(keys: Iterable[str], task: str = "") -> Metric | None:
    """What a run is judged by: the first of its task's, then any of a known direction that is not a cost."""
    there = list(keys)
    wanted = [*MAIN.get(task, ()), *(k for task_keys in MAIN.values() for k in task_keys)]
    known = [k for k in there if info(k).better and info(k).group != "cost"]
    unknown = [k for k in there if info(k).group != "cost"]
    chosen = next((k for k in [*wanted, *known, *unknown] if k in there), None)
    return info(chosen) if chosen else None


def ordered(keys: Iterable[str]) -> list[Metric]:
    """The metrics of a page in the order they are shown: by group, then as in the table, then by name."""
    places = {key: i for i, key in enumerate(OWN)}
    groups = list(GROUPS)
    found = [info(key) for key in set(keys)]
    return sorted(found, key=lambda m: (groups.index(m.group), places.get(m.key, len(places)), m.key))


@functools.cache
def _registered(names: tuple[str, ...]) -> dict[str, Metric]:
    """The metrics that say a label or a direction where they are registered, joined with the table."""
    known: dict[str, Metric] = {}
    for name in names:
        try:
            facts = registry.find("metric", name).facts
        except Exception:  # a third party's entry point that does not import must not cost the report
            continue
        for key in {**facts.get("labels", {}), **facts.get("better", {})}:
            known.setdefault(key, _joined(key, facts))
    said = [m.label for m in known.values()]
    return {k: replace(m, label=OWN[k].label) if k in OWN and said.count(m.label) > 1 else m for k, m in known.items()}


def _joined(key: str, facts: Mapping[str, Any]) -> Metric:
    label, unit = facts.get("labels", {}).get(key, ("", ""))
    own = OWN.get(key, Metric(key, _words(key)))
    better = facts.get("better", {}).get(key, own.better)
    return replace(own, label=label or own.label, unit=own.unit or unit, better=better)


def _words(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
