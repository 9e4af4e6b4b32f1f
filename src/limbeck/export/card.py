"""The model card of a delivered student: ``README.md`` beside its weights, as model hubs read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from limbeck import __version__, registry
from limbeck.engine.checkpoint import write_text
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.images import ARRAYS, PICTURE, TRAINING
from limbeck.export.words import (
    NOT_STATED,
    bibtex,
    citation,
    licence_fields,
    one_line,
    pipeline_tag,
    table,
    without_paths,
)
from limbeck.gallery import evidence_path, evidence_state
from limbeck.report.labels import ordered
from limbeck.report.units import quantity
from limbeck.summary import kept

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

README = "README.md"
BEGIN, END = "<!-- exports -->", "<!-- end of exports -->"
TOLD = ("title", "paper", "notes", "claim", "licence", "slow", "extends")
"""Keys of a recipe that the card tells in words, or that say nothing about what was done."""
PT2 = "A `.pt2` file holds a small pickle of torch's: open only one you trust."
MEASURED = ("accuracy", "miou", "ap50", "perplexity")
"""The values that a hub lists."""
SHORT = 12
"""Hex digits of a hash that a reader is shown."""


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        folder: of the student.
        model: the content of its ``limbeck.json``.
        results: the content of the run's ``results.json``.
        recipe: what the run did.
    """

    folder: Path
    model: Mapping[str, Any]
    results: Mapping[str, Any]
    recipe: Recipe

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the student comes from: teachers, data, licences, versions."""
        return self.model["about"]

    @property
    def student(self) -> Mapping[str, Any]:
        """The student's arm in the results."""
        return self.results["arms"].get("student", {})

    @property
    def spec(self) -> Mapping[str, Any]:
        """Facts of the data that it was made for."""
        return self.model.get("spec") or {}

    @property
    def output(self) -> str:
        """What calling the student gives."""
        return (self.model.get("call") or {}).get("output", "")

    @property
    def is_images(self) -> bool:
        """Whether the student is a data set."""
        return "images" in self.model["gives"]


def write_card(folder: Path, results: Mapping[str, Any], recipe: Recipe) -> Path:
    """Write the card of the student in ``folder``.

    Args:
        folder: of a delivered student; its ``limbeck.json`` says where it comes from.
        results: the content of the run's ``results.json``.
        recipe: what the run did; values read from the environment are written as references.

    Raises:
        UserError: the folder holds no model, or cannot be written.
    """
    facts = Facts(folder, store.read_card(folder), results, recipe)
    sections = (_opening, _numbers, _loading, _exports, _origin, _use, _method, _evidence, _remarks, _provenance)
    body = "\n\n".join(text for text in (section(facts) for section in sections) if text)
    return write_text(folder / README, recipe.redact(f"---\n{front_matter(facts)}---\n\n{body}\n"))


def refresh_exports(folder: Path) -> None:
    """Bring the list of exported files in a card up to date; a card that was rewritten by hand is left alone."""
    path = folder / README
    text = path.read_text(encoding="utf8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        write_text(path, before + _export_list(store.read_card(folder)) + after)


def stated_licence(folder: Path) -> str | None:
    """The licence in the front matter of a model folder's own card, if there is one."""
    try:
        _, front, _ = (folder / README).read_text(encoding="utf8").split("---\n", 2)
        found = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = found.get("license_name") or found.get("license") if isinstance(found, dict) else None
    return str(licence) if licence and licence != "unknown" else None


def front_matter(facts: Facts) -> str:
    """The YAML that hubs read."""
    about, spec = facts.about, facts.spec
    shape = tuple(spec.get("shape") or ())
    family = facts.results.get("family")
    tags = ["limbeck", "distillation", family if family != "general" else None, about.get("method")]
    tags += ["dataset-distillation"] if facts.is_images else []
    tags += ["transformers"] if facts.model["layout"] == "transformers" else []
    tags += [f"arxiv:{about['paper']['arxiv']}"] if (about.get("paper") or {}).get("arxiv") else []
    fields = {
        "library_name": "limbeck",
        "tags": list(dict.fromkeys(str(t) for t in tags if t)),
        **licence_fields(about.get("licence")),
        "base_model": about.get("base_model"),
        "pipeline_tag": None if facts.is_images else pipeline_tag(spec.get("task", ""), shape, facts.output),
        "metrics": [k for k in MEASURED if k in facts.student.get("metrics", {})] or None,
    }
    return yaml.safe_dump({k: v for k, v in fields.items() if v}, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _opening(facts: Facts) -> str:
    student = one_line(facts.student.get("describe") or facts.model["model"]["name"])
    sources = [f"`{one_line(t['describe'])}`" for t in facts.about.get("teachers", [])]
    data = [f"the data `{one_line(d['name'])}`" for d in facts.about.get("data", [])]
    if facts.is_images:
        what = f"A data set, `{student}`, distilled from {' and '.join([*data, *sources])}"
    else:
        of = f"distilled from {' and '.join(sources)}" if sources else "trained without a teacher"
        what = f"A student network, `{student}`, {of} {'on ' + ' and '.join(data) if data else 'without data'}"
    title, version = one_line(facts.about.get("title") or "Distilled student"), facts.about.get("limbeck", __version__)
    by = f"with the method `{facts.about.get('method')}` by [limbeck](https://limbeck.readthedocs.io) {version}"
    parts = [f"# {title}", f"{what}, {by}."]
    if facts.student.get("metrics"):
        parts.append(f"**{one_line(kept(facts.results))}**")
    if (facts.folder / PICTURE).is_file():
        parts.append(f"![the images]({PICTURE})")
    return "\n\n".join(parts)


def _numbers(facts: Facts) -> str:
    arms = list(facts.results["arms"].values())
    metrics = ordered({key for arm in arms for key in arm["metrics"]})
    if not metrics:
        return "## Numbers\n\nThe student was not evaluated."
    head = ["", *(arm["label"] for arm in arms)]
    rows = [[m.label, *(quantity(arm["metrics"].get(m.key), m.unit) for arm in arms)] for m in metrics]
    samples = facts.student.get("details", {}).get("test_samples")
    of = f"{samples} test samples" if samples else "the test split"
    machine = facts.results.get("machine", {})
    where = f"{one_line(machine.get('device', 'an unknown device'))} (threads: {machine.get('threads', '?')})"
    says = f"Measured on {of} in a single run with seed {facts.results.get('seed')}, on {where}."
    return f"## Numbers\n\n{table([head, *rows])}\n\n{says}"


def _loading(facts: Facts) -> str:
    name = facts.model["model"]["name"]
    if ("model", name) in registry._LIVE:
        load, note = 'limbeck.load("student", into=network)', "  # network: the same class and sizes, built by you"
    elif ":" in name:
        load, note = 'limbeck.load("student", trust_code=True)', f"  # imports {name.partition(':')[0]}"
    else:
        load, note = 'limbeck.load("student")', "  # this folder; the weights are checked against their hash"
    lines = ["import limbeck", "", f"student = {load}{note}", _calling(facts)]
    return "\n\n".join(
        ["## How to load it", _code("\n".join(line for line in lines if line is not None)), *_without(facts)]
    )


def _calling(facts: Facts) -> str | None:
    if facts.is_images:
        return "images, labels = student()"
    call = facts.model.get("call")
    if not call:
        return None
    shapes = "; ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in call["inputs"].items())
    names = list(call["inputs"])
    if names[0] == "input_ids":
        field = f".{call['output']}" if facts.model["layout"] == "transformers" else ""
        return f"{call['output']} = student(input_ids=input_ids, attention_mask=attention_mask){field}  # {shapes}"
    field = f".{call['output']}" if names[0] == "pixel_values" else ""
    return f"{call['output']} = student({', '.join(names)}){field}  # {shapes}"


def _without(facts: Facts) -> list[str]:
    """How to load it where limbeck is not installed, and what the input is."""
    texts = []
    if facts.is_images:
        code = (
            f'import numpy as np\n\ndata = np.load("student/{ARRAYS}")\nimages, labels = data["images"], data["labels"]'
        )
        texts += ["Without limbeck:", _code(code), f"`{TRAINING}` says how the images are to be learnt."]
    elif facts.model["layout"] == "transformers":
        auto = facts.model.get("auto_class") or "AutoModel"
        code = f'from transformers import {auto}\n\nstudent = {auto}.from_pretrained("student")'
        if (facts.folder / "tokenizer.json").is_file():
            code = f'from transformers import {auto}, AutoTokenizer\n\nstudent = {auto}.from_pretrained("student")'
            code += '\ntokenizer = AutoTokenizer.from_pretrained("student")'
        texts += ["Without limbeck:", _code(code)]
    else:
        texts.append(f"The weights are plain safetensors (`{store.WEIGHTS}`); nothing here is a pickle.")
    return [*texts, *_input(facts)]


def _input(facts: Facts) -> list[str]:
    spec = facts.spec
    texts = []
    if spec.get("mean") and spec.get("std"):
        mean, std = (", ".join(f"{v:g}" for v in spec[k]) for k in ("mean", "std"))
        texts.append(f"Images are scaled to [0, 1], then normalised per channel: minus {mean}, divided by {std}.")
    names = [one_line(n) for n in spec.get("class_names") or ()]
    if names and names != [str(i) for i in range(len(names))]:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        texts.append(f"Classes in order: {shown}.")
    if spec.get("tokenizer_hash"):
        texts.append(f"Tokenizer: {spec.get('vocab_size')} tokens, content hash `{spec['tokenizer_hash']}`.")
    return texts


def _exports(facts: Facts) -> str:
    return _export_list(facts.model)


def _export_list(model: Mapping[str, Any]) -> str:
    """The exported files between the marks that :func:`refresh_exports` looks for."""
    exports = model.get("exports") or {}
    if not exports:
        return f"{BEGIN}\n{END}"
    rows = [["File", "Format", "Inputs", "Checked against", "Largest difference"]]
    for format, facts in exports.items():
        name = f"`{facts['file']}{'/' if 'files' in facts else ''}`"
        inputs = "; ".join(f"{n} [{', '.join(map(str, s))}]" for n, s in facts["inputs"].items())
        checked = facts["checked"]
        gap = f"{checked['largest_difference']:.1e} ({checked['relative']:.1e} of the largest output)"
        if "bytes_of_weights" in facts:
            before, after = (facts["bytes_of_weights"][k] for k in ("model", "int8"))
            gap += f"; {after / before:.0%} of the bytes"
        if "perplexity" in checked:
            gap += f"; perplexity {checked['perplexity']['int8']:.4g} for {checked['perplexity']['model']:.4g}"
        rows.append([name, format, inputs, f"{checked['against']}, {checked['on']}", gap])
    note = f"\n\n{PT2}" if "torch_export" in exports else ""
    return f"{BEGIN}\n## Other formats\n\n{table(rows)}{note}\n{END}"


def _origin(facts: Facts) -> str:
    lines = ["## What it was distilled from", ""]
    teachers = [
        [t["role"], f"`{one_line(t['describe'])}`", f"`{t['hash'][:SHORT]}`", t["licence"] or NOT_STATED]
        for t in facts.about.get("teachers", [])
    ]
    head = ["Teacher", "Model", "Hash of its weights", "Licence"]
    lines.append(table([head, *teachers]) if teachers else "No teacher.")
    data = [
        [f"`{one_line(d['name'])}`", f"`{d['fingerprint'][:SHORT]}`", d["licence"] or NOT_STATED]
        for d in facts.about.get("data", [])
    ]
    lines += ["", "## Data", ""]
    lines.append(table([["Data", "Fingerprint", "Licence"], *data]) if data else "No data: the method needs none.")
    lines += ["", "## Licence", "", f"- Of this student: {one_line(facts.about.get('licence') or NOT_STATED)}."]
    carried = [f"{t['role']}: {one_line(t['licence'] or NOT_STATED)}" for t in facts.about.get("teachers", [])]
    if facts.is_images:
        carried += [f"`{one_line(d['name'])}`: {d['licence'] or NOT_STATED}" for d in facts.about.get("data", [])]
    if carried:
        lines.append(f"- Of what it was distilled from, which may bind its use: {'; '.join(carried)}.")
    return "\n".join(lines)


def _use(facts: Facts) -> str:
    data = " and ".join(f"`{one_line(d['name'])}`" for d in facts.about.get("data", [])) or "what its teacher knows"
    use = {
        "classification": f"classifying inputs like those of {data}",
        "segmentation": f"telling the pixels of images like those of {data} apart",
        "detection": f"finding objects in images like those of {data}",
        "language": f"predicting text like that of {data}",
        "generation": f"drawing samples like those of {data if facts.about.get('data') else 'its teacher'}",
    }.get(facts.spec.get("task", ""), f"the task of {data}")
    use = f"training networks in place of {data}" if facts.is_images else use
    return (
        f"## Intended use\n\nResearch, and {use}. It was judged only on the numbers above: not on other data, "
        "nor for fairness or safety; it can repeat the errors of its teacher and of the data."
    )


def _method(facts: Facts) -> str:
    part = registry.find("method", facts.recipe.method.name)
    says = one_line(part.doc.split("\n")[0])
    parts = ["## Method", f"`{part.name}`: {says}" if says else f"`{part.name}`"]
    paper = facts.about.get("paper")
    if paper:
        parts += [f"Paper: {citation(paper)}", _code(bibtex(paper), "bibtex")]
    tree = {k: v for k, v in facts.recipe.tree.items() if k not in TOLD}
    recipe = without_paths(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).strip())
    return "\n\n".join([*parts, "The recipe (values it leaves out are limbeck's defaults):", _code(recipe, "yaml")])


def _evidence(facts: Facts) -> str:
    recipe = facts.recipe
    if recipe.claim is None:
        return "## Evidence\n\nThe recipe makes no claim; there is no evidence beyond the numbers above."
    state, record = _ledger(recipe)
    words = {
        "holds": "The claim holds",
        "fails": "The claim does not hold",
        "stale": "The claim was tested for another version of the recipe or the method, so this says nothing here",
        "none": "The claim has not been tested yet",
    }[state]
    lines = [f"## Evidence\n\nThe recipe claims: {one_line(recipe.claim.says)}\n\n**{words}.**"]
    if state in ("holds", "fails") and record:
        lines += [f"Recorded {record.get('recorded')} over {len(record.get('seeds', []))} seeds:", ""]
        lines += [_check(c) for c in record.get("checks", [])]
    return "\n".join(lines)


def _check(check: Mapping[str, Any]) -> str:
    outcome = "holds" if check["holds"] else "does not hold"
    return f"- {outcome}: `{one_line(check['text'])}` ({check['left']:.5g} against {check['right']:.5g})"


def _ledger(recipe: Recipe) -> tuple[str, Mapping[str, Any]]:
    try:
        path = evidence_path(recipe)
        return evidence_state(recipe), json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    except (UserError, OSError, json.JSONDecodeError):
        return "none", {}


def _remarks(facts: Facts) -> str:
    warnings = [one_line(w) for w in facts.results.get("warnings", [])]
    notes = [one_line(n) for n in facts.results.get("notes", [])]
    notes += [one_line(facts.recipe.notes)] if facts.recipe.notes else []
    parts = [("## Warnings of the run", warnings), ("## Notes", notes)]
    return "\n\n".join("\n".join([head, "", *(f"- {t}" for t in texts)]) for head, texts in parts if texts)


def _provenance(facts: Facts) -> str:
    about, machine = facts.about, facts.results.get("machine", {})
    rows = [
        ["", ""],
        ["SHA-256 of the weights", f"`{facts.model['hash']}`"],
        ["Hash of the recipe", f"`{about.get('recipe', '')}`"],
        ["limbeck", about.get("limbeck", "")],
        ["torch", machine.get("torch", "")],
        ["Python", machine.get("python", "")],
        ["Seed", str(facts.results.get("seed", ""))],
        ["Made", str(facts.results.get("created", ""))],
    ]
    return f"## Provenance\n\n{table([row for row in rows if row == ['', ''] or row[1]])}"


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"
