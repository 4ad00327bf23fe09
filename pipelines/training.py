"""Train or compare heads on stored features, and keep a head, a report and a run record in the store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.dataset import Dataset
from featurestore.errors import ImageError, UsageError
from featurestore.runs import RunRecord, utc_now
from featurestore.snapshot import Snapshot
from featurestore.splits import TEST, TRAIN
from featurestore.storage.files import write_text
from featurestore.store import FeatureStore
from heads import artifact
from heads.comparison.compare import CompareResult, compare
from heads.comparison.fit_cache import Results
from heads.reporting import tensorboard
from heads.reporting.report import Gallery, render
from heads.train import misclassified, train
from pipelines.images import decoder
from pipelines.options import CompareOptions, FitData, ReportOptions, TrainOptions
from pipelines.sources import corpus

ON_DISK = 1  # a memory limit in bytes with which all features stay in the store until some rows are read


def load_dataset(store: FeatureStore, data: FitData, memory_limit: int | None = None) -> Dataset:
    """Load the labelled features; features that take more than half of ``memory_limit`` bytes stay in the store."""
    return store.dataset(data.feature_set, data.label_set, data.split, memory_limit)


def load_datasets(store: FeatureStore, data: FitData, sets: Sequence[str], memory_limit: int | None) -> list[Dataset]:
    """Load several feature sets, each with the images that all of them hold, in the same order; or that of ``data``."""
    if not sets:
        return [load_dataset(store, data, memory_limit)]
    datasets = [load_dataset(store, replace(data, feature_set=name), memory_limit) for name in sets]
    keys = functools.reduce(np.intersect1d, [dataset.keys for dataset in datasets])
    return [dataset.take(np.searchsorted(dataset.keys, keys)) for dataset in datasets]


def with_views(store: FeatureStore, data: FitData, dataset: Dataset) -> Dataset | None:
    """Return the training rows together with their augmented views; None if no views are asked for."""
    return store.augmented(dataset.part(TRAIN), data.views, data.views_set) if data.views else None


def train_head(store: str | PurePath, options: TrainOptions = TrainOptions()) -> dict[str, Any]:
    """Train one head and keep it; return the object that ``penult train --json`` prints.

    With ``options.list_misclassified`` the object also has "misclassified", see ``heads.train.misclassified``.

    Raises:
        HeadError, UsageError: no head can be fitted with these labels or parameters.
        StoreError: the store or its features cannot be read.
    """
    options.check()
    opened, started = FeatureStore(store), utc_now()
    dataset = load_dataset(opened, options.data)
    augmented = with_views(opened, options.data, dataset)
    result = train(dataset, options.spec, options.seed, augmented)
    run_id = opened.new_run_id("train")
    report = keep(opened, run_id, CompareResult.of(result), dataset, started, options.report)
    outcome = {**result.to_json(run_id, run_id), "report": str(report), **left_out(dataset)}
    asked = options.spec.to_json() | {"seed": options.seed} | options.data.to_json()
    RunRecord(run_id, "train", started, asked, outcome).write(opened.run_folder(run_id))
    if options.list_misclassified:
        outcome["misclassified"] = misclassified(result.head, dataset.part(TEST))
    return outcome


def compare_heads(
    store: str | PurePath,
    options: CompareOptions = CompareOptions(),
    progress: Callable[[int, int], None] | None = None,
    *,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Compare heads and keep the winner; return the object that ``penult compare --json`` prints.

    ``progress`` is called after each fit with the number of fits done, and how many there are in all. ``run_id`` is
    for callers that must know the run's id before it begins.

    Raises:
        HeadError, UsageError: no comparison can be made with these labels or names, or a limit is too low.
        StoreError: the store or its features cannot be read.
    """
    options.check()
    data, sets, limit = options.data, options.sets, options.memory_limit
    opened, started = FeatureStore(store), utc_now()
    datasets = load_datasets(opened, data, sets, limit)
    if data.views and datasets[0].stored is not None:
        raise UsageError("--views needs the training features in memory: raise --memory-limit, or leave --views out.")
    result = compare(
        datasets,
        options.search,
        options.evaluation,
        results=Results(opened.path / layout.RESULTS),
        progress=progress,
        augmented=with_views(opened, data, datasets[0]),
    )
    dataset = next(dataset for dataset in datasets if dataset.feature_set == result.winner.feature_set)
    run_id = run_id or opened.new_run_id("compare")
    report = keep(opened, run_id, result, dataset, started, options.report)
    outcome = {**result.to_json(run_id, run_id, str(report)), **left_out(dataset)}
    asked = {
        "search": asdict(options.search),
        "seeds": list(options.evaluation.each_seed),
        "folds": options.evaluation.folds,
        "fewshot": list(options.evaluation.fewshot),
        "prefer": options.evaluation.prefer,
        "budget": options.evaluation.budget,
        "sets": list(sets),
        "memory_limit": limit,
    }
    RunRecord(run_id, "compare", started, asked | data.to_json(), outcome).write(opened.run_folder(run_id))
    return outcome


def keep(
    store: FeatureStore,
    run_id: str,
    result: CompareResult,
    dataset: Dataset,
    started: str,
    asked: ReportOptions,
) -> PurePath:
    """Write the winning head, what it was made from and the report into the run's folder; return the report's path."""
    winner, folder = result.winner, store.run_folder(run_id)
    meta = {
        "feature_set": dataset.feature_set,
        "fingerprint": dataset.fingerprint,
        "metrics": winner.metrics,
        "val": winner.val,
        "labelled": Snapshot.of(dataset).write(folder),
    }
    artifact.save(winner.head, folder, meta)
    if dataset.stored is not None:
        dataset = dataset.part(TEST).read()  # what the report shows
    html = render(result, dataset, Gallery(thumbnail, asked.gallery_seed), date=started, head_id=run_id)
    write_text(folder / layout.REPORT, html)
    if asked.tensorboard is not None:
        tensorboard.write(winner, asked.tensorboard / run_id)
    return folder / layout.REPORT


def left_out(dataset: Dataset) -> dict[str, Any]:
    """Return as JSON how many labelled images are not in a dataset, by reason, with the URIs of ambiguous ones."""
    return {"excluded": dataset.excluded, "ambiguous_uris": list(dataset.ambiguous_uris)}


def thumbnail(uri: str) -> bytes | None:
    """Return a small picture of an image for a report; None if it cannot be read."""
    try:
        return decoder.thumbnail(corpus.read(uri)[0])
    except ImageError:
        return None
