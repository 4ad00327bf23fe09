"""All output for people, on stderr: tables, plain lines, and progress bars where there is a terminal."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurestore.storage.files import replacing
from pipelines.run_kinds import kind_of

if TYPE_CHECKING:
    from featurestore.maintenance.verify import Finding
    from featurestore.runs import RunRecord
    from pipelines.embedding.embed import EmbedResult
    from pipelines.embedding.labels import LabelResult
    from pipelines.maintenance import DoctorResult
    from pipelines.predict import Prediction

LINE_SECONDS = 10  # between progress lines if stderr is not a terminal
ROWS_SHOWN = 12
LEADERS_SHOWN = 20
AMBIGUOUS = "ambiguous label"  # as in featurestore.dataset
FORGOTTEN = "removed images"  # as in pipelines.maintenance
CLASSES_SHOWN = 3  # this many of the largest, and of the smallest

_console = Console(stderr=True, highlight=False, soft_wrap=True)
if not _console.is_terminal:
    _console.width = 200  # lines of a log should not be wrapped


def say(text: str) -> None:
    """Print one plain line."""
    _console.print(escape(text))


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that shows progress: as a bar on a terminal, else as a line every 10 seconds."""
    if _console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_console, transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    began = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            say(f"{what}: {done:,} of {total:,}, {done / (now - began):.1f} a second")

    yield line


def table(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> None:
    """Print rows with the same keys as a table."""
    if not rows:
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        grid.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows[:limit]:
        grid.add_row(*(escape(_text(value)) for value in row.values()))
    _console.print(grid)
    if limit and len(rows) > limit:
        say(f"… and {len(rows) - limit} more")


def embedded(result: EmbedResult) -> None:
    """Print what an embed run did."""
    for run_id in result.recovered:
        say(f"Recovered what run {run_id} had finished before it died.")
    _problems(result.problems)
    if result.ignored:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(result.ignored.items(), key=lambda item: -item[1])[:6])
        say(f"Ignored files that are no pictures: {counts}.")
    say(f"{result.seen:,} files seen: {result.new:,} new, {result.changed:,} changed, {result.unchanged:,} unchanged.")
    if result.embedded or result.deduplicated or result.failed:
        took, rate = result.seconds["total"], result.images_per_second
        say(
            f"{result.embedded:,} embedded in {took:.1f} s ({rate:.1f} a second), "
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


def forgotten(result: Mapping[str, Any]) -> None:
    """Print which source was forgotten, and how many images were removed."""
    images, removed = f"{result['images']:,}", f"{result['removed']:,}"
    say(
        f"Forgot {_place(result['source'])}: it listed {images} images; {removed} of them are removed, as no other "
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


def trained(result: Mapping[str, Any]) -> None:
    """Print the scores of one trained head."""
    low, high = result["test_ci"]
    say(
        f"{result['head']}: top-1 {result['test']:.1%} on test (95 % interval {low:.1%} to {high:.1%}), "
        f"{result['val']:.1%} on validation; the most frequent class alone gives {result['baseline']:.1%}."
    )
    _notes(result)
    if wrong := result.get("misclassified", ()):
        say(f"{len(wrong):,} test images predicted wrong, the surest first:")
    for row in wrong:
        say(f"  {row['probability']:6.1%}  {row['predicted']}, is {row['true']}  {row['uri']}")
    say(f"Head: {result['head_id']}")


def compared(result: Mapping[str, Any]) -> None:
    """Print the leaderboard of a comparison and its winner."""
    from heads.registry import describe

    several = any("feature_set" in row for row in result["leaderboard"])
    rows = [
        {
            **({"set": row.get("feature_set", "")} if several else {}),
            "head": row["head"],
            "parameters": ", ".join(filter(None, [describe(row["head"], row["params"]), row["class_weight"]])),
            "val": "failed" if row["val"] is None else f"{row['val']:.1%}",
            "interval": "" if row["val_ci"] is None else "{:.1%} to {:.1%}".format(*row["val_ci"]),
            "seconds": f"{row['fit_seconds']:.2f}",
            "note": row.get("error") or ", ".join(_remarks(row)),
        }
        for row in result["leaderboard"]
    ]
    table(rows, limit=LEADERS_SHOWN)
    winner, n = result["winner"], result["n"]
    low, high = winner["test_ci"]
    say(
        f"Winner by {result['chosen_by']}: {winner['head']} {describe(winner['head'], winner['params'])}. "
        f"On test: {winner['test']:.1%} (95 % interval {low:.1%} to {high:.1%}, {n['test']:,} images)."
    )
    if calibration := winner["calibration"]:
        say(
            f"Calibration error on test: {calibration['ece_after']:.1%} with temperature "
            f"{calibration['temperature']:.2g}, {calibration['ece_before']:.1%} without."
        )
    if (curve := result["learning_curve"]) and (more := curve["at_twice"]):
        say(
            f"With {more['n']:,} training images instead of {n['train']:,}: about {more['val']:.1%} on validation "
            f"({more['low']:.1%} to {more['high']:.1%})."
        )
    if result["fewshot"]:
        table(
            [
                {
                    "images per class": row["k"],
                    "head": row["head"],
                    "val": f"{row['val']:.1%}",
                    "range": "{:.1%} to {:.1%}".format(*row["val_range"]),
                }
                for row in result["fewshot"]
            ]
        )
    _notes(result)
    say(f"Head: {winner['head_id']}")
    say(f"Report: {result['report']}")


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the remarks on a row of a leaderboard."""
    if row.get("tied"):
        yield "tied with the first"
    if "val_range" in row:
        yield "seeds from {:.1%} to {:.1%}".format(*row["val_range"])
    if "note" in row:
        yield row["note"]


def finetuned(result: Mapping[str, Any]) -> None:
    """Print the scores of the head before and after fine-tuning."""
    n = result["n"]
    say(f"Best on validation: epoch {result['best_epoch']} of {result['epochs']}.")
    for name in ("before", "after"):
        row = result[name]
        low, high = row["test_ci"]
        say(
            f"{name.capitalize()}: top-1 {row['test']:.1%} on test (95 % interval {low:.1%} to {high:.1%}, "
            f"{n['test']:,} images), {row['val']:.1%} on validation."
        )
    say(f"Exact McNemar test of the difference: p = {result['p_value']:.2g}.")
    for reason, count in result["left_out"].items():
        say(f"Left out: {count:,} {reason}.")
    _notes(result)
    seconds = ", ".join(f"{stage} {took:.1f}" for stage, took in result["seconds"].items())
    say(f"Seconds: {seconds}; trained on {result['images_per_second']:.1f} images per second.")
    say(f"Backbone: {result['backbone']}")
    say(f"Head: {result['head_id']}")
    say(f"Report: {result['report']}")


def promoted(result: Mapping[str, Any]) -> None:
    """Print which head an alias points at now, and which one it pointed at before."""
    before = result["before"]
    unless = f", before: {before}" if before not in (None, result["head_id"]) else ""
    say(f"{result['alias']} is {result['head_id']}{unless}.")


def predicted(predictions: Sequence[Prediction]) -> None:
    """Print the labels of each image with their probabilities, or why it has none."""
    for prediction in predictions:
        say(prediction.name)
        if prediction.error:
            say(f"  {prediction.error_type}: {prediction.error}")
        for name, probability in prediction.top:
            say(f"  {probability:6.1%}  {name}")


def exported(result: Mapping[str, Any]) -> None:
    """Print where the exported model is, and the result of its check."""
    parity, side = result["parity"], result["input_size"]
    say(
        f"{result['path']}: {side}×{side} RGB in, {result['classes']:,} classes out, {_size(result['bytes'])} "
        f"with {result['labels']}."
    )
    say(
        f"Checked on {parity['pictures']} pictures: probabilities within {parity['max_difference']:.1g} of the head's "
        f"on stored features, one picture at a time within {parity['batch_1_against_n']:.1g} of all at once."
    )


def status(counted: Mapping[str, Any]) -> None:
    """Print what a store holds."""
    catalog = counted["catalog"]
    say(f"{counted['store']}: {catalog['ok'] + catalog['failed']:,} images, {_size(counted['bytes'])}")
    say(f"  {catalog['ok']:,} read ({catalog['contents']:,} different contents), {catalog['failed']:,} failed")
    for reason, count in counted["failures"].items():
        say(f"    {count:,} {reason}")
    if catalog["failed"]:
        say("    `penult status --failed` names them.")
    if catalog["removed"]:
        say(f"  {catalog['removed']:,} removed, which no source lists any more")
    table([row | {"source": _place(row["source"])} for row in counted["sources"]])
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
                "size": _size(s["bytes"]),
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


def _place(source: str | None) -> str:
    """Return a source's URI in the form that people use: a plain path for a ``file://`` URI."""
    return "unknown origin" if source is None else unquote(source.removeprefix("file://"), errors="backslashreplace")


def _notes(result: Mapping[str, Any]) -> None:
    for reason, count in result.get("excluded", {}).items():
        examples = map(_place, result["ambiguous_uris"] if reason == AMBIGUOUS else ())
        such = f", such as {told}" if (told := " and ".join(examples)) else ""
        say(f"Left out: {count:,} with {reason}{such}.")
    for note in result.get("notes", ()):
        say(f"Note: {note}")


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in parameters.items()) or "no parameters"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(value)
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    return "" if value is None else str(value)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
