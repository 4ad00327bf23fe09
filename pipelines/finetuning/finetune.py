"""The fine-tuning job: train the last layers of a backbone further, together with a head, on the images themselves.

It is the only job that reads pixels more than once. A killed run resumes after its last complete epoch: the name of
its folder under ``STORE/finetune`` is a digest of everything that decides its result, and what an epoch does depends
only on the seed and the epoch's number.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.dataset import Dataset
from featurestore.errors import HeadError
from featurestore.runs import RunRecord
from featurestore.splits import SPLITS, TEST, TRAIN, VAL
from featurestore.store import FeatureStore
from heads import registry
from heads.base import Head, class_weights
from heads.comparison.compare import CompareResult
from heads.evaluation import metrics
from heads.evaluation.significance import mcnemar
from heads.train import accuracy, check_dataset, score
from pipelines import signals
from pipelines.backbones import canary, finetuned
from pipelines.backbones.engine_options import EngineOptions, check_batch
from pipelines.backbones.table import Tap
from pipelines.concurrency import bound_memory
from pipelines.embedding.embed import embed
from pipelines.embedding.worker import engine_for
from pipelines.finetuning import checkpoint
from pipelines.finetuning.checkpoint import Course
from pipelines.finetuning.epochs import train
from pipelines.finetuning.pictures import Pictures, Progress, Watch
from pipelines.finetuning.trainer import Trainer
from pipelines.options import EmbedOptions, FinetuneOptions, FitData, ReportOptions
from pipelines.predict import tap_of
from pipelines.run_kinds import head_kinds
from pipelines.sources import places
from pipelines.sources.manifests import write_manifest
from pipelines.stored_heads import Say, find_head, head_of
from pipelines.training import keep, load_dataset


def finetune(
    store: str | PurePath,
    head_id: str | None,
    options: FinetuneOptions,
    weights: str | None = None,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Fine-tune a head's backbone together with the head; return the object that ``penult finetune --json`` prints.

    The best epoch on validation is kept; it may be the start, before the first epoch. Its backbone becomes ``ft:RUN``
    in the store. The labelled images are embedded with it, and the head is kept with these features as its feature
    set. The test split is used once, at the end. The same call again resumes after the last complete epoch, or
    returns the result of the finished run. Everything is computed in the precision of the features that the head was
    trained on.

    Args:
        store: the store's folder.
        head_id: which linear or dense head, see ``stored_heads.find_head``; where that takes the newest head, it is the
            newest that was not itself fine-tuned.
        options: how to fine-tune.
        weights: path of the backbone's weights file; needed if the file has moved.
        progress: called with the number of images read, and how many will be read in all.
        say: called with lines for people that report the progress.

    Raises:
        UsageError, BackboneError, HeadError, EngineError, StoreError: before any work; SpecMismatch, a StoreError, also
            if the backbone gives other features than when the set was made.
        SourceError: no image of a split can be read any more.
        HeadError: the loss is no longer finite.
        Interrupted: Ctrl-C or SIGTERM; complete epochs are kept.
    """
    options.check()
    bound_memory()
    opened = FeatureStore(store)
    head_id = find_head(opened, head_id, head_kinds(fine_tuned=False), say)  # a rerun must not start from its own head
    job = _job(opened, head_id, options, weights)
    if (done := job.done()) is not None:
        say(f"This was done before, by run {done.run_id}.")
        checkpoint.discard(job.folder)  # the run may have died before it did this
        return done.result
    trainer = _checked_trainer(job)
    with checkpoint.own_folder(job.folder, opened.new_run_id) as (folder, begun):
        watch = Watch(_work(job.dataset, options.epochs), progress)
        pictures = Pictures(job.dataset, job.tap, options.batch_size, watch)
        with trainer.running(job.precision), signals.deferred():
            course = train(trainer, pictures, _weights(job.dataset, job.class_weight), options, folder, say)
        trainer.set_weights(course.best)
        about = {"head_id": job.head_id, "options": asdict(options)}
        finetuned.register(opened, begun["run_id"], job.tap, trainer.save_backbone, about)
        with watch.stage("embed"):
            feature_set = _embed(opened, begun["run_id"], pictures, job.feature_set)
        with watch.stage("score"):
            scored = _scored(job, trainer, course, pictures, feature_set, begun)
        outcome = _outcome(begun["run_id"], feature_set, course, watch, options) | scored
        parameters = job.parameters | job.data.to_json() | {"digest": job.digest}
        record = RunRecord(begun["run_id"], "finetune", begun["started"], parameters, outcome)
        record.write(opened.run_folder(begun["run_id"]))
        checkpoint.discard(folder)
    return outcome


@dataclass(frozen=True)
class _Job:
    """All that decides what a fine-tuning does."""

    store: FeatureStore
    head_id: str
    head: Head
    class_weight: str | None
    tap: Tap
    data: FitData
    dataset: Dataset
    options: FinetuneOptions
    notes: tuple[str, ...]

    @property
    def feature_set(self) -> str:
        """The set that the head was trained on."""
        return self.dataset.feature_set

    @property
    def precision(self) -> str:
        """That of the features, in which everything is computed."""
        return self.store.spec(self.feature_set).precision

    @property
    def parameters(self) -> dict[str, Any]:
        """What was asked for, as the run's record has it."""
        return {"head_id": self.head_id, "class_weight": self.class_weight, **asdict(self.options)}

    @property
    def digest(self) -> str:
        """A digest of all that decides the run: head, options, feature set's fingerprint, images, labels, splits."""
        dataset = self.dataset
        rows = [dataset.ids.tolist(), dataset.y.tolist(), dataset.splits.tolist()]
        text = json.dumps([self.parameters, dataset.fingerprint, rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> PurePath:
        """Where its checkpoint is."""
        return layout.finetuning(self.store.path, self.digest)

    def done(self) -> RunRecord | None:
        """Return the newest finished run of this job, if there is one."""
        digest = self.digest
        runs = (run for run in reversed(self.store.runs()) if run.kind == "finetune")
        return next((run for run in runs if run.parameters["digest"] == digest), None)


def _job(store: FeatureStore, head_id: str, options: FinetuneOptions, weights: str | None) -> _Job:
    """Look up all that decides a run, and check it; see ``finetune`` for errors."""
    head, meta = head_of(store, head_id)
    record = RunRecord.read(store.run_folder(head_id))
    tap = tap_of(store, meta["feature_set"], weights)
    check_batch(options.batch_size, tap.input_size)
    data = FitData.from_json(record.parameters, meta["feature_set"])
    dataset = load_dataset(store, data)
    notes = check_dataset(dataset)
    _check_classes(head, dataset)
    return _Job(store, head_id, head, _class_weight(record), tap, data, dataset, options, tuple(notes))


def _checked_trainer(job: _Job) -> Trainer:
    """Return the network to train, after its features have been compared with the set's canary.

    Raises:
        EngineError: this machine only emulates the precision of the features.
        SpecMismatch: the backbone gives other features than when the set was made.
    """
    # For bf16 open the engine now: a CPU without bf16 is refused here, not after the training.
    engine = engine_for(job.tap, EngineOptions(precision=job.precision)) if job.precision == "bf16" else None
    options = job.options
    trainer = Trainer(job.tap, job.head, options.unfreeze_from, options.optimizer, options.settings())
    canary.check(job.store, job.feature_set, engine or trainer.features)
    return trainer


def _class_weight(record: RunRecord) -> str | None:
    """Return the class weight that the run's head was fitted with."""
    told = record.result
    fitted = told["leaderboard"][told.get("chosen", 0)] if record.kind == "compare" else record.parameters
    return fitted.get("class_weight")


def _weights(dataset: Dataset, class_weight: str | None) -> np.ndarray:
    """Return the weight of each row in the loss, float32 (n,)."""
    weights = np.ones(len(dataset), np.float32)
    train = dataset.splits == TRAIN
    names, codes = np.unique(dataset.y[train], return_inverse=True)
    weights[train] = class_weights(codes, len(names), class_weight)[codes]
    return weights


def _embed(store: FeatureStore, run_id: str, pictures: Pictures, feature_set: str) -> str:
    """Embed the labelled images that still exist with the fine-tuned backbone; return the new feature set's name."""
    dataset, spec = pictures.dataset, store.spec(feature_set)
    here = np.array([entry.size >= 0 for entry in places.locate_all(dataset.uris.tolist())])
    pictures.lost |= dict.fromkeys(dataset.ids[~here].tolist(), "vanished")
    manifest = write_manifest(layout.manifest(store.path, run_id), dataset.uris[here].tolist())
    engine = EngineOptions(precision=spec.precision)
    options = EmbedOptions(finetuned.PREFIX + run_id, engine=engine, dtype=spec.dtype)
    result = embed(manifest, store.path, options, pictures.watch.ahead, as_source=False)
    pictures.watch.count(len(dataset))
    failed = store.catalog.read(["uri", "error_type"], f"status = 'failed' AND run_id = '{result.run_id}'")
    why = dict(zip(failed.column("uri").to_pylist(), failed.column("error_type").to_pylist(), strict=True))
    found = {key: why[uri] for key, uri in zip(dataset.ids.tolist(), dataset.uris.tolist(), strict=True) if uri in why}
    pictures.lost = found | pictures.lost
    if list(why.values()).count("overflow") == int(here.sum()) > 0:
        raise HeadError(
            f"Expected: a fine-tuned backbone whose features {spec.dtype} can hold. Got: none for {len(why):,} "
            "images: give a smaller --learning-rate, or a head on features of `penult embed --dtype float32`."
        )
    return result.feature_set


def _scored(
    job: _Job, trainer: Trainer, course: Course, pictures: Pictures, feature_set: str, begun: dict[str, str]
) -> dict[str, Any]:
    """Keep the head with its features as run ``begun``; return its scores and those of the head before."""
    fresh = load_dataset(job.store, replace(job.data, feature_set=feature_set))
    check_dataset(fresh)
    val = fresh.part(VAL)
    head = registry.calibrated(replace(trainer.head(), history=tuple(course.history)), val.X, val.y)
    seconds = round(sum(row["seconds"] for row in course.history), 3)
    notes = [*job.notes]
    if course.best_epoch == 0:
        notes.append("No epoch was better on validation than the head as it was.")
    result = score(head, {split: fresh.part(split) for split in SPLITS}, seconds, notes)
    report = keep(job.store, begun["run_id"], CompareResult.of(result), fresh, begun["started"], ReportOptions())
    return {
        **_pair(job.head, job.dataset, head, fresh),
        "fit_seconds": seconds,
        "n": result.n,
        "left_out": _left_out(pictures.lost, job.dataset, fresh),
        "notes": list(result.notes),
        "report": str(report),
    }


def _outcome(run_id: str, feature_set: str, course: Course, watch: Watch, options: FinetuneOptions) -> dict[str, Any]:
    """Return what a run made and how it went, as JSON."""
    return {
        "run_id": run_id,
        "head_id": run_id,
        "backbone": finetuned.PREFIX + run_id,
        "feature_set": feature_set,
        "epochs": options.epochs,
        "best_epoch": course.best_epoch,
        "start": course.start,
        "history": course.history,
        "seconds": {stage: round(took, 3) for stage, took in watch.seconds.items()},
        "images_per_second": round(watch.trained / watch.seconds["train"], 1) if watch.trained else 0.0,
    }


def _pair(old: Head, old_data: Dataset, new: Head, new_data: Dataset) -> dict[str, Any]:
    """Score both heads on the images that both feature sets hold, with the p-value of their difference on test."""
    old_data = old_data.take(np.isin(old_data.keys, new_data.keys))
    new_data = new_data.take(np.isin(new_data.keys, old_data.keys))  # both are ordered by content
    told: dict[str, Any] = {}
    right = []
    for name, head, data in (("before", old, old_data), ("after", new, new_data)):
        test = data.part(TEST)
        right.append(head.predict(test.X) == test.y)
        share = float(np.mean(right[-1]))
        ci = list(metrics.wilson(share, len(test)))
        told[name] = {"val": accuracy(head, data.part(VAL)), "test": share, "test_ci": ci}
    return told | {"p_value": mcnemar(*right)}


def _left_out(lost: dict[str, str], dataset: Dataset, fresh: Dataset) -> dict[str, int]:
    """Return how many labelled images could not be trained on or embedded, by reason."""
    missing = np.setdiff1d(dataset.ids, fresh.ids).tolist()
    return dict(Counter((dict.fromkeys(missing, "not embedded") | lost).values()).most_common())


def _check_classes(head: Head, dataset: Dataset) -> None:
    unknown = np.setdiff1d(dataset.y[dataset.splits == TRAIN], head.classes)
    if len(unknown):
        raise HeadError(
            f"The head knows {len(head.classes)} classes, the labels now have {len(unknown)} others "
            f"({', '.join(unknown[:5])}): train a head on these labels first."
        )


def _work(dataset: Dataset, epochs: int) -> int:
    """Return how many images will be read: train and val per epoch, val once before, and all once to embed them."""
    train, val = (int(np.sum(dataset.splits == split)) for split in (TRAIN, VAL))
    return epochs * (train + val) + val + len(dataset)
