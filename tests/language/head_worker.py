"""What each of two processes runs to take the gradient of half a batch through the vocabulary head in chunks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from limbeck.data.text import text
from limbeck.engine.devices import Placement, launch
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.language.methods.word_kd import WordKD
from limbeck.models.causal import causal_lm


def gradients(strategy: str, chunked: bool | None) -> dict[str, torch.Tensor]:
    """Of the student's parameters, whole, from three rows in each process."""
    fabric = launch(Placement(accelerator="cpu", devices=2, strategy=strategy))
    data = text(corpus="grammar", characters=4000, context=16)
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        sizes = {"hidden": 16, "layers": 1, "heads": 2, "context": 16}
        networks.append(causal_lm(vocab_size=data.spec.vocab_size, **sizes).double())
    method = WordKD(chunked=chunked)
    method.setup(Parts(networks[0], {"teacher": Teacher(networks[1], {"logits"}, "teacher")}, data.spec))
    method.learners["student"] = fabric.setup_module(networks[0])
    batch = data.train.batch(torch.arange(6))
    batch["labels"][0, 3:] = -100
    batch["labels"][1] = -100
    counts = method.count(batch)
    own = {k: v[fabric.global_rank :: 2] if torch.is_tensor(v) else v for k, v in batch.items()}
    terms = method.terms(own)
    fabric.backward(sum(t.weight * t.sum * 2 / counts[t.unit] for t in terms.values()))
    found = {n: p.grad for n, p in networks[0].named_parameters()}
    return {
        n: (g.full_tensor() if hasattr(g, "full_tensor") else g).contiguous() for n, g in found.items() if g is not None
    }


if __name__ == "__main__":
    for strategy, chunked in (("ddp", True), ("fsdp", True)):
        found = gradients(strategy, chunked)
        if torch.distributed.get_rank() == 0:
            save_file(found, Path(sys.argv[1]) / f"{strategy}.safetensors")
        torch.distributed.barrier()
