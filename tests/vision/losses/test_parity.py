"""Losses that torchdistill has too: equal in value and gradient where both follow the paper, and else different by what
is written here.

torchdistill is no dependency (it wants torchvision): ``pip install --no-deps --target DIR torchdistill==1.1.5`` and
``PYTHONPATH=DIR`` let these tests run. Where torchvision is missing a stand-in takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.losses import soft_kl
from limbeck.vision.losses import (
    activation_boundary,
    attention,
    congruence,
    dist_inter,
    dist_intra,
    factor,
    fsp_matrix,
    gaussian,
    nce,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity,
    squared_error,
    standardized_kl,
)
from toolkit.torchvision import stand_in

pytestmark = pytest.mark.skipif(find_spec("torchdistill") is None, reason="torchdistill is not installed")

ROWS, CLASSES = 6, 5


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The module with torchdistill's mid-level losses."""
    with stand_in():
        from torchdistill.losses import mid_level

    return mid_level


def tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradient(loss: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def assert_equal(ours: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], student: Tensor) -> None:
    (v1, g1), (v2, g2) = value_and_gradient(ours, student), value_and_gradient(other, student)
    assert float(v2.abs()) > 1e-9 and float(g2.abs().max()) > 1e-12, "the comparison would say nothing"
    assert torch.allclose(v1, v2, rtol=1e-7, atol=1e-12), (v1, v2)
    assert torch.allclose(g1, g2, rtol=1e-6, atol=1e-10)


def called(loss: Any, teacher: Any, *, targets: Tensor | None = None) -> Callable[[Any], Tensor]:
    """Their loss as a function of the student's tensor; both stand at path ``x``, as output and as input."""
    held = {"x": {"output": teacher, "input": teacher}}
    return lambda student: loss({"x": {"output": student, "input": student}}, held, targets)


LOGITS = {
    "student_module_path": "x",
    "student_module_io": "output",
    "teacher_module_path": "x",
    "teacher_module_io": "output",
}
ONE_PAIR = {"pair": {"teacher": {"io": "output", "path": "x"}, "student": {"io": "output", "path": "x"}, "weight": 1}}


def test_soft_targets(theirs: Any) -> None:
    student, teacher = tensor(ROWS, CLASSES, seed=0), tensor(ROWS, CLASSES, seed=1)
    labels = torch.arange(ROWS) % CLASSES
    loss = theirs.KDLoss(**LOGITS, temperature=3.0, alpha=0.3)

    def ours(s: Tensor) -> Tensor:
        hard = torch.nn.functional.cross_entropy(s, labels)
        return 0.3 * hard + 0.7 * soft_kl(s, teacher, temperature=3.0).mean()

    assert_equal(ours, called(loss, teacher, targets=labels), student)


def test_soft_targets_without_labels_lack_the_squared_temperature_there(theirs: Any) -> None:
    """With alpha 0 theirs leaves out T^2 and beta: its gradients shrink with the temperature, ours do not."""
    student, teacher = tensor(ROWS, CLASSES, seed=0), tensor(ROWS, CLASSES, seed=1)
    loss = theirs.KDLoss(**LOGITS, temperature=3.0, alpha=0)
    assert_equal(lambda s: soft_kl(s, teacher, temperature=3.0).mean() / 9, called(loss, teacher), student)


def test_standardized_logits_have_the_deviation_of_a_population_here(theirs: Any) -> None:
    """Algorithm 1 of the paper divides by K; theirs, as the official code, by K - 1 (and adds 1e-7). That is a base
    temperature larger by ``sqrt(K / (K - 1))``: 0.5 % at a hundred classes."""
    student, teacher = tensor(ROWS, CLASSES, seed=0), tensor(ROWS, CLASSES, seed=1)
    other = called(theirs.LogitStdKDLoss(**LOGITS, temperature=2.0, alpha=0.0, eps=0.0), teacher)
    t = 2 * (CLASSES / (CLASSES - 1)) ** 0.5
    assert_equal(lambda s: standardized_kl(s, teacher, temperature=t).mean() / t**2, other, student)


def test_dist(theirs: Any) -> None:
    student, teacher = tensor(ROWS, CLASSES, seed=0), tensor(ROWS, CLASSES, seed=1)
    loss = theirs.DISTLoss(**LOGITS, beta=1.0, gamma=2.0, tau=4.0)

    def ours(s: Tensor) -> Tensor:
        return (dist_inter(s, teacher, temperature=4.0) + 2 * dist_intra(s, teacher, temperature=4.0)).mean()

    assert_equal(ours, called(loss, teacher), student)


def test_attention_as_the_official_code_has_it(theirs: Any) -> None:
    student, teacher = tensor(ROWS, 3, 4, 4, seed=0), tensor(ROWS, 5, 4, 4, seed=1)
    loss = theirs.ATLoss(ONE_PAIR, mode="code")
    assert_equal(lambda s: attention(s, teacher).mean(), called(loss, teacher), student)


def test_activation_boundary(theirs: Any) -> None:
    student, teacher = tensor(ROWS, 3, 4, 4, seed=0), tensor(ROWS, 3, 4, 4, seed=1)
    loss = theirs.AltActTransferLoss(ONE_PAIR, margin=1.0, reduction="mean")
    assert_equal(lambda s: activation_boundary(s, teacher, margin=1.0).mean(), called(loss, teacher), student)


@pytest.mark.parametrize("p", [1, 2])
def test_factors(theirs: Any, p: int) -> None:
    """p = 1 is the same; for p = 2 theirs is the norm of the difference, ours its mean square, as the paper's code."""
    student, teacher = tensor(ROWS, 3, 4, 4, seed=0), tensor(ROWS, 3, 4, 4, seed=1)
    loss = theirs.FTLoss(p=p, paraphraser_path="x", translator_path="x")
    other = called(loss, teacher)
    if p == 1:
        assert_equal(lambda s: factor(s, teacher, p=1.0).mean(), other, student)
    else:
        assert_equal(lambda s: (factor(s, teacher, p=2.0) * s[0].numel()).sqrt().mean(), other, student)


def test_rkd(theirs: Any) -> None:
    student, teacher = tensor(ROWS, 4, seed=0), tensor(ROWS, 7, seed=1)
    loss = theirs.RKDLoss("x", "x", dist_factor=1.0, angle_factor=2.0, reduction="mean")

    def ours(s: Tensor) -> Tensor:
        return (rkd_distance(s, teacher) + 2 * rkd_angle(s, teacher)).mean()

    assert_equal(ours, called(loss, teacher), student)


def test_similarity_rows_are_of_length_one_here(theirs: Any) -> None:
    """Equation 2 of the paper divides every row of G by its L2 norm; theirs by its L1 norm (a 1 that was meant for the
    axis is taken for the order of the norm), which makes the loss smaller by about the number of samples."""
    student, teacher = tensor(ROWS, 3, 2, 2, seed=0), tensor(ROWS, 5, 2, 2, seed=1)
    loss = theirs.SPKDLoss("x", "x", reduction="batchmean")

    def written(s: Tensor, p: int) -> Tensor:
        rows = [x.flatten(1) @ x.flatten(1).T for x in (s, teacher)]
        g_s, g_t = (g / g.norm(p=p, dim=1, keepdim=True) for g in rows)
        return (g_s - g_t).square().sum() / ROWS**2

    assert_equal(lambda s: written(s, 1), called(loss, teacher), student)
    assert_equal(lambda s: similarity(s, teacher).mean(), lambda s: written(s, 2), student)


def test_congruence_is_squared_here(theirs: Any) -> None:
    """Equation 6 of the paper is ``|K_s - K_t|^2 / n^2``; theirs leaves the square out, and does not bring the
    embeddings to length 1, without which its expansion is no Gaussian kernel."""
    student, teacher = (torch.nn.functional.normalize(tensor(ROWS, 4, seed=s)) for s in (0, 1))
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    loss = called(theirs.CCKDLoss("x", "x", kernel, reduction="sum"), teacher)
    ours = congruence(student, teacher, gamma=0.4, order=2).mean()
    assert torch.allclose(ours, loss(student) ** 2 / ROWS**2, rtol=1e-7)


def test_pkt_leaves_a_sample_out_of_its_own_neighbours(theirs: Any) -> None:
    """Equation 3 of the paper sums over all j but i; theirs counts the sample itself, so that every row has one large
    entry that both sides share. Beyond that they are the same."""
    student, teacher = tensor(ROWS, 4, seed=0), tensor(ROWS, 7, seed=1)
    loss = theirs.PKTLoss(**LOGITS, eps=1e-12)

    def probabilities(x: Tensor, *, itself: bool) -> Tensor:
        unit = x / x.norm(dim=1, keepdim=True)
        kernel = (unit @ unit.T + 1) / 2
        kernel = kernel if itself else kernel * (1 - torch.eye(len(x), dtype=x.dtype))
        return kernel / kernel.sum(1, keepdim=True)

    def written(s: Tensor, *, itself: bool) -> Tensor:
        p, q = probabilities(teacher, itself=itself), probabilities(s, itself=itself)
        return torch.where(p > 0, p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log(), 0.0).mean()

    assert_equal(lambda s: written(s, itself=True), called(loss, teacher), student)
    assert_equal(lambda s: pkt(s, teacher).mean(), lambda s: written(s, itself=False), student)


def test_flows(theirs: Any) -> None:
    """The paper's distance is the squared Frobenius norm, averaged over samples; theirs sums the norms of columns. The
    flow matrices are the same."""
    first, second, other = tensor(2, 3, 4, 4, seed=0), tensor(2, 5, 2, 2, seed=1), tensor(2, 3, 5, seed=2)
    matrix = fsp_matrix(first, second)
    assert torch.allclose(matrix, theirs.FSPLoss.compute_fsp_matrix(first, second))
    assert squared_error(matrix, other).shape == (2,)


def test_variational_information(theirs: Any) -> None:
    mean, teacher = tensor(ROWS, 3, 2, 2, seed=0), tensor(ROWS, 3, 2, 2, seed=1)
    variance = tensor(3, seed=2).exp()
    pair = {"pair": {"teacher": {"io": "output", "path": "x"}, "student": {"io": "output", "path": "x"}}}
    loss = theirs.VIDLoss(pair)
    other = called(loss, teacher)
    assert_equal(lambda s: gaussian(s, variance, teacher).mean(), lambda s: other((s, variance.view(3, 1, 1))), mean)


def test_contrast_with_a_bank(theirs: Any) -> None:
    """Theirs cannot be built (it names attributes that it never sets), so its formula alone is called. It adds 1e-7
    to each denominator."""
    scores = tensor(ROWS, 9, seed=0)

    class Bare:
        num_samples, eps = 40, 0.0

    def other(s: Tensor) -> Tensor:
        return theirs.CRDLoss.compute_contrast_loss(Bare(), s.exp()).squeeze()

    assert_equal(lambda s: nce(s[:, 0], s[:, 1:], rows=40).mean(), other, scores)
