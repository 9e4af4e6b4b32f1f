"""Each process of a distributed test of whole recipes: ``torchrun -m toolkit.run_worker RUNS RECIPE.json ...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from limbeck.errors import UserError
from limbeck.run import run_recipe

if __name__ == "__main__":
    runs, *recipes = map(Path, sys.argv[1:])
    for file in recipes:
        try:
            run_recipe(json.loads(file.read_text()), runs=runs, quiet=True)
        except UserError as error:
            file.with_suffix(".error").write_text(str(error))
