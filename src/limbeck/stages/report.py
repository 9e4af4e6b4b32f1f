"""The page that shows a run."""

from __future__ import annotations

from limbeck.registry import register
from limbeck.report.page import write_report
from limbeck.run import Context


@register("stage")
def report(context: Context) -> None:
    """Write ``report.html`` from what the run left on disk."""
    context.once(lambda: write_report(context.folder))
