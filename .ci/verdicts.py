"""Judge proofs (JSON lines of ``limbeck prove --json``) by what is on record: exit 1 when a claim no longer holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def known_to_fail(verdict: dict) -> bool:
    """Whether the ledger says already that this claim does not hold."""
    record = Path("evidence", verdict["family"], f"{verdict['slug']}.json")
    return record.exists() and not json.loads(record.read_text(encoding="utf8"))["holds"]


def main() -> int:
    """Print a line for each proof; 1 when one of them is worse than its record."""
    worse = 0
    for line in Path(sys.argv[1]).read_text(encoding="utf8").splitlines():
        verdict = json.loads(line)
        expected = verdict["holds"] or known_to_fail(verdict)
        worse += not expected
        state = "holds" if verdict["holds"] else "does not hold, as recorded" if expected else "DOES NOT HOLD"
        print(f"{verdict['family']}/{verdict['slug']}: {state} ({verdict['seconds']:.0f} s)")
        for check in [c for c in verdict["checks"] if not c["holds"]]:
            print(f"    {check['text']}: {check['left']:.5g} against {check['right']:.5g}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
