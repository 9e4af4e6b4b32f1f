import json
import sys

import pytest
import torch
from torch import nn

from limbeck import registry
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.registry import Block


def edit(folder, **changes):
    path = folder / store.CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def call(module, name):
    torch.manual_seed(0)
    with torch.no_grad():
        if name in ("causal_lm", "eager"):
            return module(torch.randint(12, (3, 8))).logits
        if name == "synthetic":
            return module()[0]
        if name == "denoiser":
            return module(torch.randn(3, 2), torch.ones(3))
        return module(torch.randn(3, 2) if "step" in name or name == "labelled" else torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize("name", ["cnn", "mlp", "one_step", "labelled", "denoiser", "causal_lm", "eager", "synthetic"])
def test_a_model_comes_back_with_the_same_class_keys_and_outputs(saved, name):
    made, folder = saved(name)
    again = store.load(folder).module
    assert type(again) is type(made.module) and not again.training
    assert list(again.state_dict()) == list(made.module.state_dict())
    assert torch.equal(call(again, name), call(made.module, name))


def test_half_precision_weights_keep_their_type(tmp_path, model):
    made = model("causal_lm")
    made.module.to(torch.bfloat16)
    store.save(tmp_path, made)
    again = store.load(tmp_path).module
    assert again.dtype == torch.bfloat16
    assert torch.equal(call(again, "causal_lm"), call(made.module, "causal_lm"))


def test_the_attention_that_it_was_trained_with_is_kept(saved):
    assert store.load(saved("eager")[1]).module.config._attn_implementation == "eager"


def test_defaults_are_written_down_so_that_a_later_version_builds_the_same_model(saved):
    tree = store.read_card(saved("one_step")[1])["model"]
    assert tree["sigma"] == 80.0 and tree["net"]["sigma_data"] == 0.5 and tree["net"]["depth"] == 1


def test_where_a_transformers_model_came_from_is_not_told(tmp_path, model):
    made = model("causal_lm")
    named = Stored(made.module, Block("transformers", {"path": "/home/someone/secret"}))
    store.save(tmp_path, named)
    assert "someone" not in (tmp_path / store.CARD).read_text()
    assert store.load(tmp_path).block.name == "transformers"


def test_damaged_weights_are_named(saved):
    _, folder = saved("cnn")
    weights = bytearray((folder / store.WEIGHTS).read_bytes())
    weights[-3] ^= 0x40
    (folder / store.WEIGHTS).write_bytes(weights)
    with pytest.raises(UserError, match="changed or damaged"):
        store.load(folder)
    (folder / store.WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        store.load(folder)
    (folder / store.WEIGHTS).unlink()
    with pytest.raises(UserError, match="no weights file"):
        store.load(folder)


def test_weights_of_another_model_are_named_by_key(saved, tmp_path):
    _, folder = saved("cnn")
    _, other = saved("mlp")
    (folder / store.WEIGHTS).write_bytes((other / store.WEIGHTS).read_bytes())
    with pytest.raises(UserError, match=r"stages\.0\.0\.weight. has shape \(4, 64\), the model needs \(2, 1, 3, 3\)"):
        store.load(folder)


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "torch.hub:load"])
def test_a_model_folder_cannot_run_code(saved, tmp_path, name):
    """Whoever downloads a model and loads it must not run what its author likes."""
    _, folder = saved("cnn")
    edit(folder, model={"name": name, "command": f"touch {tmp_path}/owned", "args": f"touch {tmp_path}/owned"})
    with pytest.raises(UserError, match="no file makes limbeck run code"):
        store.load(folder)
    edit(folder, model={"name": "one_step", "net": {"name": name, "command": f"touch {tmp_path}/owned"}})
    with pytest.raises(UserError, match="no file makes limbeck run code"):
        store.load(folder)
    assert not (tmp_path / "owned").exists()


def test_a_module_beside_a_model_is_not_imported_unless_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "import torch\n\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, width):\n        super().__init__(width, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = nn.Linear(3, 2)
    store.save(tmp_path / "m", Stored(network, Block("a-live-network")))
    edit(tmp_path / "m", model={"name": "theirs:Net", "width": 3})
    with pytest.raises(UserError, match="theirs:Net"):
        store.load(tmp_path / "m")
    assert "theirs" not in sys.modules
    fresh = nn.Linear(3, 2)
    assert store.load(tmp_path / "m", into=fresh).module is fresh and torch.equal(fresh.weight, network.weight)
    trusted = store.load(tmp_path / "m", trust_code=True).module
    assert type(trusted).__name__ == "Net" and torch.equal(trusted.weight, network.weight)
    assert type(store.load(tmp_path / "m").module).__name__ == "Net"  # this process has named it by now


def test_a_live_network_is_asked_for_where_it_is_not_there(tmp_path, monkeypatch):
    network = nn.Linear(3, 2)
    make = lambda: nn.Linear(3, 2)  # noqa: E731
    monkeypatch.setitem(registry._LIVE, ("model", "student-linear-abc"), make)
    store.save(tmp_path, Stored(network, Block("student-linear-abc")))
    assert torch.equal(store.load(tmp_path).module.weight, network.weight)
    monkeypatch.delitem(registry._LIVE, ("model", "student-linear-abc"))
    with pytest.raises(UserError, match=r"live network.*into="):
        store.load(tmp_path)
    assert torch.equal(store.load(tmp_path, into=nn.Linear(3, 2)).module.weight, network.weight)


def test_a_model_folder_cannot_read_the_environment(saved, monkeypatch):
    monkeypatch.setenv("SECRET_WIDTH", "2")
    _, folder = saved("cnn")
    tree = {**store.read_card(folder)["model"], "width": "${env:SECRET_WIDTH}"}
    edit(folder, model=tree)
    with pytest.raises(UserError, match="SECRET_WIDTH is not set"):
        store.load(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "of format None"),
        ('{"format": 2}', "of format 2; this version reads format 1"),
        ('{"format": 1}', "look at model"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_broken_description_is_one_clear_line(saved, text, says):
    _, folder = saved("cnn")
    (folder / store.CARD).write_text(text)
    with pytest.raises(UserError, match=says):
        store.load(folder)


def test_an_unknown_argument_is_named_with_its_file(saved):
    _, folder = saved("cnn")
    edit(folder, model={**store.read_card(folder)["model"], "widht": 3})
    with pytest.raises(UserError, match=r"limbeck\.json: model\.widht: cnn has no argument"):
        store.load(folder)


def test_no_model_is_named_by_its_folder(tmp_path):
    with pytest.raises(UserError, match=r"no limbeck\.json"):
        store.load(tmp_path)
