"""Run directories like those that ``limbeck run`` leaves, with made-up numbers that behave like real ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Json = dict[str, Any]
MACHINE = {
    "device": "cpu",
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.11.7",
    "cpu": "AMD EPYC 7B13 64-Core Processor",
}
MANIFEST = {
    "limbeck": "0.1.0",
    "git": {"commit": "9f1c2e7d5b6a4c3d2e1f0a9b8c7d6e5f4a3b2c1d", "dirty": False},
    "hashes": {
        "recipe": "sha256:2f1d0c9b8a7e6d5c4b3a29180f1e2d3c4b5a69788796a5b4c3d2e1f0fedcba98",
        "data": "sha256:77aa4410ccde2211",
        "teacher": "sha256:0123456789abcdef",
    },
    "seeds": [0],
}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RECIPE = """title: Decoupled knowledge distillation
paper: {title: Decoupled Knowledge Distillation, arxiv: "2203.08679", year: 2022}
data:    {name: digits}
teacher: {name: cnn, width: 64, train: {epochs: 20}}    # trained once, kept, found again by content hash
student: {name: cnn, width: 8}
method:  {name: dkd, alpha: 1.0, beta: 8.0, temperature: 4.0}
train:   {epochs: 20, batch_size: 128, optimizer: {name: adamw, lr: 2.0e-3}}
evaluate: [accuracy, calibration, agreement, efficiency]
"""


def write_run(directory: Path, results: Json, logs: dict[str, list[Json]], recipe: str = RECIPE) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results), encoding="utf8")
    (directory / "recipe.yaml").write_text(recipe, encoding="utf8")
    (directory / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf8")
    for name, lines in logs.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
    return directory


def training_log(
    seed: int, terms: dict[str, tuple[float, float]], final: float, key: str = "accuracy", worst: float = 0.1
) -> list[Json]:
    """A log of 220 steps; ``terms`` maps a name to (last value, weight); validation ends at ``final``."""
    rng = np.random.default_rng(seed)
    lines: list[Json] = []
    for step in range(1, 221):
        fade = float(np.exp(-step / 45))
        line: Json = {"step": step, "epoch": round(step / 11, 3), "seconds": 0.055 * step, "split": "train"}
        noise = {name: float(rng.normal(1, 0.08)) for name in terms}
        values = {name: (last + (2.3 - last) * fade) * noise[name] for name, (last, _) in terms.items()}
        weighted = {name: values[name] * terms[name][1] for name in terms}
        total = sum(weighted.values())
        line |= {f"term/{n}": v for n, v in values.items()} | {f"weighted/{n}": v for n, v in weighted.items()}
        line |= {f"share/{n}": v / total for n, v in weighted.items()}
        line |= {"loss/student": total, "grad_norm/student": 3 * fade + 0.2, "lr/student": 2e-3 * (1 - step / 220)}
        lines.append(line)
        if step % 11 == 0:
            value = final + (worst - final) * float(np.exp(-step / 25)) * float(rng.normal(1, 0.05))
            lines.append({"step": step, "epoch": step / 11, "split": "val", key: value, "nll": 1.2 * fade + 0.1})
    return lines


def confusion(seed: int, classes: int, samples: int, accuracy: float) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    matrix = np.zeros((classes, classes), dtype=int)
    likely = rng.dirichlet(np.full(classes, 0.4), classes)
    for _ in range(samples):
        true = int(rng.integers(classes))
        wrong = rng.random() > accuracy
        matrix[true, int(rng.choice(classes, p=likely[true])) if wrong else true] += 1
    return matrix.tolist()


def reliability(seed: int, bias: float) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    confidence = np.linspace(0.37, 0.985, 10)
    accuracy = np.clip(confidence - bias * 4 * confidence * (1 - confidence) + rng.normal(0, 0.02, 10), 0, 1)
    count = (4 + 180 * (np.arange(10) / 9) ** 4).round()
    edges = np.arange(5, 15) / 15
    return {"low": edges.tolist(), "bins": confidence.tolist(), "accuracy": accuracy.tolist(), "count": count.tolist()}


def classification_results() -> tuple[Json, dict[str, list[Json]]]:
    def arm(role: str, label: str, describe: str, seed: int, accuracy: float, bias: float, **more: Any) -> Json:
        big = role == "teacher"
        metrics = {
            "accuracy": accuracy, "nll": 0.05 + 3 * (1 - accuracy), "ece": abs(bias) / 3, "brier": 1.6 * (1 - accuracy),
            "parameters": 174_218 if big else 12_442, "bytes": 697_640 if big else 50_536,
            "flops": 5_812_224 if big else 402_432, "latency_ms": 0.94 if big else 0.104,
            "latency_p90_ms": 1.21 if big else 0.131, "throughput": 18_240.0 if big else 161_300.0,
        }  # fmt: skip
        details = {
            "confusion": confusion(seed, 10, 360, accuracy),
            "test_samples": 360,
            "reliability": reliability(seed, bias),
        }
        made: Json = {"role": role, "label": label, "describe": describe, "metrics": metrics, "details": details}
        return made | {"train_seconds": 31.4 if big else 12.3, "steps": 440 if big else 220} | more

    teacher = arm(
        "teacher", "Teacher", "cnn(width=64)", 1, 0.983, 0.03, method="supervised", log="train/teacher/metrics.jsonl"
    )
    student = arm("student", "Student", "cnn(width=8)", 2, 0.969, 0.08, method="dkd", log="train/student/metrics.jsonl")
    alone = arm(
        "control", "Student alone", "cnn(width=8)", 3, 0.923, 0.16, method="supervised", log="train/alone/metrics.jsonl"
    )
    student["metrics"] |= {"agreement": 0.9722, "teacher_kl": 0.041}
    alone["metrics"] |= {"agreement": 0.9333, "teacher_kl": 0.118}
    results: Json = {
        "title": "Decoupled knowledge distillation", "slug": "dkd", "method": "dkd", "family": "vision",
        "task": "classification",
        "paper": {"title": "Decoupled Knowledge Distillation", "arxiv": "2203.08679", "year": 2022},
        "created": "2026-01-01T00:00:00Z", "seed": 0,
        "spec": {"task": "classification", "shape": [1, 8, 8], "classes": 10, "class_names": list("0123456789")},
        "machine": MACHINE, "arms": {"teacher": teacher, "student": student, "alone": alone},
        "plan": [
            ["train.lr", "0.002", "recipe line 9"], ["train.batch_size", "128", "recipe line 9"],
            ["train.schedule", "cosine", "default"], ["method.alpha", "1.0", "recipe line 8"],
            ["method.beta", "8.0", "recipe line 8"], ["method.temperature", "4.0", "recipe line 8"],
            ["student.classes", "10", "from the data"], ["seed", "0", "default"],
        ],
        "notes": ["The teacher was found in the cache: cnn-0123abcd."],
        "warnings": ["term 'ce' contributes 0.4 % of the gradient"],
    }  # fmt: skip
    logs = {
        "train/teacher/metrics.jsonl": training_log(1, {"ce": (0.04, 1.0)}, 0.981),
        "train/student/metrics.jsonl": training_log(
            2, {"ce": (0.22, 0.01), "tckd": (0.35, 1.0), "nckd": (0.11, 8.0)}, 0.965
        ),
        "train/alone/metrics.jsonl": training_log(3, {"ce": (0.12, 1.0)}, 0.92),
    }
    return results, logs


def spiral(seed: int, samples: int, noise: float, modes: int = 8, drop: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.integers(0, modes - drop, samples) / modes
    centre = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centre + rng.normal(0, noise, (samples, 2))).round(4).tolist()


def generator_results() -> tuple[Json, dict[str, list[Json]]]:
    def arm(role: str, label: str, describe: str, distance: float, nfe: int, coverage: float, **more: Any) -> Json:
        metrics = {
            "energy_distance": distance, "mmd": distance / 3, "mode_coverage": coverage, "outlier_rate": 2 * distance,
            "nfe": nfe, "parameters": 17_154, "latency_ms": 0.21 * nfe,
        }  # fmt: skip
        return {"role": role, "label": label, "describe": describe, "metrics": metrics, "details": {}} | more

    teacher = arm("teacher", "Teacher", "exact score, Heun", 0.0041, 100, 1.0)
    student = arm(
        "student", "Student", "mlp(width=128)", 0.0132, 1, 1.0, log="train/student/metrics.jsonl", train_seconds=48.0
    )
    alone = arm("control", "Teacher in one step", "exact score, Euler", 0.431, 1, 0.25)
    teacher["metrics"] |= {"parameters": 0}
    student["steps"] = 4000
    student["details"]["samples"] = {
        "student": spiral(1, 2000, 0.32),
        "teacher": spiral(2, 2000, 0.27),
        "one_step": spiral(3, 2000, 0.9, drop=5),
    }
    results = {
        "title": "Consistency distillation of eight Gaussians", "slug": "cd", "method": "cd", "family": "diffusion",
        "task": "generation", "paper": {"title": "Consistency Models", "arxiv": "2303.01469", "year": 2023},
        "created": "2026-01-01T00:00:00Z", "seed": 0, "spec": {"task": "generation", "shape": [2]}, "machine": MACHINE,
        "arms": {"teacher": teacher, "student": student, "one_step": alone}, "plan": [], "notes": [], "warnings": [],
    }  # fmt: skip
    log = training_log(5, {"consistency": (0.004, 1.0)}, 0.013, "energy_distance", 2.4)
    return results, {"train/student/metrics.jsonl": log}


def language_results() -> tuple[Json, dict[str, list[Json]]]:
    def arm(role: str, label: str, perplexity: float, big: bool, text: str) -> Json:
        key = {"Teacher": "teacher", "Student": "student"}.get(label, "alone")
        return {
            "role": role, "label": label, "describe": "gpt(layers=6, width=256)" if big else "gpt(layers=2, width=96)",
            "method": "word_kd",
            "metrics": {
                "perplexity": perplexity, "bits_per_token": float(np.log2(perplexity)),
                "parameters": 4_812_800 if big else 412_032, "bytes": 19_251_200 if big else 1_648_128,
                "flops": 1.21e9 if big else 1.02e8, "latency_ms": 11.8 if big else 1.92,
                "distinct_2": 0.61 if big else 0.52, "sampler": "top-p 0.9",
            },
            "details": {
                "texts": [
                    {"prompt": "ROMEO:", "text": text},
                    {
                        "prompt": "The king\nis come, and", "truth": "with him all the lords that stood before it.",
                        "greedy": "the the the the king of the", "sampled": "with him came the banners of the west.",
                    },
                ],
                "nll_by_position": [perplexity / (1 + 0.2 * i) for i in range(64)],
            },
            "train_seconds": 402.0 if big else 131.5, "steps": 220, "log": f"train/{key}/metrics.jsonl",
        }  # fmt: skip

    results = {
        "title": "Word-level distillation on tiny Shakespeare", "slug": "word_kd", "method": "word_kd",
        "family": "language", "task": "language",
        "paper": {"title": "Sequence-Level Knowledge Distillation", "arxiv": "1606.07947", "year": 2016},
        "created": "2026-01-01T00:00:00Z", "seed": 0, "spec": {"task": "language", "shape": [128], "vocab_size": 65},
        "machine": MACHINE,
        "arms": {
            "teacher": arm("teacher", "Teacher", 4.42, True, "What light is this that breaks?\nIt is my lady’s hand."),
            "student": arm("student", "Student", 4.97, False, "What light is that which breaks the window so?"),
            "alone": arm("control", "Student alone", 5.63, False, "What the the sigh of the see, and the that."),
        },
        "plan": [["train.lr", "0.001", "recipe line 9"]], "notes": [], "warnings": [],
    }  # fmt: skip
    logs = {
        f"train/{key}/metrics.jsonl": training_log(i, terms, final, "perplexity", 65.0)
        for i, (key, terms, final) in enumerate(
            [
                ("teacher", {"lm": (1.48, 1.0)}, 4.42),
                ("student", {"lm": (1.6, 0.5), "kd": (0.3, 0.5)}, 4.97),
                ("alone", {"lm": (1.72, 1.0)}, 5.63),
            ]
        )
    }
    return results, logs


def condensation_results() -> tuple[Json, dict[str, list[Json]]]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:8, 0:8]
    blob = lambda i: np.exp(-((x - 3.5 - 2 * np.cos(i)) ** 2 + (y - 3.5 - 2 * np.sin(i)) ** 2) / 5)  # noqa: E731
    images = [(blob(i).clip(0, 1) + rng.uniform(0, 0.1, (8, 8))).clip(0, 1).round(3).tolist() for i in range(10)]

    def arm(role: str, label: str, describe: str, accuracy: float, count: int, **details: Any) -> Json:
        metrics = {
            "fresh_accuracy": accuracy, "fresh_accuracy_std": 0.006, "images": count,
            "image_bytes": 256 * count, "label_bytes": 8 * count,
        }  # fmt: skip
        return {"role": role, "label": label, "describe": describe, "metrics": metrics, "details": details}

    results = {
        "title": "Distribution matching, one image a class", "slug": "dm", "method": "dm", "family": "condensation",
        "task": "classification", "paper": {"arxiv": "2110.04181"}, "seed": 0,
        "arms": {
            "teacher": arm("teacher", "Whole data set", "1 437 images", 0.964, 1437),
            "student": arm(
                "student", "Condensed images", "1 image a class", 0.871, 10, images=images, image_labels=list(range(10))
            ),
            "random": arm("control", "Random subset", "1 image a class", 0.602, 10),
        },
        "spec": {"task": "classification", "class_names": NUMBERS},
    }  # fmt: skip
    return results, {}


def stress_results() -> tuple[Json, dict[str, list[Json]]]:
    """Everything at once and too long: many arms, long names, many terms, many classes."""
    results, logs = classification_results()
    student = results["arms"]["student"]
    names = [
        "T-shirt or top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    results["spec"]["class_names"] = names
    results["title"] = "Averyveryverylongtitlewithoutanyspaces" * 3
    student["describe"] = (
        "a_model_with_a_very_long_name(width=8, depth=12, activation='gelu', norm='batch', stem='patch')"
    )
    results["arms"]["alone"]["label"] = "The same student, trained without any teacher"
    for i in range(5):
        made = copy.deepcopy(results["arms"]["alone"])
        made |= {"label": f"Control with label smoothing and a long name {i}", "log": "train/alone/metrics.jsonl"}
        made["metrics"]["accuracy"] -= 0.0005 * i
        results["arms"][f"control{i}"] = made
    terms = {f"a_rather_long_term_name_{i}": (0.1 * (i + 1), 1.0) for i in range(8)}
    logs["train/student/metrics.jsonl"] = training_log(9, terms, 0.965)
    results["plan"].append(
        ["method.terms.0.student.layer", "backbone.stages.3.blocks.11.attention.output" * 3, "recipe line 8"]
    )
    results["warnings"] += ["a second warning that goes on and on " * 6, "/a/path/without/any/spaces" * 9]
    return results, logs


MADE: dict[str, Callable[[], tuple[Json, dict[str, list[Json]]]]] = {
    "classification": classification_results,
    "generator": generator_results,
    "language": language_results,
    "condensation": condensation_results,
    "stress": stress_results,
}


def comparison_rows() -> list[Json]:
    rng = np.random.default_rng(7)
    arms = {
        "teacher": (0.983, 174_218, 0.94),
        "dkd": (0.969, 12_442, 0.104),
        "kd": (0.962, 12_442, 0.105),
        "alone": (0.934, 12_442, 0.104),
        "dkd, width 16": (0.977, 24_900, 0.21),
        "dkd, width 4": (0.921, 5_100, 0.07),
    }
    return [
        {
            "name": name,
            "seed": seed,
            "labels": {"data": "digits"},
            "metrics": {
                "accuracy": accuracy + float(rng.normal(0, 0.004)),
                "ece": 0.02 + float(rng.uniform(0, 0.02)),
                "parameters": parameters,
                "latency_ms": latency * float(rng.normal(1, 0.03)),
            },
        }
        for name, (accuracy, parameters, latency) in arms.items()
        for seed in range(5)
    ]


def proof_evidence() -> Json:
    rows = [r for r in comparison_rows() if r["name"] in ("dkd", "kd", "alone") and r["seed"] < 3]
    arms: dict[str, Json] = {}
    for name in ("dkd", "kd", "alone"):
        for key in ("accuracy", "ece", "parameters", "latency_ms"):
            values = [r["metrics"][key] for r in rows if r["name"] == name]
            spread = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "values": values}
            arms.setdefault(name, {})[key] = spread
    mean = {name: {key: spread["mean"] for key, spread in metrics.items()} for name, metrics in arms.items()}
    accuracy = {name: metrics["accuracy"] for name, metrics in mean.items()}
    checks = [
        ("accuracy.dkd > accuracy.alone + 0.01", accuracy["dkd"], accuracy["alone"] + 0.01),
        ("accuracy.dkd > accuracy.kd - 0.005", accuracy["dkd"], accuracy["kd"] - 0.005),
        ("ece.dkd < ece.alone", mean["dkd"]["ece"], mean["alone"]["ece"]),
    ]
    return {
        "title": "Decoupled knowledge distillation", "slug": "dkd", "family": "vision", "method": "dkd",
        "says": "the decoupled loss is no worse than the classical one, and both beat training alone",
        "holds": False, "because": "At this scale the decoupled loss makes the student over-confident.",
        "paper": {"title": "Decoupled Knowledge Distillation", "arxiv": "2203.08679", "year": 2022},
        "checks": [
            {"text": t, "left": a, "right": b, "holds": a > b if " > " in t else a < b} for t, a, b in checks
        ],
        "arms": arms, "seeds": [0, 1, 2], "seconds": 93.2, "machine": MACHINE, "recorded": "2026-01-01",
        "hashes": {"recipe": "sha256:77aa", "method": "sha256:88bb"},
    }  # fmt: skip


@pytest.fixture
def results() -> Json:
    """The results of the classification run, to be changed by a test."""
    return copy.deepcopy(classification_results()[0])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a run directory: one of the made-up runs by name, or changed results with their logs."""

    def write(kind: str = "classification", changed: Json | None = None, **options: Any) -> Path:
        made, logs = MADE[kind]()
        return write_run(tmp_path / kind, made if changed is None else changed, options.pop("logs", logs), **options)

    return write


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, written once, for tests that only look."""
    from limbeck.report.compare import write_comparison
    from limbeck.report.page import write_report
    from limbeck.report.proof import write_proof

    folder = tmp_path_factory.mktemp("pages")
    found = {kind: write_report(write_run(folder / kind, *made())) for kind, made in MADE.items()}
    found["compare"] = write_comparison(comparison_rows(), folder / "compare.html")
    found["proof"] = write_proof(proof_evidence(), folder / "proof.html")
    return found


@pytest.fixture
def rows() -> list[Json]:
    return comparison_rows()


@pytest.fixture
def evidence() -> Json:
    return proof_evidence()
