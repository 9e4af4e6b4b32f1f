"""Pipelines of diffusers as denoisers and as students: the library's own samplers and calls are the reference."""

from __future__ import annotations

import shutil

import pytest
import torch

from limbeck.diffusion import samplers
from limbeck.diffusion.delivery import save_pipeline
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.pipelines import quietly
from limbeck.diffusion.schedulers import TablePath
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.models.building import build_model
from limbeck.registry import Block, build
from toolkit.pipelines import PROMPTS, dit, flux, stable_diffusion

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    with quietly():
        return {
            "sd": stable_diffusion(root / "sd"),
            "sd_v": stable_diffusion(root / "sd_v", prediction="v_prediction"),
            "dit": dit(root / "dit"),
            "flux": flux(root / "flux"),
        }


def block(folders, name: str, **args) -> Block:
    own = {} if name == "dit" else {"prompts": PROMPTS, "negative": "bad"}
    return Block("diffusers", {"path": folders[name], **own, **({"size": (8, 8)} if name == "flux" else {}), **args})


def pipeline(folder):
    with quietly():
        made = diffusers.DiffusionPipeline.from_pretrained(folder)
        made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def called(made, z, nfe, **args):
    return made(num_inference_steps=nfe, latents=z, output_type="latent", return_dict=False, **args)[0]


# -- the denoiser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sd_v"])
@torch.no_grad()
def test_the_clean_estimate_is_that_of_the_librarys_scheduler(folders, name):
    net, made = build("model", block(folders, name)), pipeline(folders[name])
    x, t = torch.randn(1, 4, 8, 8), 601
    embedded, _ = made.encode_prompt(PROMPTS[1], "cpu", 1, False)
    out = made.unet(x, t, encoder_hidden_states=embedded).sample
    made.scheduler.set_timesteps(10)
    theirs = made.scheduler.step(out, t, x).pred_original_sample
    kept = made.scheduler.alphas_cumprod[t]
    ours = net(x / kept.sqrt(), ((1 - kept) / kept).sqrt(), torch.tensor([1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "nfe"), [("sd", 4), ("sd_v", 5)])
@torch.no_grad()
def test_guided_sampling_is_the_pipelines_own_negative_prompt_and_all(folders, name, nfe):
    net, made = build("model", block(folders, name)), pipeline(folders[name])
    made.scheduler = diffusers.DDIMScheduler.from_config(
        made.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    z = torch.randn(2, 4, 8, 8)
    theirs = called(made, z, nfe, prompt=PROMPTS, negative_prompt=["bad", "bad"], guidance_scale=4.0)
    levels = net.levels_for(nfe, "ode")
    grid = torch.tensor([*levels, 0.0], dtype=torch.float64)
    start = z * net.start_scale(levels[0])
    ours = samplers.euler(Guided(net, 4.0), start, grid, label=torch.tensor([0, 1])).samples
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_a_flows_sampling_is_the_pipelines_own(folders):
    net, made = build("model", block(folders, "flux")), pipeline(folders["flux"])
    z = torch.randn(2, 4, 8, 8)
    packed = z.reshape(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
    theirs = called(made, packed, 3, prompt=PROMPTS, height=16, width=16)
    back = theirs.reshape(2, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 8)
    levels = net.levels_for(3, "ode")
    grid = torch.tensor([*levels, 0.0], dtype=torch.float64)
    ours = samplers.euler(net, z * net.start_scale(levels[0]), grid, label=torch.tensor([0, 1])).samples
    torch.testing.assert_close(ours, back, rtol=5e-3, atol=5e-3)


@torch.no_grad()
def test_classes_of_a_dit_are_classes_and_its_learned_variance_is_left_out(folders):
    net, made = build("model", block(folders, "dit")), pipeline(folders["dit"])
    assert (net.classes, net.shape) == (3, (4, 8, 8))
    x, t = torch.randn(2, 4, 8, 8), 500
    out = made.transformer(x, timestep=torch.full((2,), t), class_labels=torch.tensor([2, 3])).sample[:, :4]
    kept = made.scheduler.alphas_cumprod[t]
    theirs = (x - (1 - kept).sqrt() * out) / kept.sqrt()
    ours = net(x / kept.sqrt(), ((1 - kept) / kept).sqrt(), torch.tensor([2, -1]))  # -1 is the class of none, 3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_levels_and_times_of_a_table_are_each_others_inverse():
    scheduler = diffusers.DDIMScheduler()
    path = TablePath.of(scheduler.alphas_cumprod)
    t = torch.tensor([0.0, 3.25, 500.5, 999.0], dtype=torch.float64)
    torch.testing.assert_close(path.time(path.level(t)), t)
    at = path.at(t)
    torch.testing.assert_close(at.alpha**2 + at.sigma**2, torch.ones_like(t))
    torch.testing.assert_close(at.alpha[[0, 3]] ** 2, scheduler.alphas_cumprod[[0, 999]].double(), rtol=1e-5, atol=0)
    h = 1e-6
    ahead, behind = path.at(t[1:3] + h), path.at(t[1:3] - h)
    torch.testing.assert_close(at.alpha_dot[1:3], (ahead.alpha - behind.alpha) / (2 * h), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(at.sigma_dot[1:3], (ahead.sigma - behind.sigma) / (2 * h), rtol=1e-5, atol=1e-9)


@torch.no_grad()
def test_a_network_that_is_told_guidance_begins_as_it_was(folders):
    net, told = build("model", block(folders, "sd")), build("model", block(folders, "sd", guided=True))
    assert told.guided and not net.guided
    x, sigma, label = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 5.0]), torch.tensor([0, 1])
    torch.testing.assert_close(told(x, sigma, label, scale=3.0), net(x, sigma, label), rtol=1e-4, atol=1e-5)
    torch.nn.init.normal_(told.network.time_embedding.cond_proj.weight)
    assert not torch.allclose(told(x, sigma, label, scale=3.0), told(x, sigma, label, scale=5.0))


# -- the student -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "nfe", "lora"),
    [("sd", "renoise", 1, False), ("sd", "renoise", 4, True), ("sd_v", "ode", 2, False), ("flux", "ode", 2, False)],
)
@torch.no_grad()
def test_a_delivered_pipeline_samples_as_the_student_does(folders, tmp_path, name, rule, nfe, lora):
    net = block(folders, name)
    if lora:
        net = Block("lora", {"base": net, "rank": 2, "targets": ["to_q", "to_v"]})
    student = build("model", Block("few_step", {"net": net, "rule": rule, "nfe": nfe}))
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))  # it is no longer its teacher
    facts = save_pipeline(student, tmp_path / "out")
    assert facts["checked"]["relative"] < 1e-3
    made = pipeline(tmp_path / "out")
    z = torch.randn(2, *student.shape)
    if name == "flux" or student.draws > 1:
        return
    theirs = called(made, z, nfe, prompt=PROMPTS, guidance_scale=1.0)
    torch.testing.assert_close(student(z, torch.tensor([0, 1])), theirs, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_a_student_is_built_again_without_the_pipelines_files(folders, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(folders["sd"], folder)
    inner = Block("lora", {"base": block({"sd": folder}, "sd"), "rank": 2, "targets": ["to_q"]})
    stored = build_model(Block("few_step", {"net": inner}), offers={}, seed=0)
    z, label = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    expected = stored.module(z, label)
    store.save(tmp_path / "student", stored)
    shutil.rmtree(folder)
    again = store.load(tmp_path / "student").module
    torch.testing.assert_close(again(z, label), expected)
    with pytest.raises(UserError, match="no longer"):
        save_pipeline(again, tmp_path / "out")


def test_latents_are_made_by_the_autoencoder_and_become_pictures_again(folders):
    of = Block("digits", {})
    data = build("data", Block("latents", {"of": of, "path": folders["sd"], "size": 16}))
    assert data.spec.shape == (4, 8, 8) and data.spec.classes == 10
    rows = data.train.batch(torch.arange(2))
    pixels = 2 * build("data", Block("pictures", {"of": of})).train.batch(torch.arange(2))["input"] - 1
    assert rows["input"].shape == (2, 4, 8, 8) and pixels.shape == (2, 1, 8, 8)
    net = build("model", block(folders, "sd"))
    assert net.decode(rows["input"]).shape == (2, 3, 16, 16)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_pipeline_is_refused_in_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="prompts"):
        build("model", Block("diffusers", {"path": folders["sd"]}))
    with pytest.raises(UserError, match="10 classes and model 'diffusers' 2 prompts"):
        build("model", block(folders, "sd"), offers={"classes": 10})
    with pytest.raises(UserError, match="model_index"):
        build("model", Block("diffusers", {"path": tmp_path, "prompts": PROMPTS}))
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["sd"], pickled)
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot load"):
        build("model", Block("diffusers", {"path": pickled, "prompts": PROMPTS}))
    with pytest.raises(UserError, match="size"):
        build("model", Block("diffusers", {"path": folders["flux"], "prompts": PROMPTS}))
    with pytest.raises(UserError, match="renoise or ode"):
        build("model", block(folders, "sd")).levels_for(2, "map")
    own = build("model", Block("few_step", {"net": block(folders, "sd"), "nfe": 1, "levels": [3.0]}))
    with pytest.raises(UserError, match="levels"):
        save_pipeline(own, tmp_path / "out")


@torch.no_grad()
def test_with_a_floor_it_is_the_identity_at_its_lowest_level_and_the_same_above(folders):
    plain, net = build("model", block(folders, "sd")), build("model", block(folders, "sd", floor=0.0292))
    x, low = torch.randn(2, 4, 8, 8), net.sigma_range[0]
    torch.testing.assert_close(net(x, low), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x, 0.7), plain(x, 0.7), rtol=1e-4, atol=1e-4)
