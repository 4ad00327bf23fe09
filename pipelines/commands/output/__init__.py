"""All output for people, on stderr: tables, plain lines, and progress bars where there is a terminal."""

from pipelines.commands.output.console import bar, log_as, say, table
from pipelines.commands.output.heads import (
    compared,
    evaluated,
    exported,
    finetuned,
    pointed,
    predicted,
    promoted,
    trained,
)
from pipelines.commands.output.nights import night, night_row
from pipelines.commands.output.sources import embedded, failed, forgotten, labelled, write_csv
from pipelines.commands.output.stores import (
    added_backbone,
    freed,
    imported_backbone,
    repaired,
    run_row,
    status,
    verified,
)
from pipelines.commands.output.trials import tried

__all__ = [
    "added_backbone",
    "bar",
    "compared",
    "embedded",
    "evaluated",
    "exported",
    "failed",
    "finetuned",
    "forgotten",
    "freed",
    "imported_backbone",
    "labelled",
    "log_as",
    "night",
    "night_row",
    "pointed",
    "predicted",
    "promoted",
    "repaired",
    "run_row",
    "say",
    "status",
    "table",
    "trained",
    "tried",
    "verified",
    "write_csv",
]
