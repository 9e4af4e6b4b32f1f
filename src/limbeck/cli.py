"""The command line. Thin: each command parses its arguments and calls a function that Python users can call too.

Nothing heavy is imported here, so ``--help``, ``list`` and the check of a bad recipe answer at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from limbeck import __version__
from limbeck.errors import UserError

OK, NOT_HELD, BAD_INPUT = 0, 1, 2
REFUSALS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR))
"""What an operating system says that no program can mend: a full disk, no permission, a file in a folder's place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 a claim does not hold, 2 bad input, 130/143 interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser().parse_args(given)
    parsed.given = given
    with one_line_warnings(), terminable():
        try:
            code = int(parsed.command(parsed) or OK)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _end(f"limbeck: {error}", BAD_INPUT)
        except BrokenPipeError:
            # What reads our output has closed it (as `head` does); Python must not try to flush it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        except KeyboardInterrupt as stop:
            says = "limbeck: stopped at once; what was finished is kept, the same command goes on from there"
            return _end(says, 143 if isinstance(stop, Terminated) else 130)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return _end(f"limbeck: {error.filename or 'a file'}: {error.strerror}", BAD_INPUT)
        except Exception as error:
            # By name, because importing these errors would import torch.
            name = type(error).__name__
            if name in ("Interrupted", "NotFiniteError", "DeadTermError"):
                return _end(f"limbeck: {error}", getattr(error, "code", BAD_INPUT))
            if name == "OutOfMemoryError":
                says = "the device is out of memory: raise train.accumulate, or lower train.batch_size"
                return _end(f"limbeck: {says}", BAD_INPUT)
            raise


def _end(text: str, code: int) -> int:
    from limbeck.processes import say_last

    say_last(text)
    return code


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing trains: the command stops at once, as with Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the context SIGTERM raises :class:`Terminated`; a training replaces it by its own handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        kept = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are the caller's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Within the context a warning is one line on standard error, without the source that it came from."""
    kept = warnings.formatwarning
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = kept


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    top = argparse.ArgumentParser(
        prog="limbeck",
        description="Distillation of every kind: one recipe in, a small model and a page with the evidence out.",
    )
    top.add_argument("--version", action="version", version=f"limbeck {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_check(commands)
    _add_compare(commands)
    _add_prove(commands)
    _add_recommend(commands)
    _add_list(commands)
    _add_show(commands)
    _add_show_features(commands)
    _add_report(commands)
    _add_export(commands)
    _add_schema(commands)
    _add_init(commands)
    _add_import_torchdistill(commands)
    return top


def _add_run(commands: Any) -> None:
    p = commands.add_parser("run", help="run a recipe from teacher to report")
    _recipe_arguments(p)
    p.add_argument("--seed", type=int, help="instead of the recipe's seed")
    p.add_argument("--fresh", action="store_true", help="start anew; an earlier run of the recipe is moved aside")
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.add_argument("--json", action="store_true", help="print the results as one JSON object")
    p.set_defaults(command=run)


def run(a: argparse.Namespace) -> int:
    """``limbeck run``."""
    from limbeck.gallery import recipe_file
    from limbeck.recipe import load_recipe

    recipe = load_recipe(recipe_file(a.recipe), overrides=a.set)
    from limbeck.processes import relaunch

    code = relaunch(recipe, a.given)
    if code is not None:
        return code
    from limbeck.run import run_recipe

    result = run_recipe(recipe, runs=a.runs, seed=a.seed, quiet=a.quiet, fresh=a.fresh)
    if not is_first_process():
        return OK
    if a.json:
        _print_json({"folder": str(result.folder), "report": str(result.report), "results": result.results})
    else:
        print(result.summary())
        if result.report.is_file():
            print(f"Report: {result.report}")
    for warning in result.results.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    return OK


def _add_check(commands: Any) -> None:
    p = commands.add_parser("check", help="check a recipe and show its plan, without training")
    _recipe_arguments(p)
    p.add_argument("--static", action="store_true", help="only read the recipe; build nothing")
    p.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    p.set_defaults(command=check)


def check(a: argparse.Namespace) -> int:
    """``limbeck check``."""
    from limbeck.gallery import recipe_file
    from limbeck.recipe import load_recipe

    recipe = load_recipe(recipe_file(a.recipe), overrides=a.set)
    for remark in recipe.remarks:
        print(f"note: {remark}", file=sys.stderr)
    estimate: dict[str, Any] = {}
    if not a.static:
        from limbeck.planning import estimate_run

        estimate = estimate_run(recipe)
    if a.json:
        _print_json({"plan": [list(row) for row in recipe.plan()], "estimate": estimate})
        return OK
    rows = [(str(k), str(v), str(w)) for k, v, w in recipe.plan()]
    _table(rows)
    if estimate:
        print()
        _table([(k, str(v), "") for k, v in estimate.items()])
    return OK


def _add_compare(commands: Any) -> None:
    p = commands.add_parser("compare", help="run recipes, or arms of one, side by side")
    p.add_argument("recipes", nargs="+", help="recipe files or gallery names; with one, its claim's arms")
    p.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value in all of them")
    p.add_argument("--runs", default="runs", help="folder for run directories (default runs)")
    p.add_argument("--methods", help="compare these methods (kd,dkd,...) on the one recipe, each tuned as hard")
    p.add_argument("--trials", type=int, default=8, help="with --methods: trials for each (default 8)")
    p.add_argument(
        "--equal",
        choices=("steps", "time"),
        default="steps",
        help="with --methods: all train for as many steps, or for as long as the recipe's own (default steps)",
    )
    p.add_argument("--json", action="store_true", help="print the rows, one JSON object a line")
    p.set_defaults(command=compare)


def compare(a: argparse.Namespace) -> int:
    """``limbeck compare``."""
    from limbeck.gallery import recipe_file

    files = [recipe_file(r) for r in a.recipes]
    if a.methods is not None:
        return _compare_methods(a, files)
    from limbeck import claims

    comparison = claims.compare(files, seeds=a.seeds, overrides=a.set, runs=a.runs)
    if a.json:
        for row in comparison.rows:
            _print_json(row)
    else:
        print(comparison.table())
        print(f"Page: {comparison.page}")
    return OK


def _compare_methods(a: argparse.Namespace, files: Sequence[Path]) -> int:
    if len(files) != 1:
        raise UserError("--methods compares methods on one recipe; name a single one")
    from limbeck import tuning
    from limbeck.recipe import load_recipe

    recipe = load_recipe(files[0], overrides=a.set)
    names = [name.strip() for name in a.methods.split(",") if name.strip()]
    ranking = tuning.compare_methods(recipe, names, trials=a.trials, seeds=a.seeds, runs=a.runs, equal=a.equal)
    if a.json:
        for row in ranking.rows:
            _print_json({**row, "tuned": ranking.tuned[row["name"]].chosen})
    else:
        _table(ranking.table())
        print(f"Page: {ranking.page}")
    return OK


def _add_prove(commands: Any) -> None:
    p = commands.add_parser("prove", help="measure whether a recipe's claim holds")
    p.add_argument("recipes", nargs="+", help="recipe files or gallery names")
    p.add_argument("--record", action="store_true", help="write the outcome to evidence/")
    p.add_argument("--stale", action="store_true", help="only those whose record is missing or stale")
    p.add_argument("--budget", type=float, metavar="SECONDS", help="start no further proof after this time")
    p.add_argument("--runs", default="runs", help="folder for run directories (default runs)")
    p.add_argument("--json", action="store_true", help="print one JSON object a line")
    p.set_defaults(command=prove)


def prove(a: argparse.Namespace) -> int:
    """``limbeck prove``: 0 when all claims hold, 1 when some do not."""
    from limbeck.gallery import recipe_file

    files = [recipe_file(r) for r in a.recipes]
    from limbeck import claims

    held = True
    for verdict in claims.prove_all(files, record=a.record, only_stale=a.stale, budget=a.budget, runs=a.runs):
        held &= verdict.holds
        if a.json:
            _print_json(verdict.as_dict())
        else:
            print(verdict.text(), flush=True)
    return OK if held else NOT_HELD


def _add_recommend(commands: Any) -> None:
    p = commands.add_parser("recommend", help="rank what to try on a recipe's task, by what past runs showed")
    _recipe_arguments(p)
    p.add_argument("--top", type=int, default=5, help="how many to show (default 5)")
    p.add_argument("--train", action="store_true", help="train those, and rank them by the validation split")
    p.add_argument("--json", action="store_true", help="print the rows, one JSON object a line")
    p.set_defaults(command=recommend)


def recommend(a: argparse.Namespace) -> int:
    """``limbeck recommend``."""
    from limbeck.gallery import recipe_file
    from limbeck.recipe import load_recipe

    if a.top < 1:
        raise UserError(f"--top is how many to show, at least 1, not {a.top}")
    recipe = load_recipe(recipe_file(a.recipe), overrides=a.set)
    from limbeck import recommending

    found = recommending.recommended(recipe, a.runs, top=a.top, train=a.train)
    if a.json:
        for row in found.rows():
            _print_json(row)
        return OK
    _table(found.table())
    print()
    _table(found.factors())
    return OK


def _add_list(commands: Any) -> None:
    p = commands.add_parser("list", help="the gallery: every recipe, what it needs and its evidence")
    p.add_argument("--family", help="only this family")
    p.add_argument("--kind", help="instead list the parts of a kind: model, data, loss, metric, ...")
    p.add_argument("--json", action="store_true", help="print one JSON object a line")
    p.set_defaults(command=list_)


def list_(a: argparse.Namespace) -> int:
    """``limbeck list``."""
    from limbeck import gallery

    rows = gallery.part_rows(a.kind) if a.kind else gallery.rows(a.family)
    if a.json:
        for row in rows:
            _print_json(row)
    else:
        columns = ("name", "family", "about") if a.kind else ("slug", "family", "evidence", "title")
        _table([columns, *(tuple(str(row[c]) for c in columns) for row in rows)])
    return OK


def _add_show(commands: Any) -> None:
    p = commands.add_parser("show", help="what a method or part is, its arguments and its evidence")
    p.add_argument("name", help="a method's name, or kind:name for another part")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(command=show)


def show(a: argparse.Namespace) -> int:
    """``limbeck show``."""
    from limbeck import gallery

    facts = gallery.describe(a.name)
    if a.json:
        _print_json(facts)
    else:
        print(gallery.text(facts))
    return OK


def _add_show_features(commands: Any) -> None:
    p = commands.add_parser("show-features", help="the features of a model that methods can compare, by module path")
    p.add_argument("model", help="a recipe, the folder of a model, or a model's name")
    p.add_argument("--shape", default="3,32,32", help="of an input, where no recipe or folder says (default 3,32,32)")
    p.add_argument("--classes", type=int, default=10, help="likewise (default 10)")
    p.add_argument("--all", action="store_true", help="single layers as well")
    p.add_argument("--json", action="store_true", help="print one JSON object a line")
    p.set_defaults(command=show_features)


def show_features(a: argparse.Namespace) -> int:
    """``limbeck show-features``."""
    try:
        shape = [int(n) for n in a.shape.split(",")]
    except ValueError as error:
        raise UserError(f"--shape is whole numbers like 3,32,32, not {a.shape}") from error
    from limbeck import looking

    for role, rows in looking.features(a.model, shape=shape, classes=a.classes, leaves=a.all).items():
        if a.json:
            for row in rows:
                _print_json({"role": role, **row})
        else:
            print(f"{role}:")
            _table(looking.table(rows))
    return OK


def _add_report(commands: Any) -> None:
    p = commands.add_parser("report", help="write the report of a run again")
    p.add_argument("run", help="a run directory")
    p.set_defaults(command=report)


def report(a: argparse.Namespace) -> int:
    """``limbeck report``."""
    from limbeck.report.page import write_report

    folder = Path(a.run)
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder} is not a finished run: there is no results.json in it")
    print(write_report(folder))
    return OK


def _add_export(commands: Any) -> None:
    p = commands.add_parser("export", help="export a run's student or a stored model")
    p.add_argument("model", help="a run directory or a model folder")
    networks = ("onnx", "torch_export", "transformers", "int8", "sentence_transformers", "diffusers")
    formats = (*networks, "datasets", "image_folder")
    p.add_argument("--format", choices=formats, required=True, help="what to write")
    p.add_argument("--output", help="where to write (default: beside the model)")
    p.add_argument("--trust-code", action="store_true", help="import the model's class where it is not limbeck's own")
    p.set_defaults(command=export)


def export(a: argparse.Namespace) -> int:
    """``limbeck export``."""
    from limbeck.export import export_model

    print(export_model(Path(a.model), a.format, Path(a.output) if a.output else None, trust_code=a.trust_code))
    return OK


def _add_schema(commands: Any) -> None:
    p = commands.add_parser("schema", help="print the JSON Schema of recipes, for editors")
    p.set_defaults(command=schema)


def schema(a: argparse.Namespace) -> int:
    """``limbeck schema``."""
    from limbeck.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))
    return OK


def _add_init(commands: Any) -> None:
    p = commands.add_parser("init", help="write a commented recipe for your own model and data")
    p.add_argument("path", nargs="?", default="recipe.yaml", help="the file to write (default recipe.yaml)")
    p.add_argument("--method", default="dkd", help="the method to start from (default dkd)")
    p.set_defaults(command=init)


def init(a: argparse.Namespace) -> int:
    """``limbeck init``."""
    from limbeck.starter import starter

    path, text = Path(a.path), starter(a.method, a.path)
    if path.exists():
        raise UserError(f"{path} exists already: name another file")
    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    print(path)
    return OK


def _add_import_torchdistill(commands: Any) -> None:
    p = commands.add_parser("import-torchdistill", help="turn a configuration of torchdistill into a recipe")
    p.add_argument("config", help="its YAML file")
    p.add_argument("--output", help="the recipe to write (default: standard output)")
    p.set_defaults(command=import_torchdistill)


def import_torchdistill(a: argparse.Namespace) -> int:
    """``limbeck import-torchdistill``."""
    from limbeck import importing

    made = importing.import_torchdistill(a.config)
    if a.output is None:
        print(made.text())
    else:
        target = Path(a.output)
        if target.exists():
            raise UserError(f"{target} exists already: name another file")
        target.write_text(made.text(), encoding="utf8")
        print(target)
    for line in made.left:
        print(f"not carried over: {line}", file=sys.stderr)
    return OK


def _recipe_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", help="a recipe file, or a name of the gallery (limbeck list)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value (repeatable)")
    p.add_argument("--runs", default="runs", help="folder for run directories (default runs)")


def _table(rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    widths = [min(max(len(row[i]) for row in rows), 60) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), allow_nan=False, default=str), flush=True)


def _finite(value: Any) -> Any:
    """The value with null where JSON has no number: a score that is not finite."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_first_process() -> bool:
    """Whether this is the process that prints, of several that share a run."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
