"""The first steps of a night: embed what is new of the sources, take people's labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import layout
from featurestore.errors import BackboneError, EngineError, SpecMismatch, StoreNotFound, UsageError
from featurestore.runs import RunRecord
from featurestore.schema import FAILED, OK
from featurestore.storage.files import exists
from pipelines.embedding.embed import embed
from pipelines.embedding.labels import import_labels
from pipelines.embedding.result import EmbedResult
from pipelines.options import EmbedOptions
from pipelines.retraining.night import Work
from pipelines.retraining.options import EXAMPLES
from pipelines.sources import corpus

if TYPE_CHECKING:
    from pipelines.retraining.contest import Champion

ADDED_UP = ("new", "changed", "embedded", "deduplicated", "removed", "labels_changed")  # over attempts
RUNS = "runs"  # the step that notes the ids of tonight's runs whose records may be removed some day


def embed_sources(work: Work) -> dict[str, Any]:
    """Embed what the store lacks of the recipe's sources; return the sum of what ``penult embed --json`` prints.

    Attempts of tonight that were killed are counted too.

    Raises:
        TooManyFailures, TooManyRemoved: after all sources were embedded; everything good is kept.
        SourceError, BackboneError, EngineError, StoreError: before any work on the source.
    """
    recipe = work.recipe
    options = replace(recipe.embed, label_set=recipe.labels.label_set)
    earlier = runs_of(work)
    results = [_embed(work, source, options) for source in recipe.source.location]
    for result in results:
        result.check(recipe.source.max_failure_rate, recipe.embed.max_removed)
    told = _sum([result.to_json() for result in results])
    return _with_earlier(work, told, earlier) if earlier else told


def runs_of(work: Work) -> list[str]:
    """Return the ids of tonight's runs that embedded files, killed ones too, or imported labels without effect."""
    return list(work.night.told["steps"].get(RUNS, []))


def failed_files(work: Work) -> list[str]:
    """Return the URIs of some of tonight's files that failed."""
    rows = work.store.catalog.read(["uri"], f"status = '{FAILED}' AND {_of(runs_of(work))}")
    return sorted(rows.column("uri").to_pylist())[:EXAMPLES]


def embed_for(work: Work, champion: Champion | None, feature_set: str) -> list[str]:
    """Embed what is new with the champion's backbone too, if it has another; return notes on what could not be done."""
    if champion is None or champion.head is None or champion.feature_set == feature_set:
        return []
    made = [
        run for run in work.store.runs() if run.kind == "embed" and run.result["feature_set"] == champion.feature_set
    ]
    if not made:
        return [f"No run says how {champion.feature_set} was embedded: new images are not embedded for the champion."]
    ours = work.recipe.embed
    options = replace(
        EmbedOptions.from_json(made[-1].parameters), runner=ours.runner, runner_arguments=ours.runner_arguments
    )
    try:
        for source in work.recipe.source.location:
            _embed(work, source, options, as_source=False)
    except (BackboneError, EngineError, SpecMismatch, UsageError, StoreNotFound) as error:
        return [f"The champion's backbone cannot embed the new images: {error}"]
    return []


def import_files(work: Work) -> list[str]:
    """Import the recipe's label files; return notes on those that are not there."""
    notes = []
    for file in work.recipe.labels.file:
        if not corpus.is_uri(file) and not Path(file).exists():
            notes.append(f"{file} is not there: no labels were imported from it.")
            continue
        result = import_labels(file, str(work.store.path), work.recipe.labels.label_set)
        if not (result.added or result.changed):
            _note_run(work, result.run_id)
        work.console.say(f"{file}: {result.added:,} labels added, {result.changed:,} changed.")
        notes += [f"{file}: {problem}" for problem in result.problems]
    return notes


def _embed(work: Work, source: str, options: EmbedOptions, as_source: bool = True) -> EmbedResult:
    with work.console.bar("embed") as progress:
        result = embed(source, work.store.path, options, progress, as_source=as_source, began=partial(_note_run, work))
    work.console.say(
        f"{corpus.printable(source)}: {result.seen:,} files seen, {result.new + result.changed:,} new or changed, "
        f"{result.embedded:,} embedded, {result.failed:,} failed, {result.removed:,} removed."
    )
    return result


def _note_run(work: Work, run_id: str) -> None:
    work.night.note(**{RUNS: [*runs_of(work), run_id]})


def _sum(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up what the runs of several sources did; what cannot be added is the first one's."""
    total = dict(told[0])
    for result in told[1:]:
        for name, value in result.items():
            if isinstance(value, list):
                total[name] = [*total[name], *value]
            elif name in ("failures", "ignored", "seconds"):
                total[name] = {**Counter(total[name]) + Counter(value)}
            elif isinstance(value, int):
                total[name] += value
    return total


def _with_earlier(work: Work, told: dict[str, Any], earlier: list[str]) -> dict[str, Any]:
    """Add what earlier attempts of tonight did: as their records say or, if they were killed, as their rows do."""
    told = dict(told)
    for run_id in earlier:
        folder, condition = work.store.run_folder(run_id), _of([run_id])
        if exists(folder / layout.RECORD):
            did = RunRecord.read(folder).result
        else:
            ok = work.store.catalog.count(f"status = '{OK}' AND {condition}")
            embedded = work.store.table(told["feature_set"]).count(condition)
            did = {"new": work.store.catalog.count(condition), "embedded": embedded, "deduplicated": ok - embedded}
        told |= {name: told[name] + did.get(name, 0) for name in ADDED_UP}
    rows = work.store.catalog.read(["error_type"], f"status = '{FAILED}' AND {_of(runs_of(work))}")
    failures = Counter(rows.column("error_type").to_pylist())
    told |= {"failures": dict(failures), "failed": failures.total(), "recovered": []}
    return told | {"unchanged": told["seen"] - told["new"] - told["changed"]}


def _of(runs: list[str]) -> str:
    """Return the SQL condition for the rows of runs."""
    return f"run_id IN ({', '.join(map(repr, runs))})" if runs else "false"
