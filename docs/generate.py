"""The generated parts of the documentation, read from the package and the ledger without importing torch.

As an MkDocs hook it fills ``<!-- generated: NAME -->`` in pages and adds a page for each kind of part. Run by itself,
``python docs/generate.py`` rewrites the table in README.md and the examples that pages show.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from limbeck import cli, gallery, registry
from limbeck.recipe import fields
from limbeck.recipe.annotations import as_plain, describe, keys_of

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"<!-- generated: (\w+) -->")
README = re.compile(r"(<!-- generated: families -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE = re.compile(r'(```\w+ title="(docs/examples/[\w.]+)"\n).*?(```\n)', re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc|obj):<code>~?(?:[\w.]+\.)?(\w+)</code>")
KINDS = {
    "method": "Methods",
    "model": "Models",
    "data": "Data",
    "loss": "Losses",
    "metric": "Metrics",
    "optimizer": "Optimizers",
    "schedule": "Schedules",
    "transform": "Transforms",
    "projector": "Projectors",
    "stage": "Stages",
}
FAMILIES = {
    "vision": "Classifiers",
    "language": "Language models",
    "diffusion": "Diffusion and flow",
    "condensation": "Data sets",
    "general": "Any model",
}
MAPS = {
    "The top of a recipe": fields.Top,
    "`train`": fields.Train,
    "`train.learners.<role>`": fields.LearnerTrain,
    "`train.early_stop` (`train.best` without `patience`)": fields.EarlyStop,
    "`teacher` and `teachers.<role>`, beside the model's own arguments": fields.TeacherKeys,
    "`student`, beside the model's own arguments": fields.StudentKeys,
    "`data.<stream>`, beside the data's own arguments": fields.StreamKeys,
    "`phases[i]`": fields.PhaseFields,
    "`cache`": fields.Cache,
    "`claim`": fields.Claim,
    "`paper`": fields.Paper,
}
STATES = {"holds": "holds", "fails": "does not hold", "stale": "to be measured again", "none": "not measured"}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def families() -> str:
    """Families and the names of their methods: the README's table."""
    found: dict[str, list[str]] = {}
    for part in registry.parts("method"):
        found.setdefault(part.family, []).append(f"`{part.name}`")
    return table(["Family", "Methods"], [[FAMILIES.get(f, f), " ".join(found[f])] for f in _in_order(found)])


def methods() -> str:
    """The gallery: a table for each family, recipes first."""
    rows = gallery.rows()
    shown = {row["slug"] for row in rows if row["recipe"]}
    rows = [row for row in rows if row["recipe"] or row["slug"] not in shown]
    out = []
    for family in _in_order({row["family"] for row in rows}):
        cells = [_method_cells(row) for row in rows if row["family"] == family]
        head = ["Name", "What it is", "Paper", "Needs of its teacher", "Evidence"]
        out += [f"## {FAMILIES.get(family, family.capitalize())}", table(head, cells)]
    return "\n\n".join(out)


def _in_order(found: Collection[str]) -> list[str]:
    """Families in the order of this file, others after them."""
    known = [f for f in FAMILIES if f in found]
    return known + sorted(set(found) - set(known))


def _method_cells(row: dict[str, Any]) -> list[str]:
    known = row["slug"] in registry.names("method")
    name = f"[`{row['slug']}`](parts/method.md#{row['slug']})" if known else f"`{row['slug']}`"
    paper = f"[{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})" if row["arxiv"] else ""
    needs = "; ".join(", ".join(signals) for signals in row["needs"].values())
    claims = row["recipe"] and "claim" in yaml.safe_load(Path(row["recipe"]).read_text(encoding="utf8"))
    evidence = STATES[row["evidence"]] if claims else "makes no claim" if row["recipe"] else "no recipe"
    return [name, row["title"], paper, needs, evidence]


def keys() -> str:
    """The keys of a recipe and of its own maps."""
    out = []
    for title, model in MAPS.items():
        rows = []
        for name, spec in keys_of(model).items():
            taken = "a block" if spec.annotation is Any else describe(spec.annotation)
            default = "*required*" if spec.required else code(as_plain(spec.default))
            rows.append([f"`{name}`", taken, default, spec.description])
        out += [f"### {title}", table(["Key", "Takes", "Default", "Meaning"], rows)]
    return "\n\n".join(out)


def kinds() -> str:
    """Links to the pages of all kinds of parts."""
    rows = [
        [f"[{title}](parts/{kind}.md)", ", ".join(f"`{n}`" for n in registry.names(kind))]
        for kind, title in KINDS.items()
    ]
    return table(["Kind", "Names"], rows)


def evidence() -> str:
    """Every record of the ledger: the claim, the measured arms, and how it came out."""
    records = [json.loads(p.read_text(encoding="utf8")) for p in sorted(ROOT.glob("evidence/**/*.json"))]
    if not records:
        return "No claim has been recorded yet."
    states = {(r["family"], r["slug"]): r["evidence"] for r in gallery.rows() if r["recipe"]}
    head = ["Recipe", "Claim", "State", "Seeds", "Recorded"]
    rows = [
        [
            f"[{r['family']}/{r['slug']}](#{_anchor(r)})",
            r["says"],
            STATES[states.get((r["family"], r["slug"]), "stale")],
            str(len(r["seeds"])),
            r["recorded"],
        ]
        for r in records
    ]
    return "\n\n".join([table(head, rows), *(_record(r) for r in records)])


def choosing() -> str:
    """Every classifier method that was measured: what it asks, and what it gained over labels and soft targets."""
    rows, costs = [], method_costs()
    for path in sorted(ROOT.glob("evidence/vision/*.json")):
        record = json.loads(path.read_text(encoding="utf8"))
        own = record["arms"].get(record["slug"])
        if own is None or "accuracy" not in own:
            continue
        arms = {name: arm["accuracy"] for name, arm in record["arms"].items() if "accuracy" in arm}
        alone = max((a for n, a in arms.items() if n.startswith("alone")), key=lambda a: a["mean"], default=None)
        gain = own["accuracy"]["mean"] - alone["mean"] if alone else 0.0
        part = registry.find("method", record["method"])
        kd = None if record["slug"] == "kd" else arms.get("kd")
        state = f"[{'holds' if record['holds'] else 'does not hold'}](evidence.md#{_anchor(record)})"
        cost = costs.get(record["method"], "")
        gains = [_gain(own["accuracy"], alone), _gain(own["accuracy"], kd)]
        cells = [f"`{record['slug']}`", _asks(part), cost, *gains, state]
        rows.append((gain, cells))
    rows.sort(key=lambda row: -row[0])
    return table(
        ["Method", "Asks of the teacher", "Cost", "Over labels alone", "Over `kd`", "Claim"],
        [cells for _, cells in rows],
    )


def method_costs() -> dict[str, str]:
    """Seconds of a step by method, in steps of the student alone, as ``benchmarks/method_cost.py`` measured them."""
    file = ROOT / "benchmarks" / "results" / "method_cost.json"
    rows = json.loads(file.read_text(encoding="utf8"))["rows"] if file.is_file() else []
    return {row["what"]: f"{row['value']:.1f}x" for row in rows if row["unit"] == "x"}


def _asks(part: registry.Part) -> str:
    """What a method needs to reach of its teacher."""
    needs = part.facts.get("needs", {})
    if not needs:
        return "no teacher"
    several = "several teachers' " if "*" in needs else ""
    return several + ("features" if part.facts.get("live") else "logits")


def _gain(own: dict[str, Any], other: dict[str, Any] | None) -> str:
    """Difference of means in points, with its standard error."""
    if other is None:
        return ""
    error = math.sqrt(sum(a["std"] ** 2 / len(a["values"]) for a in (own, other)))
    return f"{100 * (own['mean'] - other['mean']):+.1f} ± {100 * error:.1f}"


def _anchor(record: dict[str, Any]) -> str:
    return f"{record['family']}-{record['slug']}"


def _record(record: dict[str, Any]) -> str:
    """One record in full: the inequalities with both sides, the arms with mean and spread, the machine."""
    checks = [
        [code(c["text"]), f"{c['left']:.5g}", f"{c['right']:.5g}", "holds" if c["holds"] else "**does not hold**"]
        for c in record["checks"]
    ]
    named = {m for c in record["checks"] for m, _ in re.findall(r"([a-z]\w*)\.([a-z]\w*)", c["text"])}
    metrics = sorted({m for values in record["arms"].values() for m in values if m in named})
    arms = [
        [f"`{arm}`", *(f"{v[m]['mean']:.4g} ± {v[m]['std']:.2g}" if m in v else "" for m in metrics)]
        for arm, v in record["arms"].items()
    ]
    machine = record["machine"]
    where = f"{len(record['seeds'])} seeds, {record['seconds']:.0f} s on {machine.get('device', 'cpu')}"
    parts = [
        f"### {record['family']}/{record['slug']} {{ #{_anchor(record)} }}",
        f"*{record['says'][0].upper()}{record['says'][1:]}.* {where}, torch {machine.get('torch', '?')}.",
        table(["Expected", "Left", "Right", "Outcome"], checks),
        table(["Arm", *(f"`{m}`" for m in metrics)], arms),
    ]
    if record["because"] and not record["holds"]:
        parts.append(f"Why it does not hold: {record['because']}")
    return "\n\n".join(parts)


def condensed() -> str:
    """Published accuracies of condensed CIFAR-10, and ours beside them where they were measured."""
    tables = json.loads((ROOT / "benchmarks/published/condensation.json").read_text("utf8"))["tables"]
    found = ROOT / "benchmarks/results/condensation_published.json"
    ours = json.loads(found.read_text("utf8"))["rows"] if found.is_file() else []
    (shown,) = (t for t in tables if t["data"] == "cifar10" and t["network"].startswith("ConvNet"))
    rows = []
    for row in shown["rows"]:
        form = f" ({row['form']})" if "form" in row else ""
        cells = [f"{v['accuracy']}" if (v := row["values"].get(ipc)) else "" for ipc in ("1", "10", "50")]
        beside = [o for o in ours if o["method"] == row["method"] and not form]
        said = "; ".join(
            f"{o['per_class']} a class: {o['ours']['accuracy']:.1f} ± {o['ours']['std']:.1f} ({o['gap']:+.1f}; "
            f"{o['differs']})"
            for o in beside
        )
        rows.append([f"`{row['method']}`{form}", *cells, said])
    return table(["Method", "1 image a class", "10", "50", "Ours, and the gap"], rows)


def commands() -> str:
    """Every command of the command line with its options."""
    subparsers = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help for action in subparsers._choices_actions}
    out = []
    for name, parser in subparsers.choices.items():
        rows = [
            [code(_option(a)), (a.help or "").replace("%%", "%")]
            for a in parser._actions
            if not isinstance(a, argparse._HelpAction)
        ]
        out += [
            f"## limbeck {name}",
            f"{about[name].capitalize()}.",
            table(["Argument", "Meaning"], rows) if rows else "",
        ]
    return "\n\n".join(part for part in out if part)


def _option(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"{action.dest}{' ...' if action.nargs == '+' else ''}"
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")


# ---------------------------------------------------------------------------------------------------------------------
# A page for each kind of part


def parts_page(kind: str) -> str:
    """All parts of a kind: what each is, what it takes, what it needs or gives."""
    own = registry.parts(kind)
    out = [f"# {KINDS[kind]}", f"What a recipe can name as a {kind}, with the arguments that it can set."]
    for part in own:
        out += _part(part)
    return "\n\n".join(out) + "\n"


def _part(part: registry.Part) -> Iterator[str]:
    says, arguments = split_docstring(part.doc)
    family = f" <small>{part.family}</small>" if part.family != "general" else ""
    yield f"## `{part.name}`{family} {{ #{part.name} }}"
    yield says
    common = {p.name for p in registry.COMMON.get(part.kind, ())}
    rows = [
        [f"`{p.name}`", code(p.source), "*required*" if p.required else code(p.default), arguments.get(p.name, "")]
        for p in part.params
        if p.name not in common
    ]
    if rows:
        yield table(["Argument", "Type", "Default", "Meaning"], rows)
    for role, signals in part.facts.get("needs", {}).items() if part.kind == "method" else ():
        who = "every teacher" if role == "*" else f"the teacher `{role}`" if role != "teacher" else "its teacher"
        yield f"Needs of {who}: {', '.join(f'`{s}`' for s in sorted(signals))}."
    yield f"Source: `{part.module}`."


def split_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring up to its sections, and what it says about each argument."""
    head, *sections = re.split(r"\n(?=(?:Args|Raises|Returns|Attributes):\n)", "\n" + doc)
    arguments: dict[str, str] = {}
    for section in sections:
        if section.startswith("Args:"):
            for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
                arguments |= {n.strip(): " ".join(text.split()) for n in names.split(",")}
    return plain_roles(head.strip()), {k: plain_roles(v) for k, v in arguments.items()}


def plain_roles(text: str) -> str:
    """Docstring references as plain code: ``:func:`~a.b.c``` becomes ``c``."""
    return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def code(value: Any) -> str:
    """A value as inline code; nothing for None."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{text}`" if text else '`""`'


GENERATED: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (families, methods, keys, kinds, evidence, choosing, condensed, commands)
}


# ---------------------------------------------------------------------------------------------------------------------
# MkDocs hooks


def on_files(files: Any, config: Any) -> Any:
    """Add the page of each kind of part."""
    from mkdocs.structure.files import File

    for kind in KINDS:
        files.append(File.generated(config, f"parts/{kind}.md", content=parts_page(kind)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the generated tables in."""
    return MARKER.sub(lambda m: GENERATED[m[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """References of docstrings, which Markdown does not know, become plain code."""
    return ROLE.sub(r"<code>\1</code>", html)


def main() -> None:
    """Rewrite the README's table, and the code blocks that show a file of ``docs/examples``."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = path.read_text(encoding="utf8")
        new = README.sub(lambda m: m[1] + families() + "\n" + m[2], old)
        new = EXAMPLE.sub(lambda m: m[1] + (ROOT / m[2]).read_text(encoding="utf8") + m[3], new)
        if new != old:
            path.write_text(new, encoding="utf8")


if __name__ == "__main__":
    main()
