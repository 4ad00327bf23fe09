"""What a store holds, what is damaged in it, and what was repaired or removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.options import size_text
from pipelines.commands.output.console import ROWS_SHOWN, place, say, table
from pipelines.run_kinds import kind_of

if TYPE_CHECKING:
    from featurestore.maintenance.verify import Finding
    from featurestore.runs import RunRecord
    from pipelines.backbones.addition import Added
    from pipelines.backbones.importing import Imported
    from pipelines.maintenance import DoctorResult

SHORT = 12  # digits of a digest, for people
FORGOTTEN = "removed images"  # as in pipelines.maintenance


def added_backbone(added: Added) -> None:
    """Print what is known of a network that was added."""
    one = added.backbone
    batch = "any number of images" if one.batch is None else f"{one.batch} at a time"
    known = "" if added.new else ", which the store has already"
    say(f"{one.name}{known}: {one.width:,} numbers per image, {batch}, sha256 {one.sha256[:SHORT]}")
    if added.cosine is None:
        say("  Not proved: nothing shows that its preprocessing is right.")
    else:
        allowed = (
            "" if added.rounding is None else f", of a quantised graph, whose own rounding is {added.rounding:.6f}"
        )
        say(f"  The reference gives the expected vector (cosine {added.cosine:.6f}{allowed}).")
    if taken := [f"{key} {value}" for key, value in added.defaults.items() if value != ""]:
        say("  At their defaults, said or not: " + ", ".join(taken))


def imported_backbone(made: Imported) -> None:
    """Print where a network was exported to, and the line to run next."""
    say(f"{made.source}: {made.width:,} numbers per image of {made.size} pixels, in {made.folder}. Add it to a store:")
    say(f"  {made.command} --store PLACE")


def status(counted: Mapping[str, Any]) -> None:
    """Print what a store holds."""
    catalog = counted["catalog"]
    say(f"{counted['store']}: {catalog['ok'] + catalog['failed']:,} images, {size_text(counted['bytes'])}")
    say(f"  {catalog['ok']:,} read ({catalog['contents']:,} different contents), {catalog['failed']:,} failed")
    for reason, count in counted["failures"].items():
        say(f"    {count:,} {reason}")
    if catalog["failed"]:
        say("    `penult status --failed` names them.")
    if catalog["removed"]:
        say(f"  {catalog['removed']:,} removed, which no source lists any more")
    table([row | {"source": place(row["source"])} for row in counted["sources"]])
    table(
        [
            {
                "set": s["name"],
                "layer": s["layer"],
                "input": s["input_size"],
                "stored as": f"{s['width']} × {s['dtype']}",
                "precision": s["precision"],
                "rows": f"{s['rows']:,}",
                "coverage": f"{s['coverage']:.1%}",
                "size": size_text(s["bytes"]),
            }
            for s in counted["sets"]
        ]
    )
    for name, rows in counted["labels"].items():
        differing = counted["differing_labels"][name]
        say(f"Label set {name}: {rows:,} rows.")
        if differing["contents"]:
            say(
                f"  {differing['contents']:,} contents have copies with different labels; {differing['ambiguous']:,} "
                f"of them are left out of training, for example {', '.join(k[:12] for k in differing['examples'])}."
            )
    say(f"{counted['runs']['count']} runs" + (", the last ones:" if counted["runs"]["last"] else "."))
    for run in counted["runs"]["last"]:
        say(f"  {run['run_id']}")


def run_row(record: RunRecord) -> dict[str, Any]:
    """Return a run as a row of a table."""
    result, outcome = record.result, kind_of(record.kind).summary(record.result)
    return {"run": record.run_id, "started": record.started, "outcome": outcome, "set": result.get("feature_set", "")}


def verified(found: Sequence[Finding]) -> None:
    """Print what is damaged."""
    if not found:
        say("Everything is as it was written.")
    for finding in found:
        say(f"{finding.path}: {finding.problem}")
        for image in finding.rows[:ROWS_SHOWN]:
            say(f"  image {image}")
        if len(finding.rows) > ROWS_SHOWN:
            say(f"  … and {len(finding.rows) - ROWS_SHOWN:,} more")


def repaired(result: DoctorResult) -> None:
    """Print what was repaired, and what the user must still do."""
    if not (result.repairs or result.artifacts):
        say("Nothing is damaged.")
    for one in result.repairs:
        done = [f"{len(one.put_aside)} files put aside"] if one.put_aside else []
        done += [f"back to version {one.back_to}"] if one.back_to is not None else []
        done += [f"{one.restored:,} rows put back"] if one.restored else []
        done += [f"{one.lost:,} rows lost"] if one.lost else []
        say(f"{one.table}: {', '.join(done)}.")
    if result.embedded:
        say(f"{result.embedded:,} images embedded anew.")
    for task in result.todo:
        say(f"To do: {task}")


def freed(sizes: Mapping[str, int]) -> None:
    """Print what `penult gc` removed."""
    for kind, size in sizes.items():
        say(f"{kind}: {size:,}" if kind == FORGOTTEN else f"{kind}: {size / 1e6:,.1f} MB freed")
