"""torchdistill's configurations as recipes: what is carried over runs, what is not is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import UserError
from limbeck.importing import LOSSES, METHODS, PLAIN, import_torchdistill
from limbeck.recipe import load_recipe
from limbeck.registry import find
from toolkit.runs import command, refused

HEAD = """
datasets:
  cifar10:
    name: &name 'cifar10'
    key: 'CIFAR10'
    splits:
      train:
        dataset_id: &train !join [*name, '/train']
        kwargs:
          transform_configs:
            - {key: 'RandomCrop', kwargs: {size: 32, padding: 4}}
            - {key: 'RandomHorizontalFlip', kwargs: {p: 0.5}}
            - {key: 'ColorJitter', kwargs: {brightness: 0.1}}
            - {key: 'ToTensor', kwargs: }
models:
  teacher_model: {key: 'resnet56', kwargs: {num_classes: 10, pretrained: True}}
  student_model: {key: 'wide_resnet16_1', kwargs: {num_classes: 10}}
"""
STAGE = """
  num_epochs: 100
  train_data_loader: {dataset_id: *train, kwargs: {batch_size: 32, num_workers: 4}, cache_output: }
  teacher: {sequential: [], wrapper: 'DataParallel', requires_grad: False}
  student: {sequential: [], wrapper: 'DistributedDataParallel', requires_grad: True, frozen_modules: [FROZEN]}
  optimizer: {key: 'SGD', kwargs: {lr: 0.1, momentum: 0.9}}
  scheduler: {key: 'MultiStepLR', kwargs: {milestones: [25, 50], gamma: 0.2}}
  criterion:
    key: 'WeightedSumLoss'
    kwargs:
      sub_terms:
"""
KD = {
    "criterion": {
        "key": "KDLoss",
        "kwargs": {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
                   "teacher_module_io": "output", "temperature": 4.0, "alpha": 0.3, "reduction": "batchmean"},
    },
    "weight": 2.0,
}  # fmt: skip


def sides(key: str, **more: Any) -> dict[str, Any]:
    pair = {
        "student": {"path": "stages.1", "io": "output"},
        "teacher": {"path": "stages.2", "io": "output"},
        "weight": 3,
    }
    return {key: {"pair1": pair}, **more}


def paths(student: str = "student_module_path", teacher: str = "teacher_module_path", **more: Any) -> dict[str, Any]:
    return {student: "stages.1", teacher: "stages.2", **more}


GIVEN: dict[str, dict[str, Any]] = {
    "KDLoss": KD["criterion"]["kwargs"],  # type: ignore[index]
    "LogitStdKDLoss": paths(temperature=2.0, alpha=0.1, beta=9.0),
    "ATLoss": sides("at_pairs", mode="code"),
    "AltActTransferLoss": sides("feature_pairs", margin=1.0, reduction="mean"),
    "PKTLoss": paths(),
    "SPKDLoss": paths("student_output_path", "teacher_output_path", reduction="batchmean"),
    "HierarchicalContextLoss": paths(output_sizes=[4, 2, 1]),
    "CCKDLoss": paths("student_linear_path", "teacher_linear_path", kernel_config={"gamma": 0.4, "max_p": 2}),
    "RKDLoss": paths("student_output_path", "teacher_output_path", dist_factor=1.0, angle_factor=2.0, reduction="mean"),
    "DISTLoss": paths(beta=2.0, gamma=1.0, tau=4.0),
}  # fmt: skip


def config(folder: Path, terms: dict[str, Any], head: str = HEAD, frozen: str = "") -> Path:
    body = yaml.safe_dump(terms, sort_keys=False)
    text = (
        head + "train:" + STAGE.replace("FROZEN", frozen) + "".join(f"        {line}\n" for line in body.splitlines())
    )
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf8")
    return path


def test_a_configuration_becomes_a_recipe_that_checks(tmp_path: Path) -> None:
    made = import_torchdistill(config(tmp_path, {"kd": KD}, frozen="'stem'"))
    recipe = load_recipe(made.recipe)
    assert made.recipe["data"]["augment"] == [{"name": "crop", "padding": 4}, {"name": "flip", "p": 0.5}]
    assert made.recipe["teacher"] == {"name": "resnet_cifar", "depth": 56}
    assert made.recipe["student"] == {"name": "wrn", "depth": 16, "width": 1, "freeze": ["stem.*"]}
    assert recipe.train.epochs == 100 and recipe.train.schedule.args["at"] == [0.25, 0.5]
    terms = made.recipe["method"]["terms"]
    assert terms["kd_hard"] == {"name": "cross_entropy", "weight": 0.6}
    assert terms["kd_soft"]["name"] == "soft_kl" and terms["kd_soft"]["weight"] == pytest.approx(1.4)
    lines = (tmp_path / "config.yaml").read_text(encoding="utf8").splitlines()
    for said in made.left:
        number = int(said.split(":")[1])
        assert said.split(":")[2].strip().split(".")[-1].split()[0] in lines[number - 1], said
    assert any("ColorJitter" in said for said in made.left) and any("pretrained" in said for said in made.left)
    assert not any("wrapper" in said or "num_workers" in said for said in made.left)
    assert load_recipe(yaml.safe_load(made.text())).method == recipe.method


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_becomes_terms_with_the_right_arguments(loss: str, tmp_path: Path) -> None:
    ce = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}}, "weight": 1.0,
          "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": {"input": {"module_path": "."}}}}  # fmt: skip
    term = {"criterion": {"key": loss, "kwargs": GIVEN[loss]}, "weight": 2.0}
    made = import_torchdistill(config(tmp_path, {"ce": ce, "own": term}))
    load_recipe(made.recipe)
    terms = {k: v for k, v in made.recipe["method"]["terms"].items() if k != "ce"}
    assert terms and all(k.startswith("own") for k in terms)
    assert not [said for said in made.left if "sub_terms" in said], made.left
    if loss not in ("KDLoss",):
        placed = [t for t in terms.values() if t["name"] != "cross_entropy"]
        assert all((t["student"], t["teacher"]) == ("stages.1", "stages.2") for t in placed)
    if loss == "ATLoss":
        assert terms["own"]["weight"] == 6.0
    if loss == "RKDLoss":
        assert [t["weight"] for t in terms.values()] == [2.0, 4.0]


def test_losses_with_modules_of_their_own_become_methods(tmp_path: Path) -> None:
    for loss, (method, argument) in METHODS.items():
        part = find("method", method)
        assert part.param(argument) is not None, (loss, method, argument)
        made = import_torchdistill(
            config(tmp_path, {"own": {"criterion": {"key": loss, "kwargs": {"p": 1}}, "weight": 7.0}})
        )
        assert made.recipe["method"] == {"name": method, argument: 7.0}
        assert any(loss in said and method in said for said in made.left)


def test_stages_become_phases_and_unknown_losses_are_named(tmp_path: Path) -> None:
    path = config(tmp_path, {"own": {"criterion": {"key": "SSKDLoss", "kwargs": {"a": 1}}}, "kd": KD})
    text = path.read_text(encoding="utf8")
    head, _, stage = text.rpartition("\ntrain:")
    staged = "\ntrain:\n  stage1:" + stage.replace("\n", "\n  ") + "\n  stage2:" + stage.replace("\n", "\n  ")
    path.write_text(head + staged, encoding="utf8")
    made = import_torchdistill(path)
    assert [p["name"] for p in made.recipe["phases"]] == ["stage1", "stage2"]
    load_recipe(made.recipe)
    assert sum("there is no loss SSKDLoss here; the term 'own' is left out" in said for said in made.left) == 2


def test_the_command_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, {"kd": KD})
    said = command(capsys, "import-torchdistill", path)
    assert said.code == 0 and "not carried over: config.yaml:" in said.err
    assert load_recipe(yaml.safe_load(said.out)).method.name == "compose"
    written = tmp_path / "recipe.yaml"
    assert command(capsys, "import-torchdistill", path, "--output", written).code == 0
    load_recipe(written)
    refused(command(capsys, "import-torchdistill", path, "--output", written), "exists already")
    refused(command(capsys, "import-torchdistill", tmp_path / "nothing.yaml"), "cannot read")
    for text, says in {
        "a: [": "no YAML",
        "- 1": "no torchdistill configuration",
        "a: !!python/object:os.x {}": "no YAML",
    }.items():
        path.write_text(text, encoding="utf8")
        refused(command(capsys, "import-torchdistill", path), says)


def test_plain_losses_are_wired_to_modules(tmp_path: Path) -> None:
    assert set(PLAIN) == {"CrossEntropyLoss", "MSELoss"}
    wired = {"key": "SimpleLossWrapper", "kwargs": {
        "input": {"is_from_teacher": False, "module_path": "stages.1", "io": "output"},
        "target": {"is_from_teacher": True, "module_path": "stages.2", "io": "output"}}}  # fmt: skip
    hint = {"criterion": {"key": "MSELoss", "kwargs": {"reduction": "mean"}}, "criterion_wrapper": wired, "weight": 5.0}
    made = import_torchdistill(config(tmp_path, {"hint": hint}))
    assert made.recipe["method"]["terms"]["hint"] == {
        "name": "mse", "weight": 5.0, "student": "stages.1", "teacher": "stages.2"
    }  # fmt: skip
    with pytest.raises(UserError, match="no stage has a loss"):
        import_torchdistill(config(tmp_path, {"own": {"criterion": {"key": "SRDLoss", "kwargs": {}}}}))
