from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, evaluate
from limbeck.metrics.efficiency import affordable_batch, count_flops, count_parameters, stored_bytes, timings
from limbeck.registry import Block

CPU = torch.device("cpu")
QUICK = {"repeats": 3, "batch_size": 8, "seconds": 0.2}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, 10)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled(), "a cost is measured as the model is used"
        self.sizes.append(len(x))
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1))


def images(rows: Any, n: int = 5) -> Any:
    return rows(DataSpec(shape=(1, 8, 8), classes=10), input=torch.randn(n, 1, 8, 8), label=torch.zeros(n).long())


def test_counts_of_a_small_network_by_hand(rows: Any) -> None:
    model, source = Net().train(), images(rows)
    scores = evaluate(Evaluation(model, source.spec, source), [Block("efficiency", QUICK)])
    parameters = 4 * 9 + 4 + 2 * 4 + 256 * 10 + 10
    assert scores.values["parameters"] == parameters
    assert scores.values["bytes"] == 4 * (parameters + 8) + 8  # running mean and variance, and an int64 counter
    assert scores.values["flops"] == 2 * (64 * 4 * 9 + 256 * 10)
    assert model.training


def test_speed_is_measured_at_the_batches_that_are_reported(rows: Any) -> None:
    model, source = Net(), images(rows, n=5)
    scores = evaluate(Evaluation(model, source.spec, source), [Block("efficiency", {**QUICK, "seconds": 5.0})])
    timing = scores.details["timing"]
    assert set(model.sizes) == {1, 8}, "rows are repeated where the split has fewer than the batch"
    assert timing["repeats"] == timing["batch_repeats"] == 3 and timing["batch_size"] == 8
    assert timing["input"] == {"input": [1, 1, 8, 8]} and timing["dtype"] == "float32"
    assert scores.details["threads"] == torch.get_num_threads()
    assert 0 < scores.values["latency_ms"] <= scores.values["latency_p90_ms"] < 1000
    assert scores.values["throughput"] > 0


def test_latency_is_the_time_of_one_call_and_leaves_the_warm_up_out() -> None:
    naps = iter([0.1] * 3 + [0.01] * 10)
    took = timings(lambda: time.sleep(next(naps)), repeats=5, seconds=2.0, device=CPU)
    assert len(took) == 5 and all(0.01 <= t < 0.06 for t in took)


def test_a_slow_model_is_timed_once_and_not_thirty_times() -> None:
    calls = []

    def slow() -> None:
        calls.append(1)
        time.sleep(0.06)

    assert len(timings(slow, repeats=30, seconds=0.05, device=CPU)) == 1
    assert len(calls) == 2


@pytest.mark.parametrize(("latency", "expected"), [(1e-4, 128), (1 / 128, 128), (0.1, 8), (0.06, 16), (9.0, 1)])
def test_the_batch_shrinks_to_what_the_time_allows(latency: float, expected: int) -> None:
    assert affordable_batch(128, latency, 1.0) == expected


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def encoder_flops(t: int, d: int, hidden: int) -> int:
    return 2 * t * d * 3 * d + 2 * 2 * t * t * d + 2 * t * d * d + 2 * 2 * t * d * hidden


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (lambda: nn.Linear(5, 7), (1, 5), 2 * 5 * 7),
        (lambda: nn.Conv2d(4, 8, 3, groups=2), (1, 4, 8, 8), 2 * 8 * 36 * 2 * 9),
        (Attention, (1, 4, 6, 3), 2 * 2 * 4 * 6 * 6 * 3),
        (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (1, 6, 16), encoder_flops(6, 16, 32)),
        (lambda: nn.LSTM(5, 7, batch_first=True), (1, 6, 5), 6 * 2 * (5 + 7) * 4 * 7),
        (lambda: nn.GRU(5, 7, batch_first=True), (1, 6, 5), 6 * 2 * (5 + 7) * 3 * 7),
    ],
    ids=["linear", "grouped convolution", "attention", "encoder layer", "lstm", "gru"],
)
def test_fused_kernels_do_not_count_as_nothing(
    module: Callable[[], nn.Module], shape: tuple[int, ...], expected: int
) -> None:
    made, x = module().eval(), torch.randn(shape)
    assert count_flops(lambda: made(x)) == expected


def test_counting_leaves_torch_as_it_was() -> None:
    before = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
    )
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    after = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
    )
    assert before == after


def test_tied_weights_are_counted_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    assert count_parameters(model) == 40 and stored_bytes(model) == 160


def test_bytes_are_those_of_the_stored_dtype_and_of_what_is_stored() -> None:
    model = nn.Linear(8, 8).half()
    model.register_buffer("mask", torch.ones(4, dtype=torch.bool))
    model.register_buffer("scratch", torch.ones(1000), persistent=False)
    assert stored_bytes(model) == 2 * 72 + 4


def test_quantised_weights_count_as_packed() -> None:
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no quantised kernels")
    made = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(64, 64)), {nn.Linear}, dtype=torch.qint8)
    assert 64 * 64 + 64 * 4 <= stored_bytes(made) < 64 * 64 + 64 * 4 + 100


def test_a_token_model_is_measured_on_its_tokens(rows: Any) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
            assert attention_mask is not None
            return {"logits": self.head(self.embed(input_ids))}

    ids = torch.randint(0, 11, (3, 6))
    spec = DataSpec(task="language", shape=(6,), vocab_size=11)
    source = rows(spec, input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    scores = evaluate(Evaluation(Tokens(), spec, source), [Block("efficiency", QUICK)])
    assert scores.values["flops"] == 2 * 6 * 4 * 11
    assert scores.details["timing"]["input"] == {"input_ids": [1, 6], "attention_mask": [1, 6]}


@pytest.mark.parametrize("form", [lambda z: z, lambda z: (z,), lambda z: {"z": z}], ids=["tensor", "tuple", "map"])
def test_a_generator_says_itself_what_it_takes(form: Callable[[Tensor], Any]) -> None:
    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

        def example_inputs(self, batch_size: int) -> Any:
            return form(torch.zeros(batch_size, 3))

        def forward(self, z: Tensor) -> Tensor:
            return self.net(z)

    scores = evaluate(Evaluation(Generator(), DataSpec(task="generation")), [Block("efficiency", QUICK)])
    assert scores.values["flops"] == 12 and list(scores.details["timing"]["input"].values()) == [[1, 3]]


def test_without_a_test_split_the_training_split_is_used(rows: Any) -> None:
    source = images(rows)
    scores = evaluate(Evaluation(Net(), source.spec, None, source), [Block("efficiency", QUICK)])
    assert scores.values["flops"] > 0


def test_a_model_without_any_sample_to_run_on_is_refused(rows: Any) -> None:
    with pytest.raises(UserError, match="no sample to run model 'Linear' on"):
        evaluate(Evaluation(nn.Linear(2, 2), DataSpec(), images(rows, n=0)), [Block("efficiency", QUICK)])


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch_size": 0}, {"seconds": 0.0}])
def test_measuring_nothing_is_refused(rows: Any, wrong: dict[str, Any]) -> None:
    source = images(rows)
    with pytest.raises(UserError, match="positive"):
        evaluate(Evaluation(Net(), source.spec, source), [Block("efficiency", wrong)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_time_on_a_gpu_includes_the_work_of_the_gpu() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    (took,) = timings(lambda: x @ x, repeats=1, seconds=5.0, device=device)
    assert 2 * 4096**3 / took < 1e15, "faster than any device: the clock stopped before the work was done"
