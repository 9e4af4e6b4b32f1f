"""timm's models by name: built, looked at, taught and stored like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine.features import Injection, Taps
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.models import places
from limbeck.models.building import build_model
from limbeck.models.timm import without_download
from limbeck.registry import Block, PartError, build
from limbeck.run import run_recipe
from toolkit.torchvision import stand_in

with stand_in():
    pytest.importorskip("timm")


def made(model: str, size: int = 32, **options: Any) -> nn.Module:
    block = Block("timm", {"model": model, "classes": 5, "in_channels": 1, "image_size": size, "options": options})
    module: nn.Module = build("model", block)
    return module.eval()


@pytest.mark.parametrize(
    ("model", "options", "stages", "head"),
    [
        ("resnet18", {}, ["layer1", "layer2", "layer3"], "fc"),
        ("mobilenetv3_small_050", {}, ["bn1", "blocks.0", "blocks.1", "blocks.3"], "classifier"),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, [f"stages.{i}" for i in range(4)], "head.fc"),
        ("vit_tiny_patch16_224", {"depth": 4}, [f"blocks.{i}" for i in range(4)], "head"),
        ("vit_small_patch14_dinov2", {"depth": 2, "embed_dim": 12}, ["blocks.0", "blocks.1"], "head"),
        ("mixer_s32_224", {}, [f"blocks.{i}" for i in (1, 3, 5, 7)], "head"),
    ],
)
def test_features_are_found(model: str, options: dict[str, Any], stages: list[str], head: str) -> None:
    size = 28 if "14" in model else 32
    module = made(model, size, **options)
    batch = {"input": torch.randn(2, 1, size, size)}
    assert places.stages(module, batch) == stages
    assert places.head(module, batch)[0] == head


def test_maps_have_their_channels_first_whatever_the_model_does() -> None:
    swin = {"depths": (1, 1, 1), "num_heads": (2, 2, 2), "embed_dim": 16, "window_size": 2}
    module, batch = made("swin_tiny_patch4_window7_224", **swin), {"input": torch.randn(2, 1, 32, 32)}
    shapes = {p.path: p.shape for p in places.places(module, batch)}
    paths = places.stages(module, batch)
    assert [shapes[p] for p in paths] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert shapes["patch_embed.proj"] == (16, 8, 8), "a convolution's own map stays as it is"
    with Taps(module, paths) as taps:
        module(batch["input"])
        kept = taps.pop()
    assert [tuple(kept[p].shape[1:]) for p in paths] == [shapes[p] for p in paths]
    whole = module(batch["input"])
    for given in (kept[paths[0]], lambda own: own + 0):
        with Injection(module, {paths[0]: given}):
            assert torch.equal(module(batch["input"]), whole)
    with Injection(module, {paths[0]: kept[paths[0]].flip(0)}):
        assert torch.allclose(module(batch["input"]), whole.flip(0), atol=1e-6)


def test_an_unknown_name_has_a_hint() -> None:
    with pytest.raises(UserError, match="timm has no model 'resnet81'; did you mean"):
        made("resnet81")


def test_one_of_name_and_hub_is_needed() -> None:
    with pytest.raises((UserError, PartError), match="needs one of model"):
        build("model", Block("timm", {"classes": 3}))


def test_refused_arguments_are_one_line() -> None:
    with pytest.raises(UserError, match=r"timm cannot make resnet18: .*wdith") as refused:
        made("resnet18", wdith=3)
    assert "\n" not in str(refused.value)


def test_a_model_of_the_hub_is_stored_without_its_download() -> None:
    module = made("resnet18")
    block = without_download(Block("timm", {"hub": "timm/resnet18.a1_in1k", "classes": 5}), module)
    assert block.args == {"model": "resnet18", "classes": 5}


def test_it_is_stored_and_read_back(tmp_path: Path) -> None:
    block = Block("timm", {"model": "vit_tiny_patch16_224", "options": {"depth": 1, "embed_dim": 12}})
    stored = build_model(block, offers={"classes": 4, "in_channels": 1, "image_size": 32}, seed=0)
    store.save(tmp_path, stored)
    again = store.load(tmp_path)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(again.module(x), stored.module.eval()(x))


@pytest.mark.parametrize("method", ["fitnets", "crd", "srrl"])
def test_a_recipe_distils_one_into_another(tmp_path: Path, method: str) -> None:
    """Changing one word changes the method: no layer is named."""
    small = {"name": "timm", "model": "resnet10t", "options": {"channels": [4, 8, 8, 8], "stem_width": 4}}
    recipe = {
        "data": {"name": "digits", "train_size": 60},
        "teacher": {**small, "options": {**small["options"], "channels": [8, 8, 16, 16]}, "train": {"epochs": 1}},
        "student": small,
        "method": {"name": method},
        "train": {"epochs": 1, "batch_size": 20},
        "controls": False,
        "evaluate": ["accuracy"],
    }
    result = run_recipe(recipe, runs=tmp_path, quiet=True)
    assert type(result.student).__module__.startswith("timm.")
    assert 0 <= result.metrics["student"]["accuracy"] <= 1
