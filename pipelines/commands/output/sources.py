"""What was read of sources and label files, and which files failed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.storage.files import replacing
from pipelines.commands.output.console import ROWS_SHOWN, place, say

if TYPE_CHECKING:
    from pipelines.embedding.embed import EmbedResult
    from pipelines.embedding.labels import LabelResult

CLASSES_SHOWN = 3  # this many of the largest, and of the smallest


def embedded(result: EmbedResult) -> None:
    """Print what an embed run did."""
    for run_id in result.recovered:
        say(f"Recovered what run {run_id} had finished before it died.")
    _problems(result.problems)
    if result.ignored:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(result.ignored.items(), key=lambda item: -item[1])[:6])
        say(f"Ignored files that are no images: {counts}.")
    say(f"{result.seen:,} files seen: {result.new:,} new, {result.changed:,} changed, {result.unchanged:,} unchanged.")
    if result.embedded or result.deduplicated or result.failed:
        took, rate = result.seconds["total"], result.images_per_second
        say(
            f"{result.embedded:,} embedded in {took:.1f} s ({rate:.1f} per second), "
            f"{result.deduplicated:,} copies of known contents, {result.failed:,} failed."
        )
    else:
        say("Nothing to embed: the store has it all.")
    for reason, count in result.failures.items():
        say(f"  failed: {count:,} {reason}")
    if result.failed_before:
        say(f"{result.failed_before:,} files that failed before were left alone; --retry-failed tries them again.")
    _understood(result.labels, result.columns, result.notes)
    if result.removed:
        say(f"{result.removed:,} images removed, which no source lists any more.")
    say(f"Feature set: {result.feature_set}")


def labelled(result: LabelResult) -> None:
    """Print what a label import changed."""
    told = {
        "classes": result.labels,
        "class_count": result.class_count,
        "unlabelled": result.unlabelled,
        "splits": result.splits,
        "changed": result.changes,
    }
    _understood(told, result.columns, result.notes)
    say(
        f"{result.rows:,} rows: {result.added:,} added, {result.changed:,} changed, {result.unchanged:,} unchanged, "
        f"{result.class_count:,} labels."
    )
    for uri, old, new in result.examples:
        say(f"  {uri}: {_label(old)} → {_label(new)}")
    _problems(result.problems)
    if result.unknown:
        say(f"{result.unknown:,} rows name images that the catalog does not have: embed them, or check the paths.")


def forgotten(result: Mapping[str, Any]) -> None:
    """Print which source was forgotten, and how many images were removed."""
    images, removed = f"{result['images']:,}", f"{result['removed']:,}"
    say(
        f"Forgot {place(result['source'])}: it listed {images} images; {removed} of them are removed, as no other "
        "source lists them."
    )


def failed(files: Sequence[Mapping[str, str]]) -> None:
    """Print the files that failed, with the reasons."""
    for file in files:
        say(f"{file['uri']}: {file['error_type']}: {file['error']}")
    say(f"{len(files):,} files failed; `penult embed SOURCE --retry-failed` tries them again.")


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write failed files (uri, error_type, error) to a CSV file.

    Raises:
        StoreError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["uri", "error_type", "error"])
        writer.writeheader()
        writer.writerows(rows)
    say(f"{len(rows):,} failed files are listed in {path}.")


def _problems(problems: Sequence[str]) -> None:
    for problem in problems[:ROWS_SHOWN]:
        say(f"Problem: {problem}")
    if len(problems) > ROWS_SHOWN:
        say(f"Problem: and {len(problems) - ROWS_SHOWN:,} more; --json lists them.")


def _understood(labels: Mapping[str, Any], columns: Mapping[str, str], notes: Sequence[str]) -> None:
    """Print how a source or a label file was read, so that people see mistakes in it at once."""
    for note in notes:
        say(f"Note: {note}")
    taken = ", ".join(role if role == name else f"{role} from {name!r}" for role, name in columns.items())
    if taken:
        say(f"Columns: {taken}.")
    if not labels:
        return
    classes, total, silent = list(labels["classes"].items()), labels["class_count"], labels["unlabelled"]
    if classes:
        told = ", ".join(f"{name} {n:,}" for name, n in classes[:CLASSES_SHOWN])
        if smallest := classes[CLASSES_SHOWN:][-CLASSES_SHOWN:]:
            told = f"the largest {told}; the smallest {', '.join(f'{name} {n:,}' for name, n in reversed(smallest))}"
        unlabelled = f" {silent:,} images without a label." if silent else ""
        say(f"{total:,} {'class' if total == 1 else 'classes'}: {told}.{unlabelled}")
    elif silent:
        say(f"None of the {silent:,} images has a label.")
    if labels["splits"]:
        say("Given splits: " + ", ".join(f"{name} {n:,}" for name, n in labels["splits"].items()) + ".")
    if changed := labels["changed"]:
        pairs = ", ".join(
            f"{_label(row['from'])} → {_label(row['to'])} {row['images']:,}" for row in changed[:ROWS_SHOWN]
        )
        more = f", and {len(changed) - ROWS_SHOWN:,} more kinds" if len(changed) > ROWS_SHOWN else ""
        say(f"{sum(row['images'] for row in changed):,} labels changed: {pairs}{more}.")


def _label(name: str | None) -> str:
    return "no label" if name is None else name
