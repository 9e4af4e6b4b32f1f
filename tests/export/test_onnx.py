import pytest
import torch

from limbeck.export.calls import call_of
from limbeck.export.onnx import export_onnx

pytestmark = pytest.mark.slow


def shapes(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("cnn", {"input": ["batch", 1, 8, 8]}, {"logits": ["batch", 10]}),
        ("labelled", {"noise": ["batch", 2], "label": ["batch"]}, {"samples": ["batch", 2]}),
        ("denoiser", {"x": ["batch", 2], "sigma": ["batch"]}, {"denoised": ["batch", 2]}),
    ],
)
def test_inputs_and_outputs_have_their_names_and_free_axes(tmp_path, model, name, inputs, outputs):
    import onnx

    facts = export_onnx(call_of(model(name)), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert shapes(graph.input) == inputs == facts["inputs"] and shapes(graph.output) == outputs
    assert facts["checked"]["relative"] < 1e-5 and len(facts["checked"]["batches"]) == 4
    content = (tmp_path / "m.onnx").read_bytes()
    assert b"site-packages" not in content and b"limbeck" not in content


def test_a_language_model_in_half_precision_is_exported_in_single(tmp_path, model):
    import onnx

    made = model("causal_lm")
    made.module.to(torch.bfloat16)
    facts = export_onnx(call_of(made), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    tokens = ["batch", "sequence"]
    assert shapes(graph.input) == {"input_ids": tokens, "attention_mask": tokens}
    assert shapes(graph.output) == {"logits": [*tokens, 12]} and graph.output[0].type.tensor_type.elem_type == 1
    assert facts["checked"]["relative"] < 1e-5
