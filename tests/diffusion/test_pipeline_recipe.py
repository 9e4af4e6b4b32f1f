"""The recipe of the page on few-step generators, on a tiny pipeline: trained, exported, called by diffusers alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from limbeck.diffusion.pipelines import quietly
from limbeck.errors import UserError
from limbeck.registry import Block, build
from limbeck.run import run_recipe
from toolkit.diffusion import made
from toolkit.pipelines import PROMPTS, flux, stable_diffusion

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

PAGE = Path(__file__).parents[2] / "docs" / "few-step.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with quietly():
        return stable_diffusion(tmp_path_factory.mktemp("pipelines") / "stable-diffusion")


def recipe(folder: Path, **method) -> dict:
    """What the page says, with less to do."""
    part = PAGE.read_text(encoding="utf8").split("## Pipelines of diffusers")[1]
    told = yaml.safe_load(re.search(r"```yaml\n(.*?)```", part, re.DOTALL).group(1))
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf8")
    for net in (told["teacher"], told["student"]["net"]["base"]):
        net |= {"path": str(folder), "prompt_file": str(prompts)}
    told["student"]["net"]["rank"] = 2
    told["method"] |= {"pairs": 4, "pair_steps": 2, **method}
    told["train"] |= {"steps": 3, "batch_size": 2}
    told["evaluate"][0] |= {"samples": 2, "steps": 2}
    return {"title": "of the page", "controls": False, **told}


def test_the_pages_recipe_trains_and_its_export_samples_by_itself_in_as_many_steps(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    told = recipe(folder)
    result = run_recipe(told, runs=tmp_path / "runs", quiet=True)
    assert result.metrics["student"]["nfe"] == told["student"]["nfe"] == 4
    student = result.student.eval()
    adapters = [v for n, v in student.named_parameters() if ".lora_B." in n]
    assert adapters and all(bool((v != 0).any()) for v in adapters)  # they began at zero
    with quietly():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(result.folder / "student" / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(1)
    noise = torch.stack([torch.randn(2, 4, 8, 8, generator=draws) for _ in range(4)], dim=1)
    draws.manual_seed(1)
    torch.randn(2, 4, 8, 8, generator=draws)
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    found = pipeline(PROMPTS, num_inference_steps=4, guidance_scale=1.0, latents=noise[:, 0], generator=draws,
                     output_type="latent").images  # fmt: skip
    assert len(calls) == 4
    with torch.no_grad():
        torch.testing.assert_close(student(noise, torch.tensor([0, 1])), found, rtol=2e-3, atol=2e-3)


def test_a_floor_may_be_rounded_and_no_other_level(folder, tmp_path):
    def net(path, floor, **args):
        return build("model", Block("diffusers", {"path": path, "prompts": PROMPTS, "floor": floor, **args}))

    lowest = net(folder, 0.0).sigma_range[0]
    assert net(folder, 0.0292).floor == lowest != 0.0292
    assert net(folder, 0.0).floor == 0
    with pytest.raises(UserError, match=r"lowest level, 0\.0292, not 0\.002"):
        net(folder, 0.002)
    with quietly():
        flowing = flux(tmp_path / "flux")
    assert net(flowing, 0.001, size=(8, 8)).floor == 0.001


def test_a_method_takes_a_level_that_is_rounded_for_the_floor(folder):
    args = {"path": folder, "prompts": PROMPTS}
    teacher = build("model", Block("diffusers", args))
    student = {"net": Block("diffusers", {**args, "floor": 0.0292}), "nfe": 2}
    told = {"scale_min": 2.0, "scale_max": 2.0, "told": False}
    for lowest in (None, 0.0292):  # the network's own, or as the recipe rounds it
        made("lcm", teacher, build("model", Block("few_step", {**student, "sigma_min": lowest})), **told)
    with pytest.raises(UserError, match="floor"):
        made("lcm", teacher, build("model", Block("few_step", {**student, "sigma_min": 0.05})), **told)
