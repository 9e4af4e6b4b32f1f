import json

import pytest
import torch

from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.formats import export
from limbeck.run import run_recipe

DATA = {"name": "retrieval", "corpus": "catalogue", "documents": 20, "queries": 12, "test_queries": 4, "negatives": 2}


def recipe(layers, **changes):
    return {
        "title": "Cut at an exit",
        "data": {**DATA, "context": 26},
        "student": {"name": "exit_encoder", "hidden": 16, "layers": 3, "heads": 2, "dim": 8},
        "method": "mose",
        "train": {"steps": 2, "batch_size": 4},
        "evaluate": ["retrieval", "efficiency"],
        "controls": False,
        "stages": ["train", {"name": "cut_at_exit", "layers": layers}, "evaluate", "export", "report"],
        **changes,
    }


def test_the_student_that_is_delivered_ends_at_the_exit(tmp_path):
    result = run_recipe(recipe(2), runs=tmp_path, quiet=True)
    stored = store.load(result.folder / "student")
    (whole,) = (store.load(f) for f in result.folder.glob("artifacts/student-*/model") if "exit" not in f.parent.name)
    assert stored.block.name == "text_encoder" and len(stored.module.backbone.encoder.layer) == 2
    texts = torch.randint(3, 20, (4, 9)), torch.ones(4, 9, dtype=torch.int64)
    assert torch.allclose(stored.module(*texts)["embedding"], whole.module.vectors(*texts)[1], atol=1e-6)
    assert (result.folder / "student" / "tokenizer.json").is_file()
    arm = result.results["arms"]["student"]
    assert "cut off after 2 layers" in arm["describe"] and result.report.is_file()
    assert arm["metrics"]["parameters"] == sum(p.numel() for p in stored.module.parameters())
    assert [json.loads(line) for line in (result.folder / arm["log"]).read_text().splitlines()]


def test_it_is_trained_once_and_the_folder_is_exported(tmp_path):
    first = run_recipe(recipe(1), runs=tmp_path / "a", quiet=True)
    folder = export(first.folder / "student", "sentence_transformers")
    assert (folder / "modules.json").is_file()
    again = run_recipe(recipe(1), runs=tmp_path / "a", quiet=True)
    assert (
        again.results["arms"]["student"]["metrics"]["ndcg_10"] == first.results["arms"]["student"]["metrics"]["ndcg_10"]
    )


def test_what_cannot_be_cut_is_said(tmp_path):
    with pytest.raises(UserError, match=r"exits after \[1, 2, 3\] layers, not after 4"):
        run_recipe(recipe(4), runs=tmp_path, quiet=True)
    with pytest.raises(UserError, match="put the stage after 'train'"):
        run_recipe(recipe(1, stages=[{"name": "cut_at_exit", "layers": 1}, "train"]), runs=tmp_path, quiet=True)
    plain = {"student": {"name": "text_encoder", "hidden": 16, "layers": 2, "heads": 2}, "method": "supervised"}
    with pytest.raises(UserError, match="must be an exit_encoder, not 'text_encoder'"):
        run_recipe(recipe(1, **plain), runs=tmp_path, quiet=True)
