"""Train or compare heads on stored features and keep the outcome: a head, a report, a run record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore.dataset import Dataset
from featurestore.errors import ImageError
from featurestore.files import write_text
from featurestore.runs import RunRecord, new_run_id, utc_now
from featurestore.splits import TEST, TEST_SHARE, TRAIN, VAL_SHARE
from featurestore.store import FeatureStore
from heads import artifact, registry, tensorboard
from heads.compare import CompareResult, compare
from heads.report import render
from heads.train import TrainResult, misclassified, train
from pipelines import images, sources


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

    def load(self, store: FeatureStore) -> Dataset:
        """Read the labelled features."""
        return store.dataset(self.feature_set, self.label_set, val=self.val, test=self.test, seed=self.split_seed)

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
    registry.complete(head, params)  # refuses what is unknown before features are read
    opened, started = FeatureStore(store), utc_now()
    dataset = data.load(opened)
    result = train(dataset, head, params, class_weight, seed, data.augmented(opened, dataset))
    run_id = new_run_id("train")
    report = keep(opened, run_id, result, result, dataset, started, gallery_seed, tensorboard_folder)
    outcome = {**result.to_json(run_id, run_id), "report": str(report), "excluded": dataset.excluded}
    asked = {"head": head, "params": dict(params or {}), "class_weight": class_weight, "seed": seed}
    RunRecord(run_id, "train", started, asked | asdict(data), outcome).write(opened.run_folder(run_id))
    if list_misclassified:
        outcome["misclassified"] = misclassified(result.head, dataset.part(TEST))
    return outcome


def compare_heads(
    store: str | Path,
    heads: Sequence[str] | None = None,
    class_weight: str | None = None,
    seeds: Sequence[int] = (0,),
    data: FitData = FitData(),
    progress: Callable[[int, int], None] | None = None,
    *,
    gallery_seed: int = 0,
    tensorboard_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Compare heads and keep the winner; return the object that ``penult compare --json`` prints.

    Raises:
        HeadError, UsageError: labels or names that no comparison can be made of.
        StoreError: the store or its features.
    """
    opened, started = FeatureStore(store), utc_now()
    dataset = data.load(opened)
    told = None if progress is None else lambda done, total, _row: progress(done, total)
    result = compare(dataset, heads, class_weight, seeds, told, data.augmented(opened, dataset))
    run_id = new_run_id("compare")
    report = keep(opened, run_id, result, result.winner, dataset, started, gallery_seed, tensorboard_folder)
    outcome = {**result.to_json(run_id, run_id, str(report)), "excluded": dataset.excluded}
    asked = {"heads": list(heads) if heads else None, "class_weight": class_weight, "seeds": list(seeds)}
    RunRecord(run_id, "compare", started, asked | asdict(data), outcome).write(opened.run_folder(run_id))
    return outcome


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


def _thumbnail(uri: str) -> bytes | None:
    try:
        return images.thumbnail(sources.read(uri)[0])
    except ImageError:
        return None
