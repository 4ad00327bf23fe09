"""The trial of backbones: embed a sample of a corpus with each, compare a fast head, and look again at more images.

Everything that is embedded is kept in the store: the same trial again, or `penult embed`, computes only what it lacks.
Images of the test split may be embedded as others are, but how they are predicted is never looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import layout
from featurestore.dataset import Dataset
from featurestore.errors import HeadError, StoreNotFound
from featurestore.runs import RunRecord, utc_now
from featurestore.schema import keys_of
from featurestore.splits import TEST
from featurestore.store import FeatureStore
from heads.comparison.out_of_fold import HEAD, out_of_fold
from pipelines.backbones.table import Tap
from pipelines.embedding.embed import embed, import_beam, record_source, set_of, tap_for
from pipelines.embedding.worker import engine_for
from pipelines.options import EmbedOptions, FitData, TrialOptions
from pipelines.sources import corpus
from pipelines.sources.manifests import write_manifest
from pipelines.stored_heads import Say
from pipelines.training import ON_DISK, load_dataset
from pipelines.trial.costs import Pace, bytes_per_image, cost, images_left, pace_of_last_run
from pipelines.trial.gains import gain_of
from pipelines.trial.sample import FEW, SMALL, Sample
from pipelines.trial.verdict import UNDECIDED, Rival, confidence_of, points, recommend, verdict

MIN_IMAGES = 30  # labelled: with fewer no interval says anything
DECIDED, AT_MAX_SHARE, OUT_OF_BUDGET = "decided", "max_share", "budget"  # why a trial ends

Progress = Callable[[int, int], None]


def trial(
    source: str,
    store: str | PurePath,
    options: TrialOptions,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Try backbones on a sample of a corpus; return the object that ``penult trial --json`` prints.

    The store then knows the source with its labels, as after ``embed``, and holds the sample's features in a set per
    backbone. Which set is taken where none is named stays as it was; in a new store it is that of the first backbone.

    Args:
        source: folder, manifest or tar shards; see ``pipelines.sources.corpus``.
        store: the store's folder; it is made if it does not exist.
        options: which backbones, the first being the one in use; how to embed; when to stop.
        progress: called with the number of images embedded for this look, and how many it needs.
        say: called with lines for people, one or more per look.

    Raises:
        UsageError, SourceError, BackboneError: before anything is embedded.
        HeadError: there are too few labels or classes.
        TooManyRemoved, TooManyFailures: as ``penult embed``; what was embedded is kept.
        StoreError, EngineError: see ``embed``.
    """
    options.check()
    started, ways = utc_now(), _ways(store, options)
    corpus.list_source(source, options.embed.hints)
    first = ways[0]
    own_labels = _label_set_of_source(store, options.embed.label_set)
    with _default_kept(store, first):
        listed = record_source(source, store, replace(first.options, label_set=own_labels))
        listed.check(1.0, options.embed.max_removed)
        opened = FeatureStore(store)
        first.feature_set = listed.feature_set
        job = _Job(opened, opened.new_run_id("trial"), options, ways, *_sample(opened, listed.source, options))
        told = _result(job, source, _looks(job, progress, say))
    asked = {"source": corpus.printable(source), **options.to_json()}
    RunRecord(job.run_id, "trial", started, asked, told).write(opened.run_folder(job.run_id))
    return told


@dataclass
class _Way:
    """One backbone: how to embed with it, and what came of it so far."""

    name: str
    options: EmbedOptions
    tap: Tap
    feature_set: str = ""
    pace: Pace = field(default_factory=Pace)
    embedded: int = 0
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """All that decides what a trial does; ``settled``: uris of the sample that the corpus puts into train or val."""

    store: FeatureStore
    run_id: str
    options: TrialOptions
    ways: list[_Way]
    sample: Sample
    unlabelled: int
    settled: np.ndarray

    @property
    def shares(self) -> list[float]:
        """The shares at which it looks."""
        return self.sample.looks(self.options.max_share)

    @property
    def confidence(self) -> float:
        """Of each interval."""
        return confidence_of(len(self.shares), len(self.ways) - 1)

    @property
    def spent(self) -> float:
        """Seconds of embedding so far."""
        return sum(way.pace.seconds for way in self.ways)


def _ways(store: str | PurePath, options: TrialOptions) -> list[_Way]:
    """Look up all backbones, and fetch their weights."""
    ways = []
    for name in options.backbones:
        asked = replace(options.embed, backbone=name)
        tap = tap_for(asked, store)
        tap.fetch()
        ways.append(_Way(name, asked, tap))
    return ways


def _label_set_of_source(store: str | PurePath, label_set: str) -> str:
    """Return where the labels of the source itself go: not among labels that only people gave, beside other images."""
    try:
        return EmbedOptions.label_set if FeatureStore(store).is_of_people(label_set) else label_set
    except StoreNotFound:
        return label_set


@contextmanager
def _default_kept(store: str | PurePath, first: _Way) -> Iterator[None]:
    """Leave the store's default set as it is: of a rival it would hold a sample, and the next head be trained on it."""
    try:
        before = FeatureStore(store).resolve()
    except StoreNotFound:
        before = ""
    try:
        yield
    finally:
        if (name := before or first.feature_set) and (opened := FeatureStore(store)).resolve() != name:
            with opened.lock():
                opened.prefer(name)


def _sample(store: FeatureStore, source: str, options: TrialOptions) -> tuple[Sample, int, np.ndarray]:
    """Return the labelled images of a source in the order of the trial, and what else ``_Job`` says of them.

    Where the corpus names a test split, or leaves the split of some images open, an image that it puts into train is
    not in test, as ``splits.assign`` has it. From the sample alone this could not be told.

    Raises:
        HeadError: there are fewer than ``MIN_IMAGES``, or fewer than two classes.
    """
    label_set, uris = options.embed.label_set, store.uris_of(source)
    rows = store.label_rows(label_set)
    rows = rows.filter(pc.is_in(rows.column("uri"), value_set=uris))
    labelled = rows.filter(pc.is_valid(rows.column("label")))
    unlabelled = len(uris) - len(labelled)
    kept = labelled.filter(pc.fill_null(pc.not_equal(labelled.column("split"), TEST), True))
    classes = pc.unique(kept.column("label")).to_pylist()
    if len(kept) < MIN_IMAGES or len(classes) < 2:
        got = f"{len(kept):,} of {len(uris):,} images, of {len(classes)} class{'es' * (len(classes) != 1)}"
        raise HeadError(
            f"Expected: at least {MIN_IMAGES} labelled images of at least two classes outside the test split, in the "
            f"label set {label_set!r}. Got: {got}: name a folder with one sub-folder per class, or import labels with "
            "`penult label FILE`."
        )
    is_settled = not {TEST, None}.isdisjoint(pc.unique(labelled.column("split")).to_pylist())
    sample = Sample.of(kept.column("uri"), kept.column("label"), options.seed, source)
    given = kept.filter(pa.array(sample.at(options.max_share)))
    given = given.filter(pc.is_valid(given.column("split")))
    settled = np.array(given.column("uri").to_pylist() if is_settled else [], np.dtypes.StringDType())
    return sample, unlabelled, settled


def _looks(job: _Job, progress: Progress | None, say: Say) -> tuple[str, int]:
    """Look at more and more images until all rivals are decided; return why it ended, and after how many looks."""
    for line in _about(job):
        say(line)
    import_beam()  # its seconds are no image's
    done = 0
    for share in job.shares:
        if done and job.options.budget is not None and job.spent >= job.options.budget:
            return OUT_OF_BUDGET, done
        active = [job.ways[0], *(way for way in job.ways[1:] if way.row.get("verdict", UNDECIDED) == UNDECIDED)]
        taken = job.sample.taken(share).to_pylist()
        _embed(job, active, taken, progress)
        _compare(job, active, taken, share)
        done += 1
        for way in active[1:]:
            row = way.row
            told = f"{points(row['gain'], row['gain_ci'])} over {job.ways[0].name}, {row['verdict']}"
            say(
                f"Look {done} of {len(job.shares)}, {row['images']:,} images: {way.name} {row['accuracy']:.1%}, {told}."
            )
        if all(way.row["verdict"] != UNDECIDED for way in job.ways[1:]):
            return DECIDED, done
    return AT_MAX_SHARE, done


def _about(job: _Job) -> Iterator[str]:
    """Yield in words what the sample is."""
    sample, shares = job.sample, job.shares
    sizes = ", ".join(f"{int(sample.at(share).sum()):,}" for share in shares)
    yield f"{len(sample):,} labelled images outside the given test split; looks at {sizes} of them."
    if sample.enlarged > 1:
        yield (
            f"The corpus is small: each share is taken {sample.enlarged:.3g} times, as if of {SMALL:,} images, and at "
            f"least {FEW} images of each class."
        )
    if job.unlabelled:
        yield f"{job.unlabelled:,} images have no label and are left out."


def _embed(job: _Job, ways: list[_Way], uris: list[str], progress: Progress | None) -> None:
    """Embed images with each backbone, as far as the store lacks them; raise TooManyFailures if many cannot be read."""
    manifest = write_manifest(layout.manifest(job.store.path, job.run_id), uris)
    for at, way in enumerate(ways):
        if set_of(way.options, job.store.path) is None:
            engine_for(way.tap, way.options.engine)  # now: the seconds that it takes are no image's
        told = None if progress is None else _told(progress, (at + 1) * len(uris), len(ways) * len(uris))
        result = embed(manifest, job.store.path, way.options, told, as_source=False)
        way.feature_set = result.feature_set
        if result.embedded:
            way.pace.add(result.to_json())
            way.embedded += result.embedded
        result.check(job.options.max_failure_rate)


def _told(progress: Progress, until: int, total: int) -> Callable[..., None]:
    """Return what passes on the progress of one backbone, at whose end ``until`` images are done of this look."""
    return lambda done, to_embed, *_: progress(until - to_embed + done, total)


def _compare(job: _Job, ways: list[_Way], uris: list[str], share: float) -> None:
    """Set the rows of the backbones: their accuracy on the sample's images that all of them hold, and the gains."""
    datasets = _datasets(job, ways, uris)
    shared = functools.reduce(np.intersect1d, [dataset.keys for dataset in datasets])
    y, groups, said = np.empty(0), None, []
    for dataset in datasets:
        rows = dataset.take(np.searchsorted(dataset.keys, shared)).read()
        y, groups = rows.y, rows.groups
        said.append(out_of_fold(rows))
    for way, predicted in zip(ways, said, strict=True):
        way.row = {"share": share, "images": len(y), "accuracy": float(np.mean(predicted == y))}
    for way, predicted in zip(ways[1:], said[1:], strict=True):
        gain, interval = gain_of(y, predicted, said[0], groups, job.confidence)
        found = verdict(interval, job.options.margin / 100)
        way.row |= {"gain": gain, "gain_ci": list(interval), "verdict": found}


def _datasets(job: _Job, ways: list[_Way], uris: list[str]) -> list[Dataset]:
    """Return the sample's images outside the test split that each set holds; their vectors stay in the store.

    Raises:
        HeadError: hardly any of them could be embedded.
    """
    catalog = job.store.catalog.read(["uri", "sha256"], "status = 'ok'")
    sampled = catalog.filter(pc.is_in(catalog.column("uri"), value_set=pa.array(uris, pa.string())))
    keys = np.unique(keys_of(sampled.column("sha256")))
    found = []
    for way in ways:
        data = FitData(way.feature_set, job.options.embed.label_set, job.options.split)
        dataset = load_dataset(job.store, data, ON_DISK)
        outside_test = (dataset.splits != TEST) | np.isin(dataset.uris, job.settled)
        found.append(dataset.take(np.isin(dataset.keys, keys) & outside_test))
        if len(found[-1]) < MIN_IMAGES // 2:
            raise HeadError(
                f"Expected: the features of at least {MIN_IMAGES // 2} images of the sample in {way.feature_set}, "
                f"outside the test split. Got: {len(found[-1])} of {len(uris)}: `penult status --failed` says why, or "
                "label more images."
            )
    return found


def _result(job: _Job, source: str, ended: tuple[str, int]) -> dict[str, Any]:
    """Return the outcome of a trial as JSON."""
    why, looks = ended
    left = images_left(source, job.store, [way.feature_set for way in job.ways], job.options.embed)
    rows = [_row(job, way, left[way.feature_set]) for way in job.ways]
    return {
        "run_id": job.run_id,
        "recommendation": recommend(job.ways[0].name, [Rival.of(row) for row in rows[1:]]),
        "stopped": why,
        "looks": looks,
        "planned_looks": len(job.shares),
        "confidence": job.confidence,
        "head": HEAD,
        "backbones": rows,
        "labelled": len(job.sample),
        "unlabelled": job.unlabelled,
        "enlarged": round(job.sample.enlarged, 3),
        "seconds": round(job.spent, 3),
    }


def _row(job: _Job, way: _Way, left: int) -> dict[str, Any]:
    """Return as JSON what came of one backbone."""
    pace = way.pace if way.pace.images else pace_of_last_run(job.store, way.feature_set)
    spent = cost(pace, left, bytes_per_image(job.store, way.feature_set))
    return {"backbone": way.name, "feature_set": way.feature_set, **way.row, "embedded": way.embedded, **spent}
