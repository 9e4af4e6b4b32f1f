"""SDXL and Stable Diffusion 3 as denoisers, and all families delivered: the pipeline itself is the reference.

The pipelines are tiny, but their classes and schedulers are those of the real ones.
"""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import samplers
from limbeck.diffusion.delivery import save_pipeline
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.pipelines import load_pipeline, quietly
from limbeck.diffusion.schedulers import TablePath
from limbeck.registry import Block, build
from toolkit.pipelines import PROMPTS, dit, flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

diffusers = pytest.importorskip("diffusers")

MAKERS = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "dit": dit}
LABEL = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a pipeline by its name, made once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def of(name: str):
        if name not in made:
            with quietly():
                made[name] = MAKERS[name](root / name)
        return made[name]

    return of


def block(folder, name: str, **args) -> Block:
    text = {} if name == "dit" else {"prompts": PROMPTS, "negative": "bad"}
    size = {"size": (8, 8)} if name == "flux" else {}
    return Block("diffusers", {"path": folder(name), **text, **size, **args})


def opened(folder):
    made = load_pipeline(folder)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def sampled(made, z, nfe, **args):
    return made(num_inference_steps=nfe, latents=z, output_type="latent", return_dict=False, **args)[0]


def own_start(net, scheduler, z):
    """Where the pipeline starts, and its scheduler's levels, in the space of the denoiser."""
    if net.is_table:
        return z * scheduler.init_noise_sigma, scheduler.sigmas.double()
    times = scheduler.sigmas.double().clamp_max(0.999)
    return 1000 * z, times / (1 - times)


# -- the denoiser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [31, 601, 961])
@torch.no_grad()
def test_sdxls_clean_estimate_is_that_of_its_network_called_by_hand(folder, t):
    net, made = build("model", block(folder, "sdxl")), opened(folder("sdxl"))
    x = torch.randn(2, 4, 8, 8)
    embedded, _, pooled, _ = made.encode_prompt([PROMPTS[1], "bad"], None, "cpu", 1, False)
    ids = made._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 16).repeat(2, 1)
    told = {"text_embeds": pooled, "time_ids": ids}
    eps = made.unet(x, t, encoder_hidden_states=embedded, added_cond_kwargs=told).sample
    kept = made.scheduler.alphas_cumprod[t]
    ours = net(x / kept.sqrt(), ((1 - kept) / kept).sqrt(), torch.tensor([1, -1]))
    torch.testing.assert_close(ours, (x - (1 - kept).sqrt() * eps) / kept.sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.9])
@torch.no_grad()
def test_the_third_ones_clean_estimate_is_that_of_its_network_called_by_hand(folder, t):
    net, made = build("model", block(folder, "sd3")), opened(folder("sd3"))
    x = torch.randn(2, 4, 8, 8)
    found = made.encode_prompt([PROMPTS[1], "bad"], None, None, do_classifier_free_guidance=False)
    given = {"encoder_hidden_states": found[0], "pooled_projections": found[2]}
    v = made.transformer(x, timestep=torch.full((2,), 1000 * t), **given).sample
    ours = net(x / (1 - t), t / (1 - t), torch.tensor([1, -1]))
    torch.testing.assert_close(ours, x - t * v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["bad", ""])
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@torch.no_grad()
def test_guided_sampling_is_the_pipelines_by_its_own_scheduler(folder, name, negative):
    net, made = build("model", block(folder, name, negative=negative)), opened(folder(name))
    z, against = torch.randn(2, 4, 8, 8), {"negative_prompt": [negative] * 2} if negative else {}
    theirs = sampled(made, z, 5, prompt=PROMPTS, guidance_scale=6.0, **against)
    assert (theirs - sampled(made, z, 5, prompt=PROMPTS, guidance_scale=1.0)).abs().max() > 0.05
    made.scheduler.set_timesteps(5)
    start, grid = own_start(net, made.scheduler, z)
    ours = samplers.euler(Guided(net, 6.0), start, grid, label=LABEL).samples
    close = 1e-4 if name == "sdxl" else 1e-2  # a flow's start is at 0.999
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@torch.no_grad()
def test_networks_are_told_the_size_that_is_asked_for(folder, name):
    net, made = build("model", block(folder, name, size=(12, 8))), opened(folder(name))
    z = torch.randn(2, 4, 12, 8)
    theirs = sampled(made, z, 3, prompt=PROMPTS, guidance_scale=1.0, height=24, width=16)
    made.scheduler.set_timesteps(3)
    start, grid = own_start(net, made.scheduler, z)
    ours = samplers.euler(net, start, grid, label=LABEL).samples
    close = 1e-4 if name == "sdxl" else 1e-2
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_a_path_that_ends_in_noise_alone_has_a_highest_level():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    path = TablePath.of(scheduler.alphas_cumprod)
    levels = path.log_levels.exp()
    assert bool((levels.diff() > 0).all()) and float(levels[-1] / levels[-2]) == pytest.approx(2, rel=1e-3)
    t = torch.tensor([998.0, 998.5, 999.0], dtype=torch.float64)
    torch.testing.assert_close(path.time(path.level(t)), t)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "dit"])
def test_with_checkpointing_inner_values_are_computed_again_and_slopes_are_the_same(folder, name):
    x, slopes, calls = torch.randn(2, 4, 8, 8), [], []
    for again in (False, True):
        net = build("model", block(folder, name, checkpointing=again))
        unet = hasattr(net.network, "down_blocks")
        part = net.network.down_blocks[0].resnets[0] if unet else net.network.transformer_blocks[0]
        seen = []
        part.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        net(x, torch.tensor([0.5, 3.0]), LABEL).square().mean().backward()
        calls.append(len(seen))
        slopes.append({k: v.grad for k, v in net.named_parameters() if v.grad is not None})
    assert calls == [1, 2]
    torch.testing.assert_close(slopes[1], slopes[0])


# -- the student -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "nfe"),
    [
        ("sd", "renoise", 3),
        ("sd", "ode", 3), ("sdxl", "ode", 2), ("sdxl", "renoise", 3), ("sd3", "ode", 1), ("sd3", "ode", 4),
        ("sd3", "renoise", 3), ("flux", "ode", 2), ("flux", "renoise", 3), ("dit", "ode", 2),
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_delivered_pipeline_gives_the_students_samples_when_it_is_called(folder, tmp_path, name, rule, nfe):
    torch.manual_seed(2)
    student = build("model", Block("few_step", {"net": block(folder, name), "rule": rule, "nfe": nfe})).eval()
    for parameter in student.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))  # it is no longer its teacher
    facts = save_pipeline(student, tmp_path / "out")
    assert f"num_inference_steps={nfe}, guidance_scale=1" in facts["call"]
    z, *rest = drawn(name, student.draws)
    expected = student(torch.stack([z, *rest], dim=1) if rest else z, LABEL)
    if name == "dit":
        expected = (student.net.decode(expected) / 2 + 0.5).clamp(0, 1)
    found = delivered(opened(tmp_path / "out"), name, nfe, z)
    limit = 1e-4 if student.net.is_table else 6e-3  # a flow's start is at 0.999
    assert float((found - expected).abs().max()) < limit * float(expected.abs().max())


def drawn(name, count):
    """The noise [2, 4, 8, 8] that a pipeline draws from a seed."""
    torch.manual_seed(3)
    tokens = [torch.randn((2, 16, 16) if name == "flux" else (2, 4, 8, 8)) for _ in range(count)]
    return [unpacked(each) if name == "flux" else each for each in tokens]


def delivered(made, name, nfe, z):
    """Samples of a pipeline as its users call it, from the seed whose first draw is ``z``; of DiT pictures."""
    args = {"num_inference_steps": nfe, "guidance_scale": 1.0}
    torch.manual_seed(3)
    if name == "dit":
        return made(class_labels=[0, 1], output_type="pt", **args).images
    torch.randn(z.shape)  # the start, which is given
    if name != "flux":
        return made(PROMPTS, latents=z, output_type="latent", **args).images
    packed = z.reshape(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
    return unpacked(made(PROMPTS, latents=packed, output_type="latent", height=16, width=16, **args).images)


def unpacked(tokens):
    return tokens.reshape(2, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 8)


@torch.no_grad()
def test_the_card_of_a_delivered_pipeline_says_how_it_is_loaded_and_called(folder, tmp_path):
    net = block(folder, "sd3", size=(12, 8))
    facts = save_pipeline(build("model", Block("few_step", {"net": net, "rule": "ode", "nfe": 2})), tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "height=24, width=16" in facts["call"] and facts["call"] in code
    scope = {}
    with quietly():
        exec(code.replace('"this folder"', repr(str(tmp_path / "out"))), scope)
    assert scope["image"].size == (16, 24)
