"""What a night would do and what it would cost: nothing is written, and nothing but listings and tables is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore import aliases
from featurestore.errors import PenultError, StoreNotFound
from featurestore.splits import TRAIN
from featurestore.store import FeatureStore
from pipelines.concurrency import batched
from pipelines.embedding.embed import set_of
from pipelines.embedding.plan import count_lacking
from pipelines.options import FitData
from pipelines.retraining.recipe import Recipe
from pipelines.sources import corpus
from pipelines.training import ON_DISK, load_dataset

ENTRIES_PER_BATCH = 4096
ROW_BYTES = 200  # in the catalog and the labels, per image
UNKNOWN_WIDTH = 1280  # numbers per image, before the first run


@dataclass(frozen=True)
class Cost:
    """What a night would cost.

    Attributes:
        seen: files of the sources.
        files: those to embed.
        seconds: to embed them, at the rate of the last run that embedded some; None if there is none.
        fits: heads to fit, folds and seeds counted; None if there are no labels yet.
        bytes: of new rows on the disk, about.
    """

    seen: int
    files: int
    seconds: float | None
    fits: int | None
    bytes: int


def plan(store: str | PurePath, recipe: Recipe) -> dict[str, Any]:
    """Return what a night would do: an outcome whose decision is "planned", with the object "plan" of its cost.

    Raises:
        SourceError: a source cannot be listed.
    """
    try:
        opened = FeatureStore(store)
    except StoreNotFound:
        opened = None
    cost = _cost(opened, recipe)
    champion = None if opened is None else aliases.resolve(opened.path, aliases.CHAMPION)
    reason = f"{cost.files:,} of {cost.seen:,} files to embed"
    reason += "" if cost.seconds is None else f", about {cost.seconds:,.0f} s"
    reason += "." if cost.fits is None else f"; {cost.fits:,} heads to fit or to look up."
    return {
        "run_id": None,
        "recipe": recipe.name,
        "date": recipe.date.isoformat(),
        "repeated": False,
        "decision": "planned",
        "reason": reason,
        "champion": None if champion is None else {"head_id": champion, "score": None, "ci": None},
        "plan": asdict(cost),
    }


def _cost(store: FeatureStore | None, recipe: Recipe) -> Cost:
    spec = None if store is None else set_of(recipe.embed, store.path)
    known = None if store is None or spec is None else store.known_files(spec.set_name)
    seen = files = 0
    for source in recipe.source.location:
        for entries in batched(corpus.list_source(source, recipe.embed.hints), ENTRIES_PER_BATCH):
            seen += len(entries)
            if known is None:
                files += len(entries)
                continue
            files += count_lacking(entries, known, recipe.embed)
    width = spec.width if spec else UNKNOWN_WIDTH
    rate = None if store is None or spec is None else _rate(store, spec.set_name)
    return Cost(
        seen,
        files,
        None if rate is None else round(files / rate, 1),
        None if store is None or spec is None else _fits(store, recipe, spec.set_name),
        files * (width * np.dtype(recipe.embed.dtype).itemsize + ROW_BYTES),
    )


def _rate(store: FeatureStore, feature_set: str) -> float | None:
    """Return the images per second of the last run that embedded some into a set."""
    rates = [
        run.result["images_per_second"]
        for run in store.runs()
        if run.kind == "embed" and run.result["feature_set"] == feature_set and run.result["embedded"]
    ]
    return rates[-1] or None if rates else None


def _fits(store: FeatureStore, recipe: Recipe, feature_set: str) -> int | None:
    """Return how many heads are compared, each per fold and, if its fit is random, per seed."""
    from heads import registry

    evaluation, split = recipe.compare.evaluation, recipe.compare.data.split
    try:
        data = load_dataset(store, FitData(feature_set, recipe.labels.label_set, split), ON_DISK)
    except PenultError:  # no image has a label yet
        return None
    train = data.part(TRAIN)
    if not len(train):
        return None
    candidates, _ = recipe.compare.search.candidates(train.y, data.width, len(data) - len(train))
    seeds = (evaluation.seeds if registry.FAMILIES[spec.head].random else 1 for spec in candidates)
    return sum(seeds) * max(evaluation.folds, 1)
