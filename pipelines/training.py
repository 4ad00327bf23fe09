"""Train or compare heads on stored features and keep the outcome: a head, a report, a run record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import ImageError, UsageError
from featurestore.labels import check_label_set
from featurestore.limits import check_amount, check_count, check_seed
from featurestore.runs import RunRecord, utc_now
from featurestore.splits import TEST, TEST_SHARE, TRAIN, VAL_SHARE
from featurestore.splits import check as check_split
from featurestore.storage.files import write_text
from featurestore.store import FeatureStore
from heads import artifact, registry
from heads.comparison.compare import CompareResult, compare
from heads.comparison.compare import check as check_comparison
from heads.comparison.fit_cache import Results
from heads.comparison.search import DEFAULT, Search
from heads.reporting import tensorboard
from heads.reporting.report import render
from heads.train import TrainResult, misclassified, train
from pipelines.images import decoder
from pipelines.images.augment import MAX_VIEWS
from pipelines.sources import corpus

RESULTS = "results"  # in the store: outcomes of fits, for comparisons to go on from


@dataclass(frozen=True)
class FitData:
    """Which stored features to fit on, and how to split what the corpus does not split itself."""

    feature_set: str | None = None
    label_set: str = "default"
    val: float = VAL_SHARE
    test: float = TEST_SHARE
    split_seed: int = 0
    views: int = 0
    views_set: str | None = None

    def check(self) -> None:
        """Raise UsageError for what no store could give."""
        check_split(self.val, self.test, self.split_seed)
        check_label_set(self.label_set)
        check_count("--views", self.views, 0, MAX_VIEWS)

    def load(self, store: FeatureStore, memory_limit: int | None = None) -> Dataset:
        """Read the labelled features, or leave them in the store where they take more than half of the limit."""
        return store.dataset(
            self.feature_set,
            self.label_set,
            val=self.val,
            test=self.test,
            seed=self.split_seed,
            memory_limit=memory_limit,
        )

    def load_each(self, store: FeatureStore, sets: Sequence[str], memory_limit: int | None = None) -> list[Dataset]:
        """Read several feature sets, the images that all of them hold, in the same order."""
        datasets = [replace(self, feature_set=name).load(store, memory_limit) for name in sets]
        keys = functools.reduce(np.intersect1d, [dataset.keys for dataset in datasets])
        return [dataset.take(np.searchsorted(dataset.keys, keys)) for dataset in datasets]

    def augmented(self, store: FeatureStore, dataset: Dataset) -> Dataset | None:
        """The training rows with their views, where views are asked for."""
        return store.augmented(dataset.part(TRAIN), self.views, self.views_set) if self.views else None


def train_head(
    store: str | Path,
    head: str,
    params: Mapping[str, Any] | None = None,
    class_weight: str | None = None,
    seed: int = 0,
    data: FitData = FitData(),
    *,
    gallery_seed: int = 0,
    tensorboard_folder: str | Path | None = None,
    list_misclassified: bool = False,
) -> dict[str, Any]:
    """Train one head and keep it; return the object that ``penult train --json`` prints.

    Args:
        store, head, params, class_weight, seed, data: what to fit, see ``heads.train.train``.
        gallery_seed: of the choice of pictures in the report.
        tensorboard_folder: event files are written into a sub-folder named after the run.
        list_misclassified: the object gets "misclassified", see ``heads.train.misclassified``.

    Raises:
        HeadError, UsageError: labels or parameters that no head can be fitted to.
        StoreError: the store or its features.
    """
    registry.complete(head, params)
    registry.check_weight(head, class_weight)
    check_seed("--seed", seed)
    _check(data, gallery_seed, tensorboard_folder)
    opened, started = FeatureStore(store), utc_now()
    dataset = data.load(opened)
    result = train(dataset, head, params, class_weight, seed, data.augmented(opened, dataset))
    run_id = opened.new_run_id("train")
    report = keep(opened, run_id, result, result, dataset, started, gallery_seed, tensorboard_folder)
    outcome = {**result.to_json(run_id, run_id), "report": str(report), **_left_out(dataset)}
    asked = {"head": head, "params": dict(params or {}), "class_weight": class_weight, "seed": seed}
    RunRecord(run_id, "train", started, asked | asdict(data), outcome).write(opened.run_folder(run_id))
    if list_misclassified:
        outcome["misclassified"] = misclassified(result.head, dataset.part(TEST))
    return outcome


def compare_heads(
    store: str | Path,
    search: Search = DEFAULT,
    data: FitData = FitData(),
    progress: Callable[[int, int], None] | None = None,
    *,
    sets: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    folds: int = 0,
    fewshot: Sequence[int] = (),
    budget: float | None = None,
    memory_limit: int | None = None,
    gallery_seed: int = 0,
    tensorboard_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Compare heads and keep the winner; return the object that ``penult compare --json`` prints.

    Args:
        store, search, data: what to fit to what.
        sets: feature sets to compare with one another, in place of that of ``data``.
        progress, seeds, folds, fewshot, budget: see ``heads.comparison.compare.compare``.
        memory_limit: bytes; training features that take more than half of it are streamed from the store.
        gallery_seed, tensorboard_folder: see ``train_head``.

    Raises:
        HeadError, UsageError: labels or names that no comparison can be made of, or a limit that is too low.
        StoreError: the store or its features.
    """
    check_comparison(seeds, folds, fewshot, budget)
    if memory_limit is not None:
        check_amount("--memory-limit in bytes", memory_limit, 1)
    _check(data, gallery_seed, tensorboard_folder)
    opened, started = FeatureStore(store), utc_now()
    datasets = data.load_each(opened, sets, memory_limit) if sets else [data.load(opened, memory_limit)]
    if data.views and datasets[0].stored is not None:
        raise UsageError("--views needs the training features in memory: raise --memory-limit, or leave --views out.")
    result = compare(
        datasets,
        search,
        seeds=seeds,
        folds=folds,
        fewshot=fewshot,
        budget=budget,
        results=Results(opened.path / RESULTS),
        progress=progress,
        augmented=data.augmented(opened, datasets[0]),
    )
    dataset = next(dataset for dataset in datasets if dataset.feature_set == result.winner.feature_set)
    if dataset.stored is not None:
        dataset = dataset.part(TEST).read()  # what the report shows
    run_id = opened.new_run_id("compare")
    report = keep(opened, run_id, result, result.winner, dataset, started, gallery_seed, tensorboard_folder)
    outcome = {**result.to_json(run_id, run_id, str(report)), **_left_out(dataset)}
    asked = {"search": asdict(search), "seeds": list(seeds), "folds": folds, "fewshot": list(fewshot), "budget": budget}
    asked |= {"sets": list(sets), "memory_limit": memory_limit}
    RunRecord(run_id, "compare", started, asked | asdict(data), outcome).write(opened.run_folder(run_id))
    return outcome


def _check(data: FitData, gallery_seed: int, tensorboard_folder: str | Path | None) -> None:
    """Refuse what cannot be had before features are read."""
    data.check()
    check_seed("--gallery-seed", gallery_seed)
    if tensorboard_folder is not None:
        tensorboard.check(Path(tensorboard_folder))


def keep(
    store: FeatureStore,
    run_id: str,
    result: CompareResult | TrainResult,
    winner: TrainResult,
    dataset: Dataset,
    started: str,
    gallery_seed: int,
    tensorboard_folder: str | Path | None,
) -> Path:
    """Write the winning head and the report into the run's folder; return the report's path."""
    folder = store.run_folder(run_id)
    meta = {
        "feature_set": dataset.feature_set,
        "fingerprint": dataset.fingerprint,
        "metrics": winner.metrics,
        "val": winner.val,
    }
    artifact.save(winner.head, folder, meta)
    html = render(result, dataset, _thumbnail, date=started, head_id=run_id, seed=gallery_seed)
    write_text(folder / "report.html", html)
    if tensorboard_folder is not None:
        tensorboard.write(winner, Path(tensorboard_folder) / run_id)
    return folder / "report.html"


def _left_out(dataset: Dataset) -> dict[str, Any]:
    """Why labelled images are not in a dataset, as JSON."""
    return {"excluded": dataset.excluded, "ambiguous_uris": list(dataset.ambiguous_uris)}


def _thumbnail(uri: str) -> bytes | None:
    try:
        return decoder.thumbnail(corpus.read(uri)[0])
    except ImageError:
        return None
