"""What is inside a model, for people: recipes, stored models, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck import looking
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.models.building import build_model
from limbeck.registry import Block
from toolkit.runs import command, refused


def suggested(rows: list[looking.Row]) -> list[str]:
    return [row["path"] for row in rows if row["suggested"]]


def test_every_model_of_a_recipe_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = looking.features("vision/at")
    assert set(found) == {"student", "teacher"} and suggested(found["teacher"]) == ["stages.0", "stages.1"]
    said = command(capsys, "show-features", "vision/at")
    lines = [line.split() for line in said.out.splitlines()]
    assert ["stages.1", "Sequential", "64x2x2", "4", "suggested"] in lines and ["head", "Linear", "10", "head"] in lines


def test_a_stored_model_and_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"task": "classification", "shape": [1, 8, 8], "classes": 10}
    made = build_model(Block("cnn", {"in_channels": 1, "image_size": 8, "classes": 10, "width": 2}), offers={}, seed=0)
    made.spec = spec
    store.save(tmp_path / "model", made)
    (rows,) = looking.features(tmp_path / "model").values()
    assert suggested(rows) == ["stages.0", "stages.1"] and rows[0]["stride"] == 2.0
    said = command(capsys, "show-features", "resnet_cifar", "--classes", "7", "--all", "--json")
    listed = [json.loads(line) for line in said.out.splitlines()]
    assert suggested(listed) == ["stages.0", "stages.1", "stages.2"]
    assert next(row for row in listed if row["head"])["shape"] == [7] and any(row["kind"] == "Conv2d" for row in listed)


def test_what_cannot_be_shown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    refused(command(capsys, "show-features", "no_such_thing"), "no_such_thing")
    refused(command(capsys, "show-features", "cnn", "--shape", "3,a"), "--shape")
    with pytest.raises(UserError, match="cannot read an input of shape"):
        looking.features("vgg", shape=(3, 2, 2))
