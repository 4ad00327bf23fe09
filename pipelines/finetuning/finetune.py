"""The fine-tuning job: train the last layers of a backbone further, together with a head, on the images themselves.

It is the only job that reads pixels more than once. A killed run resumes after its last complete epoch: the name of
its folder under ``STORE/finetune`` is a digest of everything that decides its result, and what an epoch does depends
only on the seed and the epoch's number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.dataset import Dataset, hex_ids
from featurestore.errors import HeadError, ImageError, SourceError
from featurestore.runs import RunRecord
from featurestore.splits import SPLITS, TEST, TRAIN, VAL
from featurestore.storage.files import replacing
from featurestore.store import FeatureStore
from heads import registry
from heads.base import Head, class_weights
from heads.evaluation import metrics
from heads.evaluation.significance import mcnemar
from heads.train import accuracy, check_dataset, score
from pipelines import signals
from pipelines.backbones import canary, finetuned
from pipelines.backbones.engine_options import EngineOptions, check_batch
from pipelines.backbones.table import Tap
from pipelines.concurrency import ahead_of, bound_memory, cores
from pipelines.embedding.embed import embed
from pipelines.embedding.worker import engine_for
from pipelines.finetuning import checkpoint
from pipelines.finetuning.checkpoint import Course
from pipelines.finetuning.trainer import Trainer
from pipelines.images import decoder
from pipelines.images.augmentation import Augmentation
from pipelines.images.views import random_view
from pipelines.options import EmbedOptions, FinetuneOptions, FitData, ReportOptions
from pipelines.predict import tap_of
from pipelines.run_kinds import head_kinds
from pipelines.sources import corpus
from pipelines.stored_heads import Say, find_head, head_of
from pipelines.training import keep, load_dataset

STAGES = ("train", "validate", "checkpoint", "embed", "score")
BATCHES_AHEAD = 2  # per core: batches decoded and not yet trained on

Progress = Callable[[int, int], None]  # images done, images in all
Batch = tuple[np.ndarray, np.ndarray]


@dataclass
class _Watch:
    """Counts images, and the seconds per stage."""

    total: int
    progress: Progress | None
    pictures: int = 0
    trained: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def count(self, pictures: int) -> None:
        """Add images that have been read, and report progress."""
        self.pictures += pictures
        self.ahead(0)

    def ahead(self, pictures: int, _of: int = 0) -> None:
        """Report progress including this many images that will be counted later."""
        if self.progress:
            self.progress(self.pictures + pictures, self.total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        since = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - since


@dataclass
class _Pictures:
    """Reads and decodes a dataset's images, and notes in ``lost`` those that are missing, changed or unreadable."""

    dataset: Dataset
    tap: Tap
    batch_size: int
    watch: _Watch
    lost: dict[str, str] = field(default_factory=dict)  # content → why

    def batches(self, rows: np.ndarray, views: tuple[Augmentation, int] | None = None) -> Iterator[Batch]:
        """Yield pixels uint8 (b, s, s, 3) and their rows int (b,), in order, decoded ahead in threads.

        Args:
            rows: indices of rows of the dataset.
            views: the augmentation and the number of the view; None for the unchanged images.
        """
        chunks = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

        def load(chunk: np.ndarray) -> list[np.ndarray | None]:
            return [self._load(row, views) for row in chunk]

        with ThreadPoolExecutor(cores()) as pool:
            for chunk, loaded in zip(chunks, ahead_of(pool, load, chunks, BATCHES_AHEAD * cores()), strict=True):
                signals.check()
                self.watch.count(len(chunk))
                pixels = [p for p in loaded if p is not None]
                if pixels:
                    yield np.stack(pixels), chunk[[p is not None for p in loaded]]

    def _load(self, row: int, views: tuple[Augmentation, int] | None) -> np.ndarray | None:
        key, uri = str(hex_ids(self.dataset.keys[row : row + 1])[0]), str(self.dataset.uris[row])
        try:
            data = corpus.read(uri)[0]
            if hashlib.sha256(data).hexdigest() != key:
                self.lost[key] = "changed"
                return None
            pixels = decoder.decode(data, self.tap.input_size, self.tap.crop).pixels
        except ImageError as error:
            self.lost[key] = error.error_type
            return None
        return pixels if views is None else random_view(pixels, views[0], bytes.fromhex(key), views[1])


def finetune(
    store: str | Path,
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
    old, meta = head_of(opened, head_id)
    record = RunRecord.read(opened.run_folder(head_id))
    asked, class_weight = record.parameters, _class_weight(record)
    tap = tap_of(opened, meta["feature_set"], weights)
    check_batch(options.batch_size, tap.input_size)
    data = FitData.from_json(asked, meta["feature_set"])
    dataset = load_dataset(opened, data)
    notes = check_dataset(dataset)
    _check_classes(old, dataset)
    parameters = {"head_id": head_id, "class_weight": class_weight, **asdict(options)}
    digest = _digest(parameters, dataset)
    if done := [run for run in opened.runs() if run.kind == "finetune" and run.parameters["digest"] == digest]:
        say(f"This was done before, by run {done[-1].run_id}.")
        checkpoint.discard(layout.finetuning(opened.path, digest))  # the run may have died before it did this
        return done[-1].result
    precision = opened.spec(meta["feature_set"]).precision
    # For bf16 open the engine now: a CPU without bf16 is refused here, not after the training.
    engine = engine_for(tap, EngineOptions(precision=precision)) if precision == "bf16" else None
    trainer = Trainer(tap, old, options.unfreeze_from, options.optimizer, options.settings())
    canary.check(opened, meta["feature_set"], engine or trainer.features)
    with checkpoint.own_folder(layout.finetuning(opened.path, digest), opened.new_run_id) as (folder, begun):
        run_id = begun["run_id"]
        watch = _Watch(_work(dataset, options.epochs), progress)
        pictures = _Pictures(dataset, tap, options.batch_size, watch)
        loss_weights = _weights(dataset, class_weight)
        with trainer.running(precision), signals.deferred():
            course = _train(trainer, pictures, loss_weights, options, folder, say)
        if course.best_epoch == 0:
            notes.append("No epoch was better on validation than the head as it was.")
        trainer.set_weights(course.best)
        about = {"head_id": head_id, "options": asdict(options)}
        finetuned.register(opened, run_id, tap, trainer.save_backbone, about)
        with watch.stage("embed"):
            feature_set = _embed(opened, run_id, pictures, meta["feature_set"])
        with watch.stage("score"):
            fresh = load_dataset(opened, replace(data, feature_set=feature_set))
            check_dataset(fresh)
            val = fresh.part(VAL)
            head = registry.calibrated(replace(trainer.head(), history=tuple(course.history)), val.X, val.y)
            seconds = round(sum(row["seconds"] for row in course.history), 3)
            result = score(head, {split: fresh.part(split) for split in SPLITS}, seconds, notes)
            report = keep(opened, run_id, result, result, fresh, begun["started"], ReportOptions())
            pair = _pair(old, dataset, head, fresh)
        outcome = {
            "run_id": run_id,
            "head_id": run_id,
            "backbone": finetuned.PREFIX + run_id,
            "feature_set": feature_set,
            "epochs": options.epochs,
            "best_epoch": course.best_epoch,
            "start": course.start,
            "history": course.history,
            **pair,
            "fit_seconds": seconds,
            "seconds": {stage: round(took, 3) for stage, took in watch.seconds.items()},
            "images_per_second": round(watch.trained / watch.seconds["train"], 1) if watch.trained else 0.0,
            "n": result.n,
            "left_out": _left_out(pictures.lost, dataset, fresh),
            "notes": list(result.notes),
            "report": str(report),
        }
        parameters |= data.to_json() | {"digest": digest}
        RunRecord(run_id, "finetune", begun["started"], parameters, outcome).write(opened.run_folder(run_id))
        checkpoint.discard(folder)
    return outcome


def _train(
    trainer: Trainer, pictures: _Pictures, weights: np.ndarray, options: FinetuneOptions, folder: Path, say: Say
) -> Course:
    """Train all epochs, or those after the checkpoint; return the course."""
    dataset, watch, augmentation = pictures.dataset, pictures.watch, options.augmentation
    train, val = (np.flatnonzero(dataset.splits == split) for split in (TRAIN, VAL))
    labels = _codes(dataset.y, trainer.classes)

    def over(batches: Iterator[Batch], step: Callable[..., tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, int]:
        """Return the mean loss, the share of right predictions, and the number of images that could be read."""
        losses, right = [], []
        with closing(batches):  # type: ignore[type-var]
            for pixels, rows in batches:
                loss, predicted = step(pixels, rows)
                losses.append(loss)
                right.append(predicted == labels[rows])
        if not losses:
            raise SourceError(_nothing_left(pictures))
        return float(np.concatenate(losses).mean()), float(np.concatenate(right).mean()), sum(map(len, losses))

    def validate() -> dict[str, float]:
        with watch.stage("validate"):
            loss, share, _ = over(pictures.batches(val), lambda pixels, rows: trainer.evaluate(pixels, labels[rows]))
        return {"val_loss": loss, "val_accuracy": share}

    def train_epoch(epoch: int) -> dict[str, float]:
        trainer.begin(augmentation.seed, epoch, options.rate(epoch))
        order = np.random.default_rng([augmentation.seed, epoch]).permutation(train)
        views = (augmentation, epoch) if augmentation.changes else None
        with watch.stage("train"):
            loss, share, count = over(
                pictures.batches(order, views), lambda pixels, rows: trainer.step(pixels, labels[rows], weights[rows])
            )
        watch.trained += count
        return {"epoch": epoch, "loss": loss, "accuracy": share}

    course = checkpoint.resume(folder, trainer)
    if course is None:
        course = Course([], validate(), 0, trainer.weights())
        say(f"Before: validation {course.start['val_accuracy']:.1%}, loss {course.start['val_loss']:.4f}.")
    else:
        watch.count(len(val) + len(course.history) * (len(train) + len(val)))
        say(f"Resuming after epoch {len(course.history)} of {options.epochs}.")
    for epoch in range(len(course.history) + 1, options.epochs + 1):
        since = time.perf_counter()
        row = {**train_epoch(epoch), **validate()}
        row["seconds"] = round(time.perf_counter() - since, 3)
        if not np.isfinite(list(row.values())).all():
            raise HeadError(f"In epoch {epoch} the loss is not finite any more: give a smaller --learning-rate.")
        course.history.append(row)
        if _better(row, course):
            course.best_epoch, course.best = epoch, trainer.weights()
        with watch.stage("checkpoint"):
            checkpoint.save(folder, trainer, course)
        say(
            f"Epoch {epoch} of {options.epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.1%}; "
            f"validation {row['val_accuracy']:.1%}, loss {row['val_loss']:.4f} ({row['seconds']:.1f} s)."
        )
    return course


def _better(row: dict[str, float], course: Course) -> bool:
    """Return whether an epoch has a higher validation accuracy than the best so far, or the same and a lower loss."""
    best = course.history[course.best_epoch - 1] if course.best_epoch else course.start
    return (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def _class_weight(record: RunRecord) -> str | None:
    """Return the class weight that the run's head was fitted with; the winner of a comparison leads its leaderboard."""
    fitted = record.result["leaderboard"][0] if record.kind == "compare" else record.parameters
    return fitted.get("class_weight")


def _weights(dataset: Dataset, class_weight: str | None) -> np.ndarray:
    """Return the weight of each row in the loss, float32 (n,)."""
    weights = np.ones(len(dataset), np.float32)
    train = dataset.splits == TRAIN
    names, codes = np.unique(dataset.y[train], return_inverse=True)
    weights[train] = class_weights(codes, len(names), class_weight)[codes]
    return weights


def _embed(store: FeatureStore, run_id: str, pictures: _Pictures, feature_set: str) -> str:
    """Embed the labelled images that still exist with the fine-tuned backbone; return the new feature set's name."""
    import pyarrow as pa
    from pyarrow import parquet

    dataset, spec = pictures.dataset, store.spec(feature_set)
    here = np.array([corpus.locate(uri).size >= 0 for uri in dataset.uris.tolist()])
    pictures.lost |= dict.fromkeys(dataset.ids[~here].tolist(), "vanished")
    folder = store.run_folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.parquet"
    with replacing(manifest) as temporary:
        parquet.write_table(pa.table({"uri": dataset.uris[here].tolist()}), temporary)
    engine = EngineOptions(precision=spec.precision)
    options = EmbedOptions(finetuned.PREFIX + run_id, engine=engine, dtype=spec.dtype)
    result = embed(str(manifest), store.path, options, pictures.watch.ahead, as_source=False)
    pictures.watch.count(len(dataset))
    failed = store.catalog.read(["uri", "error_type"], f"status = 'failed' AND run_id = '{result.run_id}'")
    why = dict(zip(failed.column("uri").to_pylist(), failed.column("error_type").to_pylist(), strict=True))
    found = {key: why[uri] for key, uri in zip(dataset.ids.tolist(), dataset.uris.tolist(), strict=True) if uri in why}
    pictures.lost = found | pictures.lost
    if list(why.values()).count("overflow") == int(here.sum()) > 0:
        raise HeadError(
            f"Expected: a fine-tuned backbone whose features {spec.dtype} can hold. Got: none for {len(why):,} "
            "pictures: give a smaller --learning-rate, or a head on features of `penult embed --dtype float32`."
        )
    return result.feature_set


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


def _nothing_left(pictures: _Pictures) -> str:
    counts = ", ".join(f"{count} × {why}" for why, count in Counter(pictures.lost.values()).most_common())
    first = next(
        uri for key, uri in zip(pictures.dataset.ids, pictures.dataset.uris, strict=True) if key in pictures.lost
    )
    return f"No picture of a split can be read any more ({counts}), for example {first}: bring the corpus back."


def _check_classes(head: Head, dataset: Dataset) -> None:
    unknown = np.setdiff1d(dataset.y[dataset.splits == TRAIN], head.classes)
    if len(unknown):
        raise HeadError(
            f"The head knows {len(head.classes)} classes, the labels now have {len(unknown)} others "
            f"({', '.join(unknown[:5])}): train a head on these labels first."
        )


def _codes(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label in the sorted classes, int32 (n,); -1 for a label that is no class."""
    at = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    return np.where(classes[at] == y, at, -1).astype(np.int32)


def _work(dataset: Dataset, epochs: int) -> int:
    """Return how many images will be read: train and val per epoch, val once before, and all once to embed them."""
    train, val = (int(np.sum(dataset.splits == split)) for split in (TRAIN, VAL))
    return epochs * (train + val) + val + len(dataset)


def _digest(parameters: dict[str, Any], dataset: Dataset) -> str:
    """Return a digest of all that decides a run: head, options, feature set's fingerprint, images, labels, splits."""
    rows = [dataset.ids.tolist(), dataset.y.tolist(), dataset.splits.tolist()]
    text = json.dumps([parameters, dataset.fingerprint, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
