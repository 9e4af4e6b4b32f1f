"""The evaluation harness of language models runs a stored student as it lies there."""

from __future__ import annotations

import pytest
import torch

import limbeck
from limbeck.run import run_recipe

pytest.importorskip("lm_eval")


def test_the_harness_gives_the_likelihood_that_the_student_has(tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    result = run_recipe(
        {
            "data": {"name": "text", "corpus": "grammar", "characters": 4000, "context": 32},
            "teacher": {"name": "causal_lm", "hidden": 16, "layers": 1, "heads": 2, "train": {"steps": 2}},
            "student": {"name": "causal_lm", "hidden": 16, "layers": 1, "heads": 2},
            "method": {"name": "word_kd"},
            "train": {"steps": 2, "batch_size": 4},
            "controls": False,
            "evaluate": [],
        },
        runs=tmp_path,
    )
    (folder,) = {p.parent for p in result.folder.glob("student/**/tokenizer.json")}
    harness = HFLM(pretrained=str(folder), device="cpu", batch_size=1)
    context, goes_on = "the fox", " sleeps"
    ((found, _),) = harness.loglikelihood([Instance("loglikelihood", {}, (context, goes_on), 0)])
    words, model = harness.tokenizer, limbeck.load(folder)
    before, after = (words(t, add_special_tokens=False)["input_ids"] for t in (context, goes_on))
    with torch.no_grad():
        law = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    expected = sum(float(law[len(before) + i - 1, token]) for i, token in enumerate(after))
    assert found == pytest.approx(expected, rel=1e-4)
