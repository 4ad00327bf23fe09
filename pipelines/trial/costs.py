"""What embedding the rest of a corpus costs: images left, at the rate that was measured, and bytes in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.status import bytes_of_set
from featurestore.store import FeatureStore
from pipelines import signals
from pipelines.concurrency import batched
from pipelines.embedding.plan import LISTED_AT_ONCE, count_lacking
from pipelines.options import EmbedOptions
from pipelines.sources import corpus


@dataclass
class Pace:
    """Images embedded by some runs, and the seconds that this took, without listing and committing."""

    images: int = 0
    seconds: float = 0.0

    def add(self, told: Mapping[str, Any]) -> None:
        """Count an embed run, as its record tells of it."""
        seconds = told["seconds"]
        self.images += told["embedded"]
        self.seconds += seconds["total"] - seconds["plan"] - seconds["commit"]

    @property
    def per_second(self) -> float | None:
        """Images per second; None if no image was embedded."""
        return self.images / max(self.seconds, 1e-9) if self.images else None


def pace_of_last_run(store: FeatureStore, feature_set: str) -> Pace:
    """Return the pace of the last run that embedded images into a set."""
    pace = Pace()
    for run in reversed(store.runs()):
        if run.kind == "embed" and run.result["feature_set"] == feature_set and run.result["embedded"]:
            pace.add(run.result)
            break
    return pace


def images_left(source: str, store: FeatureStore, sets: Iterable[str], options: EmbedOptions) -> dict[str, int]:
    """Return how many images of a source each feature set lacks; the source is listed once."""
    known = {name: store.known_files(name) for name in sets}
    left = dict.fromkeys(known, 0)
    for entries in batched(corpus.list_source(source, options.hints), LISTED_AT_ONCE):
        signals.check()
        for name, files in known.items():
            left[name] += count_lacking(entries, files, options)
    return left


def bytes_per_image(store: FeatureStore, feature_set: str) -> float:
    """Return what a set's table takes on the disk or in the bucket, per image."""
    return bytes_of_set(store, feature_set) / max(store.table(feature_set).count(), 1)


def cost(pace: Pace, left: int, bytes_per_row: float) -> dict[str, Any]:
    """Return as JSON what embedding the images that are left takes."""
    rate = pace.per_second
    return {
        "images_per_second": None if rate is None else round(rate, 1),
        "left": left,
        "hours": None if rate is None else round(left / rate / 3600, 4),
        "bytes": round(left * bytes_per_row),
    }
