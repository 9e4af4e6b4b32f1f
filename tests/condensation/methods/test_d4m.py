"""D4M: prototypes of each class, noised and brought back by a generator."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from limbeck.condensation.generating import LOWEST, RHO, falling_levels, flow, guided
from limbeck.condensation.methods.d4m import D4M
from limbeck.condensation.selection import k_means_centres
from limbeck.condensation.synthetic import RealImages, first_images
from limbeck.engine.method import Clock
from limbeck.engine.noise import normal
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from toolkit.decoupled import BATCH, batch_norm_teacher, image_set, set_up


class Gaussians(nn.Module):
    """The exact denoiser of one round Gaussian for each class, of mean ``label + 1`` (0 without class)."""

    shape = (1, 8, 8)
    std = 0.5

    def __init__(self, classes: int | None = 3) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        mean = torch.zeros_like(sigma) if label is None else (label + 1).to(x)
        share = self.std**2 / (self.std**2 + sigma**2)
        mean, share = (v.view(-1, *[1] * (x.dim() - 1)) for v in (mean, share))
        return mean + share * (x - mean)


def generator(**args) -> Teacher:
    return Teacher(Gaussians(**args), {"denoiser"}, "generator")


def made(data, student=None, made_by=None, **args):
    student = image_set(data) if student is None else student
    made_by = made_by or generator()
    return set_up(D4M(**args), data, student, teacher=batch_norm_teacher(data), generator=made_by)


def end_of(x: Tensor, mean: Tensor, start: float) -> Tensor:
    """Where a Gaussian's flow ends: distances from the mean shrink as the deviation of its noised law does."""
    return mean + (x - mean) * Gaussians.std / math.hypot(Gaussians.std, start)


def limited(student, images: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(images, student.low), student.high)


def test_the_levels_are_edm_s():
    """Equation 5: the seventh roots are evenly spaced between the ends, and 0 comes last."""
    levels = falling_levels(80.0, 5)
    roots = torch.tensor(levels[:-1]).double() ** (1 / RHO)
    assert levels[0] == pytest.approx(80) and levels[-2] == pytest.approx(LOWEST) and levels[-1] == 0
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(4), atol=1e-6)
    assert falling_levels(3.0, 1) == pytest.approx([3.0, 0.0])
    with pytest.raises(ValueError, match="fall from above"):
        falling_levels(LOWEST, 3)


def test_the_sampler_follows_a_gaussian_s_flow_with_second_order():
    x = 3 * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(6) % 3
    exact = end_of(x, (labels + 1.0).view(-1, 1, 1, 1), 3.0)
    error = [float((flow(Gaussians(), x, labels, falling_levels(3.0, n)) - exact).abs().max()) for n in (15, 30, 60)]
    assert error[0] < 0.05
    # The grid has one step fewer than levels; twice as many steps leave about a quarter of the error.
    assert 3 < error[0] / error[1] < 6 and 3 < error[1] / error[2] < 6


def test_one_step_is_the_denoiser_s_estimate():
    x, labels = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    estimate = Gaussians()(x, torch.full((3,), 2.0), labels)
    assert torch.allclose(flow(Gaussians(), x, labels, falling_levels(2.0, 1)), estimate, atol=1e-6)


def test_guidance_goes_on_from_the_estimate_without_class():
    x, sigma, labels = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0]), torch.arange(3)
    told, free = Gaussians()(x, sigma, labels), Gaussians()(x, sigma)
    assert torch.equal(guided(generator(), 1.0)(x, sigma, labels), told)
    assert torch.allclose(guided(generator(), 4.0)(x, sigma, labels), 4 * told - 3 * free, atol=1e-6)


def test_centres_are_the_means_of_clusters():
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = k_means_centres(points, 4, seed=2)
    fitted = KMeans(4, n_init=4, random_state=2).fit(points.numpy())
    means = torch.stack([points[torch.as_tensor(fitted.labels_) == k].mean(0) for k in range(4)])
    assert torch.allclose(found, means, atol=1e-10)
    assert k_means_centres(points.float(), 4).dtype == torch.float32
    with pytest.raises(ValueError, match="5 rows asked of 4"):
        k_means_centres(points[:4], 5)


@pytest.mark.parametrize("stays", [{"sigma_start": 0.0}, {"generate": False}])
@pytest.mark.parametrize("prototypes", ["kmeans", "random", "mean"])
def test_without_noise_or_generator_the_prototypes_come_back(data, prototypes, stays):
    student = image_set(data)
    real = RealImages.of(data.train)
    if prototypes == "kmeans":
        fits = [KMeans(2, n_init=4, random_state=5).fit(real.of_class(c).flatten(1).double().numpy()) for c in range(3)]
        expected = torch.cat([torch.as_tensor(f.cluster_centers_).float() for f in fits]).view(-1, 1, 8, 8)
    else:
        expected = first_images(real, 2, "real" if prototypes == "random" else "mean", 5)
    method = made(data, student, prototypes=prototypes, **stays)
    assert torch.allclose(student.images, limited(student, expected), atol=1e-6)
    assert list(method.updates(BATCH, Clock(0, 1))) == []


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_prototypes_are_noised_and_brought_back_with_their_class(data, guidance):
    """A factor g on the guidance acts as g times the mean, since the mean without class is 0."""
    student = image_set(data)
    made(data, student, steps=200, sigma_start=1.5, guidance=guidance, prototypes="random")
    start = first_images(RealImages.of(data.train), 2, "real", 5)
    start = start + 1.5 * normal(torch.arange(6), (1, 8, 8), (5, "generated"))
    mean = guidance * torch.tensor([1.0, 1, 2, 2, 3, 3]).view(-1, 1, 1, 1)
    assert torch.allclose(student.images, limited(student, end_of(start, mean, 1.5)), atol=5e-3)


def test_it_is_the_same_each_time_and_the_seed_s_own(data):
    sets = [image_set(data, seed=seed) for seed in (5, 5, 6)]
    for student in sets:
        made(data, student, prototypes="mean", steps=3, guidance=1.0)
    assert torch.equal(sets[0].images, sets[1].images)
    assert not torch.equal(sets[0].images, sets[2].images)


def test_small_images_of_a_mosaic_are_prototypes_each(data):
    student = image_set(data, tiles=2)
    made(data, student, prototypes="random", generate=False)
    pieces = nn.functional.avg_pool2d(first_images(RealImages.of(data.train), 8, "real", 5), 2)
    pieces = limited(student, pieces)
    assert torch.allclose(student.images[0, :, :4, :4], pieces[0], atol=1e-5)
    assert torch.allclose(student.images[0, :, 4:, 4:], pieces[3], atol=1e-5)


def test_a_set_with_soft_labels_gets_the_classifier_s(data):
    student = image_set(data, "relabelled_images", epochs=2, batch_size=4)
    method = made(data, student, steps=2)
    sight = next(student.lessons().views.epoch(student.images.detach(), 1))
    assert torch.allclose(student.lessons().target(1, sight), method.teacher.module(sight.images), atol=1e-2)


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="knows no classes"):
        made(data, made_by=generator(classes=None))
    with pytest.raises(UserError, match="knows 4 classes"):
        made(data, made_by=generator(classes=4))
    wide = generator()
    wide.module.shape = (1, 9, 9)
    with pytest.raises(UserError, match=r"makes \(1, 9, 9\)"):
        made(data, made_by=wide)
    with pytest.raises(UserError, match="class 0 has 15"):
        made(data, image_set(data, per_class=16))
    for wrong in ({"sigma_start": -1.0}, {"sigma_start": 0.001}, {"steps": 0}):
        with pytest.raises(UserError, match="d4m: sigma_start"):
            D4M(**wrong)
