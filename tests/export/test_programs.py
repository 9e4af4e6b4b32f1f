import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.export import export_model, formats, store
from limbeck.export.calls import call_of
from limbeck.export.programs import export_program
from limbeck.export.store import Stored
from limbeck.registry import Block


def test_a_program_gives_the_models_outputs_for_any_batch(tmp_path, model):
    made = model("mlp")
    facts = export_program(call_of(made), tmp_path / "m.pt2")
    module = torch.export.load(tmp_path / "m.pt2").module()
    for size in (1, 3, 40):
        x = torch.randn(size, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(module(x), made.module(x))
    assert facts["checked"]["relative"] == 0.0 and facts["inputs"] == {"input": ["batch", 1, 8, 8]}
    content = (tmp_path / "m.pt2").read_bytes()
    assert b"site-packages" not in content and b"/limbeck/" not in content


def test_the_samples_that_a_program_was_traced_with_are_not_in_it(tmp_path):
    """A trace of a model of patients must not hold a patient."""
    import zipfile

    sample = torch.full((4, 3), 1234.5678)
    made = Stored(nn.Linear(3, 2), Block("mine"), spec={"shape": (3,)})
    export_program(call_of(made, {"input": sample}), tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    assert sample[0, :1].numpy().tobytes() not in held


def test_a_batch_size_that_the_code_fixes_is_refused_with_a_hint(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.new_zeros((len(x), 2)) + x.sum()

    call = call_of(Stored(Fixed(), Block("mine"), spec={"shape": (3,)}))
    with pytest.raises(UserError, match=r"cannot trace this model.*x\.shape\[0\]"):
        export_program(call, tmp_path / "m.pt2")


def test_an_export_that_fails_its_check_leaves_nothing_behind(saved, monkeypatch):
    _, folder = saved("mlp")
    before = sorted(p.name for p in folder.iterdir())

    def broken(call, target):
        target.write_text("half a file")
        raise UserError("it differs")

    monkeypatch.setattr(formats, "export_program", broken)
    with pytest.raises(UserError, match="it differs"):
        export_model(folder, "torch_export")
    assert sorted(p.name for p in folder.iterdir()) == before and "exports" not in store.read_card(folder)
